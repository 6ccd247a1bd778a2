"""Fuse the members' predictions into a submission."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.submission import SampleSubmission, write_submission
from kp_ray.ensemble.fusion import Fusion, fuse_clips
from kp_ray.errors import ModelError, RunStateError
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.prediction.inputs import read_run_sample, resolve_skeleton, resolve_weights
from kp_ray.prediction.parts import is_found
from kp_ray.prediction.predictions import Predictions, read_predictions
from kp_ray.prediction.records import (
    FilledImage,
    MemberCounts,
    PredictionDetails,
    PredictionTime,
    UnusableImage,
    WeightsSource,
    read_details,
    write_details,
)
from kp_ray.storage import delete_file, exists, read_bytes


def read_run_predictions(config: Config, skeleton: Skeleton) -> Predictions:
    """Read the run's `predictions.parquet`.

    Raises:
        StorageError: it is not there, or is damaged.
        RunStateError: it holds other keypoints than the skeleton.
    """
    path = config.path("predictions.parquet")
    predictions = read_predictions(path)
    if predictions.keypoint_names != skeleton.names:
        raise RunStateError(f"{path}: holds other keypoints, or the same in another order: run predict again")
    return predictions


def fuse_predictions(
    config: Config, predictions: Predictions, members: Sequence[int], weights: FloatArray | None
) -> Fusion:
    """Fuse some members' predictions as `predict` in the config says.

    Points are clipped to the frame of their image, because filling and smoothing may lead out of it.

    Args:
        config: the run's configuration.
        predictions: of all members.
        members: indices of those to fuse.
        weights: (len(members), K); None: equal.
    """
    section = config.predict
    keypoints, scores = predictions.keypoints[list(members)], predictions.scores[list(members)]
    fusion = fuse_clips(
        keypoints,
        scores,
        *predictions.places,
        thresholds=(section.score_threshold, section.fallback_threshold),
        method=section.fusion,
        weights=weights,
        reject_sigmas=section.reject_sigmas,
        missing=section.missing,
        smooth_frames=section.smooth_frames,
        mean_pose=np.zeros((keypoints.shape[2], 2)),
    )
    limits = np.array([(w - 1, h - 1) if w and h else (np.inf, np.inf) for w, h in predictions.sizes])[:, None]
    xy = fusion.keypoints[..., :2]
    inside = np.where(np.isfinite(limits), np.clip(xy, 0, limits), xy)
    return replace(fusion, keypoints=np.concatenate([inside, fusion.keypoints[..., 2:]], axis=2))


def write_fused(config: Config, took: PredictionTime) -> PredictionDetails:
    """Fuse `predictions.parquet` into `submission.csv` and list every fallback in `predict.json`.

    An `evaluation.json` of another submission is deleted.

    Args:
        config: the run's configuration.
        took: cost of predicting; kept in `predict.json` until images are predicted again.

    Returns:
        The content of `predict.json`.

    Raises:
        ModelError: nobody was found in any image.
        KpRayError: the predictions, the sample submission or the weights do not fit the run.
    """
    sample = read_run_sample(config)
    skeleton = resolve_skeleton(config, sample)
    predictions = read_run_predictions(config, skeleton)
    if not (predictions.scores > 0).any():
        raise ModelError("nobody was found in any image: train longer or lower predict.fallback_threshold")
    weights = resolve_weights(config, predictions.members, skeleton)
    fusion = fuse_predictions(config, predictions, range(len(predictions.members)), weights)
    has_changed = _write_submission(config, sample, predictions, fusion, skeleton)
    stale = config.path("evaluation.json")
    if (took.predicted or has_changed) and exists(stale):
        delete_file(stale)
    path = config.path("predict.json")
    details = _describe(config, predictions, fusion, took)
    # A run that only retried unusable images keeps the cost of the run that predicted the others.
    if took.predicted <= len(details.unusable) and exists(path):
        details = details.model_copy(update={"took": read_details(path).took})
    write_details(path, details)
    return details


def _write_submission(
    config: Config, sample: SampleSubmission | None, predictions: Predictions, fusion: Fusion, skeleton: Skeleton
) -> bool:
    """Write `submission.csv`; return whether its content changed."""
    if sample is None or config.predict.images is not None:  # the sample's rows are not those that were predicted
        columns = sample.columns if sample else ("image", *skeleton.columns)
        sample = SampleSubmission(predictions.images, columns)
    target = config.path("submission.csv")
    before = read_bytes(target) if exists(target) else b""
    sizes = dict(zip(predictions.images, predictions.sizes, strict=True))
    zeros = config.predict.missing == "zeros"
    write_submission(target, sample, predictions.images, fusion.keypoints, skeleton, size=sizes, allow_zeros=zeros)
    return read_bytes(target) != before


def list_filled(predictions: Predictions, fusion: Fusion) -> tuple[FilledImage, ...]:
    """List the images whose keypoints come from a fallback."""
    return tuple(
        FilledImage(image=image, how=how) for image, how in zip(predictions.images, fusion.how, strict=True) if how
    )


def _describe(config: Config, predictions: Predictions, fusion: Fusion, took: PredictionTime) -> PredictionDetails:
    found = is_found(predictions.scores, config).sum(axis=1)
    filled = list_filled(predictions, fusion)
    return PredictionDetails(
        images=len(predictions.images),
        members=predictions.members,
        by_member={
            name: MemberCounts(found=int(found[i]), rejected_points=fusion.rejected[i])
            for i, name in enumerate(predictions.members)
        },
        people=predictions.person_choices,
        weights=WeightsSource(chosen="equal" if isinstance(config.predict.weights, str) else "given"),
        fallbacks=dict(Counter(re.sub(r"^frame \d+$", "near frame", row.how) for row in filled)),
        filled=filled,
        unusable=tuple(
            UnusableImage(image=image, reason=reason)
            for image, reason in zip(predictions.images, predictions.reasons, strict=True)
            if reason
        ),
        took=took,
    )
