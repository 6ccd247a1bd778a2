"""Measure how unusual the distance of each label from its out-of-fold prediction is.

Lengths are in body sizes: square roots of the area of the box around the predicted points.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from kp_ray.keypoints import FloatArray

NUM_BINS = 5
"""Bins of body size, and of agreement, within which errors are compared."""
MIN_PER_BIN = 20
"""Images per bin at least; fewer images give fewer bins."""
Rows = slice | int | list[int]
ALL_ROWS = slice(None)
_FLOOR = 1e-3
"""Smallest error in body sizes, below which labels are equal: half a pixel of a person of 500 px."""


def body_sizes(xy: FloatArray) -> FloatArray:
    """Return the body sizes (N,) in pixels of points (N, K, 2); at least 1 px."""
    width, height = (xy.max(axis=1) - xy.min(axis=1)).T
    return np.asarray(np.sqrt(np.maximum(width * height, 1.0)))


class UsualErrors:
    """The usual errors of the predictions, per keypoint, body size and agreement of the members.

    The logarithm of an error is compared with its median and its 90th percentile over the images: neither is moved much
    by a few wrong labels, and the distance between the two tells how often that keypoint is far off without a mistake.

    Args:
        labels: (N, K, 2) labelled points; NaN where unlabelled.
        predicted: (N, K, 2) predicted points.
        disagreement: (N, K) larger where the members disagree, or are not sure; only the order matters.
        clips: N names of clips. Members that are wrong in one frame of a clip are often wrong in the others, too: what
            the other frames show counts as usual.
    """

    def __init__(
        self, labels: FloatArray, predicted: FloatArray, disagreement: FloatArray, clips: Sequence[Hashable]
    ) -> None:
        self.predicted, self.sizes = predicted, body_sizes(predicted)
        logs = self._log_errors(labels)
        self.expected = np.broadcast_to(np.nan_to_num(_median(logs)), logs.shape).copy()
        for values in (np.broadcast_to(self.sizes[:, None], logs.shape), disagreement):
            self.expected += _medians_by_bin(logs - self.expected, values)
        rest = logs - self.expected
        self.expected += np.maximum(_medians_of_other_frames(rest, clips), 0.0)
        rest = logs - self.expected
        self.scale = np.maximum(np.nan_to_num(_quantile(rest, 0.9), nan=1.0), 0.1) / 1.2816

    def _log_errors(self, labels: FloatArray, rows: Rows = ALL_ROWS) -> FloatArray:
        distance = np.linalg.norm(labels - self.predicted[rows], axis=-1)
        return np.asarray(np.log(np.maximum(distance / self.sizes[rows, None], _FLOOR)))

    def sigmas(self, labels: FloatArray, rows: Rows = ALL_ROWS) -> FloatArray:
        """Return how far the errors of labels are above the usual, in robust standard deviations.

        Args:
            labels: (N, K, 2) labels of all images; (C, K, 2) candidates for the image of one row; or (K, 2) one image's
                labels, which are compared with the predictions of several rows.
            rows: the row, or the R rows, of the predictions.

        Returns:
            (N, K), (C, K) or (R, K).
        """
        return np.asarray((self._log_errors(labels, rows) - self.expected[rows]) / self.scale)


def standardize(values: FloatArray) -> FloatArray:
    """Return values (N,) as robust standard deviations above their median; NaN stays NaN."""
    middle = np.nanmedian(values)
    return np.asarray((values - middle) / max(float(np.nanquantile(values, 0.9) - middle) / 1.2816, 1e-6))


def _medians_by_bin(logs: FloatArray, values: FloatArray) -> FloatArray:
    """Return (N, K) the median of `logs` over the images whose value is in the same of NUM_BINS bins of equal count."""
    num_bins = max(1, min(NUM_BINS, len(values) // MIN_PER_BIN))
    order = np.argsort(np.argsort(np.nan_to_num(values), axis=0, kind="stable"), axis=0)
    bins = order * num_bins // len(values)
    medians = np.zeros_like(logs)
    for number in range(num_bins):
        # All keypoints together: a bin of one keypoint is too small.
        is_in_bin = bins == number
        inside = logs[is_in_bin & np.isfinite(logs)]
        medians[is_in_bin] = np.median(inside) if inside.size else 0.0
    return medians


def _medians_of_other_frames(rest: FloatArray, clips: Sequence[Hashable]) -> FloatArray:
    """Return (N, K) the median of `rest` over the other frames of each image's clip; 0 where there is none."""
    rows_by_clip: dict[Hashable, list[int]] = defaultdict(list)
    for row, clip in enumerate(clips):
        rows_by_clip[clip].append(row)
    medians = np.zeros_like(rest)
    for rows in rows_by_clip.values():
        for position, row in enumerate(rows):
            others = rest[rows[:position] + rows[position + 1 :]]
            medians[row] = np.nan_to_num(_median(others))
    return medians


def _median(values: FloatArray) -> FloatArray:
    return _quantile(values, 0.5)


def _quantile(values: FloatArray, share: float) -> FloatArray:
    """Return a quantile (K,) over N values; NaN for a column without values."""
    quantiles = np.full(values.shape[1], np.nan)
    for column in range(values.shape[1]):
        finite = values[np.isfinite(values[:, column]), column]
        if finite.size:
            quantiles[column] = np.quantile(finite, share)
    return quantiles
