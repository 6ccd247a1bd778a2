"""Fuse the members' predictions into a submission."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.submission import SampleSubmission, write_submission
from kp_ray.ensemble.fusion import Fusion, fuse_clips
from kp_ray.ensemble.temporal import count_fallbacks
from kp_ray.errors import DataError, ModelError, RunStateError
from kp_ray.fingerprint import refuse_difference
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.prediction.inputs import read_run_sample, resolve_skeleton, resolve_weights
from kp_ray.prediction.members import list_members
from kp_ray.prediction.parts import is_found
from kp_ray.prediction.predictions import Predictions, read_predictions
from kp_ray.prediction.records import (
    FilledImage,
    MemberCounts,
    PredictionCost,
    PredictionDetails,
    UnusableImage,
    WeightsSource,
    digest_fusion_settings,
    read_details,
    write_details,
)
from kp_ray.prediction.settings import prediction_fields
from kp_ray.storage import delete_file, exists, read_bytes


def read_run_predictions(config: Config, skeleton: Skeleton) -> Predictions:
    """Read the run's `predictions.parquet`.

    Raises:
        StorageError: the file does not exist, or is damaged.
        RunStateError: the file's keypoints differ from the skeleton's in name or order, or the file's members or
            settings are not those of the config.
    """
    path = config.path("predictions.parquet")
    predictions = read_predictions(path)
    if predictions.keypoint_names != skeleton.names:
        raise RunStateError(f"{path}: has other keypoints than the labels, or another order: run predict again")
    members = list_members(config)
    if set(predictions.members) != set(members):
        raise RunStateError(
            f"{path}: its members are not those of the config (got {', '.join(predictions.members)}, expected "
            f"{', '.join(members)}): run predict again"
        )
    if predictions.settings:
        recorded, current = _by_key(predictions.settings), _by_key(prediction_fields(config))
        refuse_difference(recorded, current, path, "run predict again")
    return predictions


def _by_key(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields by the names that a message should give: the config keys that decide them."""
    keys = {
        "merging": "the merging of the views of predict.tta",
        "detections_per_image": "model.cfg.TEST.DETECTIONS_PER_IMAGE",
        "lowest_threshold": "the lower one of predict.score_threshold and predict.fallback_threshold",
    }
    return {keys.get(name, f"predict.{name}"): value for name, value in fields.items()}


def fuse_predictions(
    config: Config, predictions: Predictions, members: Sequence[int], weights: FloatArray | None
) -> Fusion:
    """Fuse the predictions of some members as the config's `predict` section says.

    Keypoints outside their image are moved to its edge: fallbacks and smoothing can put them outside.

    Args:
        config: the run's configuration.
        predictions: predictions of all members.
        members: indices of the members to fuse.
        weights: (len(members), K) fusion weights; None for equal weights.
    """
    section = config.predict
    keypoints, scores = predictions.keypoints[list(members)], predictions.scores[list(members)]
    fusion = fuse_clips(
        keypoints,
        scores,
        *predictions.scenes_cameras_frames,
        thresholds=(section.score_threshold, section.fallback_threshold),
        method=section.fusion,
        weights=weights,
        reject_sigmas=section.reject_sigmas,
        missing=section.missing,
        smooth_frames=section.smooth_frames,
        mean_pose=np.zeros((keypoints.shape[2], 2)),  # used only if the members found nobody in any image
    )
    sizes = np.array(predictions.sizes)[:, None]
    has_size = (sizes > 0).all(axis=2, keepdims=True)  # the size of an unusable image is unknown
    xy = fusion.keypoints[..., :2]
    clipped_xy = np.where(has_size, np.clip(xy, 0, np.maximum(sizes - 1, 0)), xy)
    return replace(fusion, keypoints=np.concatenate([clipped_xy, fusion.keypoints[..., 2:]], axis=2))


def write_fused(config: Config, cost: PredictionCost) -> PredictionDetails:
    """Fuse `predictions.parquet` into `submission.csv`, and list every fallback in `predict.json`.

    If the submission changed, the scores in `evaluation.json` are outdated: it is deleted.

    Args:
        config: the run's configuration.
        cost: cost of this command. If it predicted no usable image, `predict.json` keeps the earlier command's cost.

    Returns:
        The content of `predict.json`.

    Raises:
        DataError: no image can be used.
        ModelError: nobody was found in any image.
        KpRayError: the predictions, the sample submission or `predict.weights` are invalid or do not fit the run.
    """
    sample = read_run_sample(config)
    skeleton = resolve_skeleton(config, sample)
    predictions = read_run_predictions(config, skeleton)
    if all(predictions.reasons):
        raise DataError(
            f"predict: none of the {len(predictions.images)} images can be used, e.g. {predictions.images[0]}: "
            f"{predictions.reasons[0]}: replace the files, or correct predict.images"
        )
    if not (predictions.scores > 0).any():
        raise ModelError(
            "predictions.parquet: nobody was found in any image: train longer or lower predict.fallback_threshold"
        )
    weights = resolve_weights(config, predictions.members, skeleton)
    fusion = fuse_predictions(config, predictions, range(len(predictions.members)), weights)
    evaluation_path = config.path("evaluation.json")
    has_changed = _write_submission(config, sample, predictions, fusion, skeleton)
    if has_changed and exists(evaluation_path):
        delete_file(evaluation_path)
    details_path = config.path("predict.json")
    details = _make_details(config, predictions, fusion, cost)
    # A command that only retried unusable images keeps the cost of the command that predicted the usable images.
    if cost.predicted <= len(details.unusable) and exists(details_path):
        details = details.model_copy(update={"took": read_details(details_path).took})
    write_details(details_path, details)
    return details


def _write_submission(
    config: Config, sample: SampleSubmission | None, predictions: Predictions, fusion: Fusion, skeleton: Skeleton
) -> bool:
    """Write `submission.csv`; return whether its content changed."""
    # With `predict.images`, the sample submission can list other images, so the predicted images give the rows.
    if sample is None or config.predict.images is not None:
        columns = sample.columns if sample else ("image", *skeleton.columns)
        sample = SampleSubmission(predictions.images, columns)
    target = config.path("submission.csv")
    earlier_content = read_bytes(target) if exists(target) else b""
    sizes = dict(zip(predictions.images, predictions.sizes, strict=True))
    allow_zeros = config.predict.missing == "zeros"
    write_submission(
        target, sample, predictions.images, fusion.keypoints, skeleton, size=sizes, allow_zeros=allow_zeros
    )
    return read_bytes(target) != earlier_content


def list_filled(predictions: Predictions, fusion: Fusion) -> tuple[FilledImage, ...]:
    """List the images whose keypoints come from a fallback, in the order of the predictions."""
    return tuple(
        FilledImage(image=image, how=how)
        for image, how in zip(predictions.images, fusion.fallback_names, strict=True)
        if how
    )


def _make_details(config: Config, predictions: Predictions, fusion: Fusion, cost: PredictionCost) -> PredictionDetails:
    num_found = is_found(predictions.scores, config).sum(axis=1)
    filled = list_filled(predictions, fusion)
    return PredictionDetails(
        images=len(predictions.images),
        members=predictions.members,
        by_member={
            name: MemberCounts(found=int(num_found[i]), rejected_points=fusion.num_rejected[i])
            for i, name in enumerate(predictions.members)
        },
        people=predictions.person_choices,
        weights=WeightsSource(chosen="equal" if isinstance(config.predict.weights, str) else "given"),
        fallbacks=count_fallbacks(fusion.fallback_names),
        filled=filled,
        unusable=tuple(
            UnusableImage(image=image, reason=reason)
            for image, reason in zip(predictions.images, predictions.reasons, strict=True)
            if reason
        ),
        took=cost,
        settings=digest_fusion_settings(config),
    )
