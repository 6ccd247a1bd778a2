"""Score the run's predictions, or a submission, against the ground truth."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.annotations import reorder_keypoints
from kp_ray.data.load import load_truth
from kp_ray.data.submission import SampleSubmission, check_same_keypoints, read_sample_submission, read_submission
from kp_ray.errors import DataError, KpRayError, RunStateError
from kp_ray.images import probe
from kp_ray.keypoints import BoolArray, FloatArray, Skeleton
from kp_ray.metrics import evaluate_keypoints
from kp_ray.prediction.fuse import fuse_predictions, list_filled, read_run_predictions
from kp_ray.prediction.images import STORE_PREFIX, digest_images, list_image_refs
from kp_ray.prediction.inputs import read_run_sample, resolve_skeleton, resolve_weights
from kp_ray.prediction.members import check_validation_images
from kp_ray.prediction.predictions import Predictions
from kp_ray.prediction.records import (
    FusionEvaluation,
    ImageRmse,
    RunEvaluation,
    SubmissionEvaluation,
    digest_evaluation_inputs,
    digest_truth,
    write_evaluation,
)
from kp_ray.storage import join, read_bytes
from kp_ray.store.layout import has_store
from kp_ray.store.read import read_table

NUM_WORST = 12
"""Maximum number of images in `SubmissionEvaluation.worst`."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The ground truth by image name.

    Attributes:
        keypoints: (K, 3) x, y, v in pixel indices; x and y are NaN where unlabelled.
        scenes, cameras: scene and camera of each image.
        origin: where the ground truth comes from, `data.truth` or e.g. `store:val`; begins the messages.
    """

    keypoints: dict[str, FloatArray]
    scenes: dict[str, str]
    cameras: dict[str, str]
    origin: str


def evaluate_run(config: Config) -> RunEvaluation:
    """Score the ensemble and each member alone, and write `evaluation.json`.

    The ground truth comes from `data.truth`, or from the store if `predict.images` names a split of the store.

    Raises:
        ConfigError: `data.truth` is needed and is not set.
        StorageError: `predictions.parquet` does not exist, or is damaged.
        DataError: the ground truth is invalid, or holds none of the predicted images.
        RunStateError: see `check_validation_images` and `read_run_predictions`; or the predictions are of other images.
    """
    check_validation_images(config)
    truth_digest = digest_truth(config)
    truth, skeleton = read_truth(config)
    predictions = read_run_predictions(config, skeleton)
    _refuse_other_images(config, predictions)
    weights = resolve_weights(config, predictions.members, skeleton)
    num_members = len(predictions.members)
    ensemble = _evaluate_members(config, predictions, range(num_members), weights, truth, skeleton)
    # A member with weight 0 in `predict.weights` has a score of its own too, so members are scored without these
    # weights. A run's only member is the ensemble and must have the ensemble's score.
    member_weights = weights if num_members == 1 else None
    members = {
        name: _evaluate_members(config, predictions, [i], member_weights, truth, skeleton)
        for i, name in enumerate(predictions.members)
    }
    inputs = digest_evaluation_inputs(config, predictions.images)
    evaluation = RunEvaluation(**dict(ensemble), members=members, inputs=inputs, truth=truth_digest)
    write_evaluation(config.path("evaluation.json"), evaluation)
    return evaluation


def _refuse_other_images(config: Config, predictions: Predictions) -> None:
    """Refuse predictions of other images than those that the config names, which may have the same names.

    The scores need no image, so images that cannot be listed are not compared.

    Raises:
        RunStateError: an image has another name, or its file is missing or has another size.
    """
    try:
        current_digest = digest_images(list_image_refs(config, read_run_sample(config)))
    except KpRayError:
        return
    if predictions.images_digest not in ("", current_digest):
        path = config.path("predictions.parquet")
        raise RunStateError(f"{path}: is of images of other names or sizes than the config's: run predict again")


def evaluate_submission(config: Config, path: str) -> SubmissionEvaluation:
    """Score a submission CSV; write nothing.

    Args:
        config: gives the images that the submission must hold, and the ground truth.
        path: local or remote path of the CSV file.

    Raises:
        ConfigError: `data.truth` is needed and is not set.
        DataError: the submission or the ground truth is invalid, or they have no image in common.
    """
    truth, skeleton = read_truth(config)
    sample = _expected_rows(config, path, truth, skeleton)
    allow_zeros = config.predict.missing == "zeros"
    sizes = _read_sizes(config, sample.images)
    xy = read_submission(path, sample, skeleton, size=sizes, allow_zeros=allow_zeros)
    keypoints = np.concatenate([xy, np.ones((*xy.shape[:2], 1))], axis=2)
    found = np.asarray(xy.any(axis=(1, 2)))  # a row of zeros means that nobody was found
    return _evaluate(sample.images, keypoints, truth, skeleton, found, found.astype(float))


def _expected_rows(config: Config, path: str, truth: Truth, skeleton: Skeleton) -> SampleSubmission:
    """Return the images and columns that a submission must have.

    Raises:
        DataError: no sample submission gives the images, and the submission has other keypoints than the labels, or
            lacks images of the ground truth.
    """
    sample = read_run_sample(config)
    if sample is not None and config.predict.images is None:
        return sample
    submission = read_sample_submission(path)
    check_same_keypoints(submission, skeleton, path)
    if config.predict.images is not None:  # lists the expected images; the sample submission can list others
        return SampleSubmission(tuple(ref.image for ref in list_image_refs(config, None)), submission.columns)
    missing_images = sorted(set(truth.keypoints) - set(submission.images))
    if missing_images:
        raise DataError(
            f"{path}: {len(missing_images)} images of data.truth are missing (first {missing_images[0]}): add "
            "their rows"
        )
    return submission


def read_truth(config: Config) -> tuple[Truth, Skeleton]:
    """Read the ground truth, with the keypoints in the order of the run's skeleton.

    Raises:
        ConfigError: `data.truth` is not set, and `predict.images` does not name a split of the store.
        DataError: the labels are invalid, or their keypoints are not those of the skeleton.
        StoreError: the store does not exist, or is damaged.
    """
    images = config.predict.images or ""
    if images.startswith(STORE_PREFIX):
        skeleton = resolve_skeleton(config, None)
        return _read_store_truth(config, images.removeprefix(STORE_PREFIX), skeleton), skeleton
    sample, labels = read_run_sample(config), load_truth(config)
    if sample is not None or has_store(config.path("store")):
        labels = reorder_keypoints(labels, resolve_skeleton(config, sample), config.require_input("truth"))
    scenes, cameras = (dict(zip(labels.images, names, strict=True)) for names in (labels.scenes, labels.cameras))
    return Truth(
        dict(zip(labels.images, labels.keypoints, strict=True)), scenes, cameras, "data.truth"
    ), labels.skeleton


def _read_store_truth(config: Config, split: str, skeleton: Skeleton) -> Truth:
    columns = ["source", "keypoints", "scene", "camera"]
    recipes = None if split == "val" else ["Original"]  # the validation split holds unaugmented images only
    table = read_table(config.path("store"), split=split, recipes=recipes, columns=columns)
    points = np.array(table["keypoints"].to_pylist(), dtype=np.float64).reshape(len(table), len(skeleton), 3)
    images = table["source"].to_pylist()
    scenes, cameras = (dict(zip(images, table[name].to_pylist(), strict=True)) for name in ("scene", "camera"))
    return Truth(dict(zip(images, points, strict=True)), scenes, cameras, f"{STORE_PREFIX}{split}")


def _read_sizes(config: Config, images: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Read the images' sizes (width, height) in pixels; (0, 0) for an image that cannot be opened.

    The result is empty without `data.test_images`, and with `predict.images`, which can name other images.
    """
    folder = config.data.test_images
    if folder is None or config.predict.images is not None:
        return {}

    def read_size(image: str) -> tuple[int, int]:
        try:
            info = probe(read_bytes(join(folder, image)))
        except KpRayError:
            return 0, 0
        return info.width, info.height

    with ThreadPoolExecutor() as pool:
        return dict(zip(images, pool.map(read_size, images), strict=True))


def _evaluate_members(
    config: Config,
    predictions: Predictions,
    members: Sequence[int],
    weights: FloatArray | None,
    truth: Truth,
    skeleton: Skeleton,
) -> FusionEvaluation:
    fusion = fuse_predictions(config, predictions, members, weights)
    scores = predictions.scores[list(members)].max(axis=0)
    evaluation = _evaluate(predictions.images, fusion.keypoints, truth, skeleton, fusion.has_high_score, scores)
    return FusionEvaluation(**dict(evaluation), filled=list_filled(predictions, fusion))


def _evaluate(
    images: Sequence[str],
    keypoints: FloatArray,
    truth: Truth,
    skeleton: Skeleton,
    found: BoolArray,
    scores: FloatArray,
) -> SubmissionEvaluation:
    """Score the images that have a ground truth.

    Args:
        images: N names.
        keypoints: (N, K, 3) x, y, score in pixel indices.
        truth: ground truth of some of the images; it may hold other images too.
        skeleton: K keypoints.
        found: (N,) whether a person was found in the image.
        scores: (N,) scores of the detections, as in `evaluate_keypoints`.

    Raises:
        DataError: no image has a ground truth.
    """
    rows = [i for i, image in enumerate(images) if image in truth.keypoints]
    if not rows:
        fix = "give the labels of these images, or run predict again if predict.images has changed"
        raise DataError(f"{truth.origin}: holds none of the predicted images: {fix}")
    labels = np.stack([truth.keypoints[images[i]] for i in rows])
    evaluation = evaluate_keypoints(
        keypoints[rows],
        labels,
        skeleton,
        found=found[rows],
        scores=scores[rows],
        cameras=[truth.cameras[images[i]] for i in rows],
        scenes=[truth.scenes[images[i]] for i in rows],
    )
    worst = _find_worst([images[i] for i in rows], keypoints[rows], labels)
    return SubmissionEvaluation(**dict(evaluation), worst=worst)


def _find_worst(images: Sequence[str], keypoints: FloatArray, labels: FloatArray) -> tuple[ImageRmse, ...]:
    """Find the images with the largest RMSE over their labelled points, largest first.

    Args:
        images: N names.
        keypoints: (N, K, 3) predicted x, y, score.
        labels: (N, K, 3) x, y, v.
    """
    squares = (keypoints[:, :, :2] - labels[:, :, :2]) ** 2
    is_labelled = np.isfinite(squares)
    rmse = np.sqrt(np.where(is_labelled, squares, 0).sum(axis=(1, 2)) / np.maximum(is_labelled.sum(axis=(1, 2)), 1))
    rows = [i for i in np.argsort(-rmse, kind="stable").tolist() if is_labelled[i].any()][:NUM_WORST]
    return tuple(ImageRmse(image=images[i], rmse=float(rmse[i])) for i in rows)
