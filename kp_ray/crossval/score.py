"""Score the labelled images by the predictions of members that never saw their scenes; needs neither Ray nor torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kp_ray.config.schema import Config
from kp_ray.crossval.groups import FoldGroup, group_members
from kp_ray.errors import RunStateError
from kp_ray.keypoints import BoolArray, FloatArray, Skeleton
from kp_ray.metrics import Interval, average_precision, box_sizes, evaluate_keypoints, oks, pck, point_errors, rmse
from kp_ray.prediction.fuse import fuse_predictions
from kp_ray.prediction.inputs import convert_weights
from kp_ray.prediction.predictions import Predictions, read_predictions
from kp_ray.prediction.records import CrossValidation, FoldScore, digest_scored_settings, write_cross_validation
from kp_ray.storage import exists
from kp_ray.store.folds import check_num_folds
from kp_ray.store.manifest import read_manifest, store_digest
from kp_ray.store.read import list_rows_by_fold, read_table

NUM_SAMPLES = 500
"""Number of bootstrap samples of the scenes; for 4195 images they take about 2 s."""


@dataclass(frozen=True, eq=False)
class OutOfFoldPredictions:
    """The fused predictions of N labelled images with K keypoints, each by the members that hold out the image's fold.

    Attributes:
        images: N names.
        keypoints: (N, K, 3) x, y, score in pixel indices.
        scores: (N,) largest score of the members' detections; 0 where no member found a person.
        found: (N,) whether a member's score reaches `predict.score_threshold`.
        spreads: (N, K) RMS distance in pixels of the members' points from their mean; NaN where fewer than two members
            found a person.
    """

    images: tuple[str, ...]
    keypoints: FloatArray
    scores: FloatArray
    found: BoolArray
    spreads: FloatArray


def read_out_of_fold(config: Config, skeleton: Skeleton) -> OutOfFoldPredictions:
    """Read and fuse the predictions of all folds that a member holds out.

    Raises:
        StorageError: a file is damaged.
        RunStateError: a file does not exist, or has other keypoints or members than the run; an image could not be
            predicted; or no member holds out an image.
        StoreError: there is no finished store, or it has other folds.
    """
    store = config.path("store")
    check_num_folds(config, read_manifest(store))
    rows = list_rows_by_fold(store)
    groups = [group for group in group_members(config) if rows[group.fold]]
    if not groups:
        raise RunStateError(
            f"{store}: no member of this run holds out an image: change train.members or predict.members"
        )
    folds = [_fuse_fold(group, skeleton) for group in groups]
    return OutOfFoldPredictions(
        images=tuple(image for fold in folds for image in fold.images),
        keypoints=np.concatenate([fold.keypoints for fold in folds]),
        scores=np.concatenate([fold.scores for fold in folds]),
        found=np.concatenate([fold.found for fold in folds]),
        spreads=np.concatenate([fold.spreads for fold in folds]),
    )


def _fuse_fold(group: FoldGroup, skeleton: Skeleton) -> OutOfFoldPredictions:
    if not exists(group.path):
        raise RunStateError(f"{group.path}: there is no such file: run crossval first")
    predictions = read_predictions(group.path)
    if predictions.keypoint_names != skeleton.names:
        raise RunStateError(f"{group.path}: has other keypoints than the labels: run augment, train and crossval again")
    if set(predictions.members) != set(group.members):
        raise RunStateError(f"{group.path}: has other members than the run: run crossval again")
    for image, reason in zip(predictions.images, predictions.reasons, strict=True):
        if reason:
            raise RunStateError(f"{group.path}: {image} was not predicted: {reason}: run augment and crossval again")
    weights = None
    if not isinstance(group.weights, str):
        weights = convert_weights(group.weights, predictions.members, skeleton)
        # The only members with a positive weight for a keypoint may hold out other folds. Then this fold's members get
        # equal weights for it.
        weights[:, ~weights.any(axis=0)] = 1
    fusion = fuse_predictions(group.config, predictions, range(len(predictions.members)), weights)
    return OutOfFoldPredictions(
        predictions.images,
        fusion.keypoints,
        predictions.scores.max(axis=0),
        fusion.has_high_score,
        _member_spreads(predictions),
    )


def _member_spreads(predictions: Predictions) -> FloatArray:
    """Return the RMS distances (N, K) in pixels of the members' points from their mean, see `OutOfFoldPredictions`."""
    xy = predictions.keypoints[..., :2]
    found = np.isfinite(xy).all(axis=-1, keepdims=True)
    count = found.sum(axis=0)
    mean = np.where(found, xy, 0).sum(axis=0) / np.maximum(count, 1)
    squares = (np.where(found, xy - mean, 0) ** 2).sum(axis=(0, 3))
    return np.asarray(np.where(count[..., 0] > 1, np.sqrt(squares / np.maximum(count[..., 0], 1)), np.nan))


def score_folds(config: Config) -> CrossValidation:
    """Score the labelled images, and write `crossval.json`.

    Raises:
        StorageError, RunStateError: see `read_out_of_fold`.
        StoreError: there is no finished store, or it has no folds.
    """
    skeleton = config.build_skeleton(read_manifest(config.path("store")).skeleton)
    predictions = read_out_of_fold(config, skeleton)
    columns = ["source", "scene", "camera", "fold", "keypoints", "copy"]
    stored_rows = read_table(config.path("store"), recipes=["Original"], columns=columns).to_pylist()
    row_by_source = {row["source"]: row for row in stored_rows if not row["copy"]}
    rows = [row_by_source[image] for image in predictions.images]
    truth = np.array([row["keypoints"] for row in rows], dtype=float).reshape(len(rows), len(skeleton), 3)
    scenes, cameras, folds = ([row[name] for row in rows] for name in ("scene", "camera", "fold"))

    evaluation = evaluate_keypoints(
        predictions.keypoints,
        truth,
        skeleton,
        found=predictions.found,
        scores=predictions.scores,
        cameras=cameras,
        scenes=scenes,
    )

    sizes = box_sizes(truth)
    errors, longer_sides = point_errors(predictions.keypoints, truth), sizes.max(axis=1)
    similarities = oks(predictions.keypoints, truth, skeleton, sizes.prod(axis=1))

    def score_rows(indices: npt.NDArray[np.intp]) -> tuple[float, float]:
        """Return PCK@0.05 and OKS-AP of the rows with these indices."""
        precisions = average_precision(similarities[indices], predictions.scores[indices], predictions.found[indices])
        return pck(errors[indices], longer_sides[indices], 0.05) or 0.0, float(precisions.mean())

    # A sample of images without labelled points would have no score: leave such images out.
    labelled_rows = np.flatnonzero(np.isfinite(errors).any(axis=1))
    pck_interval, ap_interval = bootstrap_intervals(
        lambda indices: score_rows(labelled_rows[indices]), [scenes[row] for row in labelled_rows]
    )
    counts = np.bincount([row["fold"] for row in row_by_source.values()], minlength=config.split.folds or 0).tolist()
    members_by_fold = {group.fold: group.members for group in group_members(config)}
    by_fold = [
        FoldScore(members=members_by_fold.get(fold, ()), num_images=count, rmse=rmse(errors[np.array(folds) == fold]))
        for fold, count in enumerate(counts)
    ]
    scores = CrossValidation(
        **dict(evaluation),
        pck_interval=pck_interval,
        ap_interval=ap_interval,
        by_fold=tuple(by_fold),
        store=store_digest(config.path("store")),
        settings=digest_scored_settings(config),
    )
    write_cross_validation(config.path("crossval.json"), scores)
    return scores


def bootstrap_intervals(
    statistics: Callable[[npt.NDArray[np.intp]], Sequence[float]], scenes: Sequence[str]
) -> list[Interval | None]:
    """Compute 95 % bootstrap percentile intervals of statistics; whole scenes are resampled.

    Args:
        statistics: computes S statistics of the rows with the given indices, which may repeat.
        scenes: (N,) scene names of the rows.

    Returns:
        S intervals; S times None if there are fewer than two scenes.
    """
    names, scene_indices = np.unique(np.array(list(scenes), dtype=str), return_inverse=True)
    scene_sizes = np.bincount(scene_indices, minlength=len(names))
    rows_by_scene = np.split(np.argsort(scene_indices, kind="stable"), np.cumsum(scene_sizes)[:-1])
    if len(names) < 2:
        return [None] * len(statistics(np.arange(len(scenes))))
    samples = np.random.default_rng(0).integers(len(names), size=(NUM_SAMPLES, len(names)))
    values = [statistics(np.concatenate([rows_by_scene[index] for index in sample])) for sample in samples]
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return [(float(low[i]), float(high[i])) for i in range(len(low))]
