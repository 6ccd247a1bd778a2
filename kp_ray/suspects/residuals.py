"""Measure how unusual the distance of each label from its out-of-fold prediction is.

Lengths are in body sizes: square roots of the area of the box around the predicted points.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from kp_ray.keypoints import FloatArray

NUM_BINS = 5
"""Number of bins of body size, and of disagreement, within which errors are compared."""
MIN_PER_BIN = 20
"""Minimum number of images per bin; few images give fewer bins."""
Rows = slice | int | list[int]
ALL_ROWS = slice(None)
_MIN_ERROR = 1e-3
"""Smaller errors, in body sizes, count as this error: it is half a pixel for a body size of 500 px."""
_NORMAL_P90 = 1.2816
"""90th percentile of the standard normal distribution."""


def body_sizes(xy: FloatArray) -> FloatArray:
    """Return the body sizes (N,) in pixels of points (N, K, 2); at least 1 px."""
    width, height = (xy.max(axis=1) - xy.min(axis=1)).T
    return np.asarray(np.sqrt(np.maximum(width * height, 1.0)))


class UsualErrors:
    """The usual errors of the predictions, per keypoint, body size and disagreement of the members.

    The logarithm of an error is compared with its median and its 90th percentile over the images, because a few wrong
    labels hardly change them. The distance between median and percentile scales the deviations of a keypoint.

    Args:
        labels: (N, K, 2) labelled points; NaN where unlabelled.
        predicted: (N, K, 2) predicted points.
        disagreement: (N, K) values that are larger where the members disagree or are unsure; only their order matters.
        clips: N names of clips. Large errors in the other frames of a clip raise the usual error of a frame, because a
            member that is wrong in one frame is often wrong in all frames.
    """

    def __init__(
        self, labels: FloatArray, predicted: FloatArray, disagreement: FloatArray, clips: Sequence[Hashable]
    ) -> None:
        self.predicted, self.sizes = predicted, body_sizes(predicted)
        log_errors = self._log_errors(labels)
        self.expected_log_errors = np.broadcast_to(np.nan_to_num(_median(log_errors)), log_errors.shape).copy()
        for values in (np.broadcast_to(self.sizes[:, None], log_errors.shape), disagreement):
            self.expected_log_errors += _medians_by_bin(log_errors - self.expected_log_errors, values)
        self.expected_log_errors += np.maximum(
            _medians_of_other_frames(log_errors - self.expected_log_errors, clips), 0.0
        )
        residuals = log_errors - self.expected_log_errors
        self.scale = np.maximum(np.nan_to_num(_quantile(residuals, 0.9), nan=1.0), 0.1) / _NORMAL_P90

    def _log_errors(self, labels: FloatArray, rows: Rows = ALL_ROWS) -> FloatArray:
        distance = np.linalg.norm(labels - self.predicted[rows], axis=-1)
        return np.asarray(np.log(np.maximum(distance / self.sizes[rows, None], _MIN_ERROR)))

    def deviations(self, labels: FloatArray, rows: Rows = ALL_ROWS) -> FloatArray:
        """Return how far the errors of labels are above the usual errors, in robust standard deviations.

        Args:
            labels: (N, K, 2) labels of all images; or (C, K, 2) candidate labels for one row; or (K, 2) labels of one
                image for several rows.
            rows: rows of the predictions: all N rows, one row, or R rows.

        Returns:
            (N, K), (C, K) or (R, K) deviations; NaN where unlabelled.
        """
        return np.asarray((self._log_errors(labels, rows) - self.expected_log_errors[rows]) / self.scale)


def standardize(values: FloatArray) -> FloatArray:
    """Return values (N,) as robust standard deviations above their median; NaN stays NaN."""
    median = np.nanmedian(values)
    return np.asarray((values - median) / max(float(np.nanquantile(values, 0.9) - median) / _NORMAL_P90, 1e-6))


def _medians_by_bin(residuals: FloatArray, values: FloatArray) -> FloatArray:
    """Sort points by values (N, K) into bins of equal count; return the median residual (N, K) of each point's bin.

    Equal values of a keypoint are in one bin.
    """
    num_bins = max(1, min(NUM_BINS, len(values) // MIN_PER_BIN))
    ranks = np.empty(values.shape, dtype=int)
    for column, unsorted in enumerate(np.nan_to_num(values).T):
        ordered = np.sort(unsorted)
        ranks[:, column] = (np.searchsorted(ordered, unsorted) + np.searchsorted(ordered, unsorted, "right") - 1) // 2
    bins = ranks * num_bins // len(values)
    medians = np.zeros_like(residuals)
    for number in range(num_bins):
        # A bin holds all keypoints: the bins of a single keypoint would be too small.
        is_in_bin = bins == number
        bin_residuals = residuals[is_in_bin & np.isfinite(residuals)]
        medians[is_in_bin] = np.median(bin_residuals) if bin_residuals.size else 0.0
    return medians


def _medians_of_other_frames(residuals: FloatArray, clips: Sequence[Hashable]) -> FloatArray:
    """Return the median residuals (N, K) over the other frames of each image's clip; 0 without other frames."""
    rows_by_clip: dict[Hashable, list[int]] = defaultdict(list)
    for row, clip in enumerate(clips):
        rows_by_clip[clip].append(row)
    medians = np.zeros_like(residuals)
    for rows in rows_by_clip.values():
        for column in range(residuals.shape[1]):
            medians[rows, column] = _medians_without_each(residuals[rows, column])
    return medians


def _medians_without_each(values: FloatArray) -> FloatArray:
    """Return for each of N values the median (N,) of the others that are not NaN; 0 if there is none."""
    order = np.argsort(values, kind="stable")  # NaN last
    ordered = values[order]
    ranks = np.empty(len(values), dtype=int)
    ranks[order] = np.arange(len(values))
    num_finite = int(np.isfinite(values).sum())
    num_others = num_finite - np.isfinite(values)
    middles = []
    for middle in (np.maximum(num_others - 1, 0) // 2, num_others // 2):
        index = middle + (ranks <= middle)  # the values above the left-out one are one place further up
        middles.append(ordered[np.minimum(index, len(values) - 1)])
    return np.where(num_others > 0, sum(middles) / 2, 0.0)


def _median(values: FloatArray) -> FloatArray:
    return _quantile(values, 0.5)


def _quantile(values: FloatArray, level: float) -> FloatArray:
    """Return a quantile (K,) over N values; NaN for a column without values."""
    quantiles = np.full(values.shape[1], np.nan)
    for column in range(values.shape[1]):
        finite_values = values[np.isfinite(values[:, column]), column]
        if finite_values.size:
            quantiles[column] = np.quantile(finite_values, level)
    return quantiles
