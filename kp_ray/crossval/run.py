"""Predict the labelled images of each fold by the members that hold it out.

Each fold is predicted separately, as `kp_ray.prediction.run` describes it: a stopped run resumes, and the fold's parts
under `<run_dir>/predictions/` are merged into `<run_dir>/crossval/fold-<number>.parquet`.
"""

from functools import partial

from kp_ray.config.schema import Config
from kp_ray.crossval.groups import FoldGroup, group_members
from kp_ray.errors import ModelError
from kp_ray.prediction.images import ImageRef, stored_image_ref
from kp_ray.prediction.members import check_training_data
from kp_ray.prediction.run import predict_images
from kp_ray.prediction.task import PredictionTask
from kp_ray.stage import Progress, no_progress
from kp_ray.storage import exists, writer_lock
from kp_ray.store.folds import check_num_folds
from kp_ray.store.manifest import read_manifest
from kp_ray.store.read import list_rows_by_fold


def predict_folds(config: Config, progress: Progress = no_progress) -> int:
    """Predict the labelled images that are not predicted yet, and write a file per fold.

    Args:
        config: its run folder must hold a store with folds, which the caller locks, and the trained members. A Ray
            cluster must be running unless every image is predicted.
        progress: called with "fold <number>", the number of predicted images and the number of images to predict.

    Returns:
        The number of images that this run predicted.

    Raises:
        ModelError: a member is not trained, or no fold with images has a member.
        RunStateError: a member was trained on another store or fold, or another process predicts in this run folder.
        KpRayError: see `kp_ray.prediction.run.predict`.
    """
    tasks = make_tasks(config)
    num_predicted = 0
    with writer_lock(config.path("crossval")):
        config.save()
        for group, task in tasks:
            missing_images = task.find_missing_images()
            predict_images(task, missing_images, partial(_report_fold, progress, group.fold))
            task.merge(group.path)
            num_predicted += len(missing_images)
    return num_predicted


def are_folds_predicted(config: Config) -> bool:
    """Return whether every labelled image that a member holds out is predicted.

    Raises:
        KpRayError: see `predict_folds`.
    """
    return all(exists(group.path) and not task.find_missing_images() for group, task in make_tasks(config))


def make_tasks(config: Config) -> list[tuple[FoldGroup, PredictionTask]]:
    """Return each group whose fold has images, with the task that predicts the fold.

    Raises:
        KpRayError: see `predict_folds`.
    """
    check_num_folds(config, read_manifest(config.path("store")))
    images_by_group = [(group, list_fold_images(config, group.fold)) for group in group_members(config)]
    tasks = [(group, PredictionTask(group.config, images)) for group, images in images_by_group if images]
    if not tasks:
        raise ModelError("predict.members: lists no member of this run that holds out images: list such a member")
    check_training_data(config, [name for group, _ in tasks for name in group.members])
    return tasks


def list_fold_images(config: Config, fold: int) -> list[ImageRef]:
    """List the labelled images of a fold, in the store's order."""
    return [stored_image_ref(source, *reference) for source, reference in list_rows_by_fold(config.path("store"))[fold]]


def _report_fold(progress: Progress, fold: int, name: str, done: int, total: int, note: str = "") -> None:
    progress(f"fold {fold}", done, total, note)
