"""Read the files that the stages leave in a run folder, each with the reader of the package that writes it."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from kp_ray.config.schema import Config
from kp_ray.data.annotations import Annotations, parse_name, reorder_keypoints
from kp_ray.data.load import load_truth
from kp_ray.data.submission import check_same_keypoints, read_sample_submission, read_submission
from kp_ray.keypoints import Skeleton
from kp_ray.prediction.images import is_store_split
from kp_ray.prediction.predictions import Predictions, read_predictions
from kp_ray.prediction.records import (
    CrossValidation,
    PredictionDetails,
    RunEvaluation,
    read_cross_validation,
    read_details,
    read_evaluation,
)
from kp_ray.reporting.samples import VariantSample, read_samples
from kp_ray.storage import exists, list_folders, read_parquet
from kp_ray.store.augment_record import AugmentRecord, read_augment_record
from kp_ray.store.layout import has_store
from kp_ray.store.manifest import Manifest, read_manifest
from kp_ray.suspects.files import SUSPECTS_FILE, SuspectRow, read_suspects
from kp_ray.training.logs import LogEntry, read_training_log
from kp_ray.training.search_result import SearchResult, is_search_finished, read_member_search, read_result


@dataclass(frozen=True, eq=False)
class RunFiles:
    """The content of a run folder's files; None or empty where a file is missing.

    Attributes:
        manifest: the store's manifest.
        store_skeleton: the skeleton of the store's keypoints.
        samples: recipe -> sample of its variants in the store.
        augment_record: augment.json: counts and times of the last `augment` that wrote parts.
        logs: member -> training log; the config's members come first.
        trials: tune/trials.parquet with the columns of tune/trials.csv, one row per trial.
        search: tune/result.json: the result of a finished search.
        search_by_member: member -> the search result that it was trained with; only members that used a search.
        predictions: predictions.parquet: every member's prediction for every test image.
        submission: submission.csv as labels; its image names may be absolute paths. None without predict.json, because
            the submission may then be of earlier members.
        truth: labels of the test images, with the keypoints in the order of the predictions.
        details: predict.json.
        evaluation: evaluation.json; None if it is of other images, settings or another ground truth.
        crossval: crossval.json.
        suspects: suspects.csv.
    """

    manifest: Manifest | None
    store_skeleton: Skeleton | None
    samples: dict[str, VariantSample]
    augment_record: AugmentRecord | None
    logs: dict[str, list[LogEntry]]
    trials: pa.Table | None
    search: SearchResult | None
    search_by_member: dict[str, SearchResult]
    predictions: Predictions | None
    submission: Annotations | None
    truth: Annotations | None
    details: PredictionDetails | None
    evaluation: RunEvaluation | None
    crossval: CrossValidation | None = None
    suspects: tuple[SuspectRow, ...] = ()


def read_run_files(config: Config) -> RunFiles:
    """Read the files of a run folder.

    Raises:
        KpRayError: a file is damaged. Damaged parts of the store and damaged lines of a training log are skipped.
    """
    store, suspects_path = config.path("store"), config.path(SUSPECTS_FILE)
    manifest = read_manifest(store) if has_store(store) else None
    store_skeleton = config.build_skeleton(manifest.skeleton) if manifest else None
    predictions_path, details_path = config.path("predictions.parquet"), config.path("predict.json")
    predictions = read_predictions(predictions_path) if exists(predictions_path) else None
    details = read_details(details_path) if exists(details_path) else None
    skeleton = config.build_skeleton(predictions.keypoint_names) if predictions else None
    return RunFiles(
        manifest=manifest,
        store_skeleton=store_skeleton,
        samples=read_samples(store, manifest, store_skeleton) if manifest and store_skeleton else {},
        augment_record=read_augment_record(config),
        logs=_read_logs(config),
        trials=_read_trials(config),
        search=read_result(config) if is_search_finished(config) else None,
        search_by_member=_read_search_by_member(config),
        predictions=predictions,
        submission=_read_submission(config, skeleton) if details else None,
        truth=read_truth(config, skeleton),
        details=details,
        evaluation=_read_current_evaluation(config, predictions),
        crossval=read_cross_validation(config),
        suspects=tuple(read_suspects(suspects_path)) if exists(suspects_path) else (),
    )


def read_truth(config: Config, skeleton: Skeleton | None) -> Annotations | None:
    """Read the ground truth `data.truth`; None if it is not set, the file does not exist, or it is not of the images.

    It is not of the images if `predict.images` is a split of the store, whose labels are the truth there.

    Args:
        config: names the file.
        skeleton: keypoints to return, in order; None: the file's keypoints in the file's order.

    Raises:
        DataError: the file does not hold valid labels, or its keypoints are not those of the skeleton.
    """
    path = config.data.truth
    if path is None or is_store_split(config) or not exists(path):
        return None
    labels = load_truth(config)
    return labels if skeleton is None else reorder_keypoints(labels, skeleton, path)


def _read_current_evaluation(config: Config, predictions: Predictions | None) -> RunEvaluation | None:
    path = config.path("evaluation.json")
    evaluation = read_evaluation(path) if exists(path) else None
    if evaluation and evaluation.inputs and predictions:  # versions before 0.2.0 did not record the inputs
        return evaluation if evaluation.is_current(config, predictions.images) else None
    return evaluation


def _read_logs(config: Config) -> dict[str, list[LogEntry]]:
    members = [member.name for member in config.train.members]
    folders = sorted(list_folders(config.path("members")), key=lambda name: (name not in members, name))
    logs = {name: read_training_log(config.member_dir(name)) for name in folders}
    return {name: log for name, log in logs.items() if log}


def _read_search_by_member(config: Config) -> dict[str, SearchResult]:
    searches = {name: read_member_search(config.member_dir(name)) for name in list_folders(config.path("members"))}
    return {name: search for name, search in searches.items() if search is not None}


def _read_trials(config: Config) -> pa.Table | None:
    path = config.path("tune", "trials.parquet")
    if not exists(path):
        return None
    return read_parquet(path, "run tune again").drop_columns(["began", "params", "evaluations"])


def _read_submission(config: Config, skeleton: Skeleton | None) -> Annotations | None:
    path = config.path("submission.csv")
    if not exists(path):
        return None
    labels = read_submission_labels(path, skeleton or config.build_skeleton(read_sample_submission(path).names))
    labels.keypoints[~labels.keypoints[..., :2].any(axis=(1, 2))] = np.nan, np.nan, 0  # zeros mean nobody
    return labels


def read_submission_labels(path: str, skeleton: Skeleton) -> Annotations:
    """Read a submission as labels, with the keypoints in the order of the skeleton; rows of zeros are kept.

    Raises:
        DataError: the file is not a valid submission, or its keypoints are not those of the skeleton.
        StorageError: the file cannot be read.
    """
    # The submission serves as its own sample submission, which names the images and keypoints in their order.
    sample = read_sample_submission(path)
    check_same_keypoints(sample, skeleton, path)
    xy = read_submission(path, sample, skeleton, size=None, allow_zeros=True)
    scenes, cameras, frames = zip(*map(parse_name, sample.images), strict=True)
    return Annotations(skeleton, sample.images, np.dstack([xy, np.full(xy.shape[:2], 2.0)]), scenes, cameras, frames)
