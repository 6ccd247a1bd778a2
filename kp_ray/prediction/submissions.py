"""Fuse submissions of any origin into one submission, without Ray and torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from kp_ray.data.annotations import parse_name
from kp_ray.data.submission import SampleSubmission, read_sample_submission, read_submission, write_submission
from kp_ray.ensemble.fusion import fuse_clips
from kp_ray.ensemble.temporal import count_fallbacks
from kp_ray.errors import ConfigError, DataError
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.storage import filesystem


@dataclass(frozen=True)
class FuseSummary:
    """The result of `fuse`.

    Attributes:
        images: number of images.
        nobody: number of images without a person, by path of the submission.
        fallbacks: number of images without a person in any submission, by kind of fallback.
        submission: path of the fused submission.
    """

    images: int
    nobody: dict[str, int]
    fallbacks: dict[str, int]
    submission: str

    def lines(self) -> list[str]:
        """Return the lines for the terminal."""
        lines = [f"{self.images} images of {len(self.nobody)} submissions: {self.submission}"]
        lines += [f"{path}: nobody in {count} images" for path, count in self.nobody.items() if count]
        if self.fallbacks:
            filled = ", ".join(f"{count} by {how}" for how, count in self.fallbacks.items())
            lines.append(f"nobody in any submission: {filled}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        return asdict(self)


def fuse_submissions(
    paths: Sequence[str],
    target: str,
    *,
    weights: Sequence[float] | None = None,
    method: Literal["mean", "median"] = "mean",
    reject_sigmas: float | None = None,
    missing: Literal["fill", "zeros"] = "fill",
) -> FuseSummary:
    """Fuse submissions and write the result with the rows and columns of the first submission.

    A row of zeros means that nobody was found; such rows are left out of the fusion. Fusion, fallbacks and the
    validation of every file are those of `predict`.

    Args:
        paths: two or more CSV files, local or URLs.
        target: path of the result; an existing file is replaced.
        weights: one weight per file, 0 or more; None for equal weights.
        method, reject_sigmas, missing: as `predict.fusion`, `predict.reject_sigmas` and `predict.missing`.

    Raises:
        ConfigError: there are fewer than two files, a file is named twice, the target is one of the files, the weights
            do not fit the files, or `reject_sigmas` is not above 0.
        DataError: a file is not a valid submission, or has other images or columns than the first file; or every row of
            every file is zero.
        StorageError: a file cannot be read, or the target cannot be written.
    """
    _check_files_and_weights(paths, target, weights)
    if reject_sigmas is not None and not reject_sigmas > 0:
        raise ConfigError(f"reject_sigmas: a number above 0 is expected (got {reject_sigmas:g})")
    first_sample = read_sample_submission(paths[0])
    skeleton = Skeleton(first_sample.names, (), (1.0,) * len(first_sample.names))
    xy = np.stack([_read_points(path, first_sample, skeleton, paths[0]) for path in paths])
    has_person = xy.any(axis=(2, 3))
    if not has_person.any():
        raise DataError(f"{paths[0]}: every row of every submission is zero: add a submission with people")
    scenes, cameras, frames = zip(*map(parse_name, first_sample.images), strict=True)
    scores = has_person.astype(float)
    fusion = fuse_clips(
        np.concatenate([xy, np.broadcast_to(scores[..., None, None], (*xy.shape[:3], 1))], axis=3),
        scores,
        scenes,
        cameras,
        frames,
        thresholds=(1.0, 1.0),
        method=method,
        weights=None if weights is None else np.array(weights),
        reject_sigmas=reject_sigmas,
        missing=missing,
    )
    write_submission(
        target, first_sample, first_sample.images, fusion.keypoints, skeleton, allow_zeros=missing == "zeros"
    )
    return FuseSummary(
        images=len(first_sample.images),
        nobody={path: int(count) for path, count in zip(paths, (~has_person).sum(axis=1), strict=True)},
        fallbacks=count_fallbacks(fusion.fallback_names),
        submission=target,
    )


def _check_files_and_weights(paths: Sequence[str], target: str, weights: Sequence[float] | None) -> None:
    if len(paths) < 2:
        raise ConfigError(f"fuse: needs two or more submissions (got {len(paths)}): name another file")
    files = [filesystem(path)[1] for path in paths]  # a.csv and ./a.csv are the same file
    if len(set(files)) < len(files):
        raise ConfigError("fuse: a submission is named twice: name each file once, and weight it by --weights")
    if filesystem(target)[1] in files:
        raise ConfigError(f"--out: {target} is one of the submissions: name another file")
    if weights is None:
        return
    if len(weights) != len(paths) or not np.isfinite(weights).all() or min(weights) < 0 or not any(weights):
        raise ConfigError(
            f"--weights: {len(paths)} submissions need as many weights, each 0 or more and one above 0 (got "
            f"{', '.join(f'{weight:g}' for weight in weights)}): correct the list"
        )


def _read_points(path: str, first_sample: SampleSubmission, skeleton: Skeleton, first_path: str) -> FloatArray:
    """Read a submission's points (N, K, 2) in the order of the first submission's rows and columns.

    Raises:
        DataError: the submission is invalid, or has other columns or images than the first submission.
    """
    sample = read_sample_submission(path)
    for kind, names, first_names in (
        ("columns", sample.columns, first_sample.columns),
        ("images", sample.images, first_sample.images),
    ):
        differences = sorted(set(names) ^ set(first_names))
        if differences:
            owner = path if differences[0] in names else first_path
            raise DataError(
                f"{path}: differs from {first_path} in {len(differences)} {kind} "
                f"(first {differences[0]}, only in {owner}): fuse submissions of the same {kind}"
            )
    points = read_submission(path, sample, skeleton, size=None, allow_zeros=True)
    rows = {image: row for row, image in enumerate(sample.images)}
    return points[[rows[image] for image in first_sample.images]]
