"""Ensemble inference: Ray Data over an actor pool, the fused submission, and its evaluation.

Every actor holds all members. What they say of a few images is a part file under `<run_dir>/predictions/`, so a stopped
run goes on where it ended. The parts are merged into `predictions.parquet`; fusing and evaluating start from that file,
so they can be repeated without a model.
"""

import hashlib
import itertools
import json
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import yaml
from ray.util.annotations import RayDeprecationWarning

from kp_ray.cluster.errors import describe_ray_error
from kp_ray.cluster.resources import fits_a_node
from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.config.schema import Config
from kp_ray.errors import RunStateError
from kp_ray.keypoints import Skeleton
from kp_ray.prediction.fuse import form_of, given_weights, skeleton_of_run, write_fused
from kp_ray.prediction.images import ImageRef, list_image_refs, list_store
from kp_ray.prediction.parts import lower_threshold, merge_parts, read_parts
from kp_ray.prediction.predictor import Predictor
from kp_ray.storage import exists, join, read_bytes


def predict(config: Config, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Ask every member about every image, fuse, and write `predictions.parquet`, `submission.csv` and `predict.json`.

    Images that a stopped run finished, with the same members and settings, are not asked about again.

    Args:
        config: with finished members in its run folder; a Ray cluster must be running, unless `is_finished`.
        progress: called with (images done, images in all).

    Returns:
        `images`, `members`, `filled`, `unusable`, `submission`, `weights`; `predicted`: the images asked about now,
        `seconds` it took and `start_up_s` before the first of them was begun.

    Raises:
        RunStateError: a member is not trained, there is no image to predict, or nobody was found anywhere.
    """
    task = PredictionTask(config)
    config.save()
    began = time.time()
    first_began, done, missing = time.time(), 0, task.missing()
    for finished in _ask_until_done(task, missing):
        first_began = finished["began"] if done == 0 else min(first_began, finished["began"])
        done = min(done + finished["images"], len(missing))
        if progress:
            progress(done, len(missing))
    figures = {
        "predicted": len(missing),
        "seconds": time.time() - first_began,
        "start_up_s": max(0.0, first_began - began),
    }
    for target, asked in task.targets.items():
        merge_parts(config, task.folder, asked, task.names, task.skeleton, config.path(target))
    return {**write_fused(config, figures), **figures}


def is_finished(config: Config) -> bool:
    """Whether `predict` would ask no member about any image, so that it needs no cluster.

    Raises:
        RunStateError: as `predict`.
    """
    return not PredictionTask(config).missing()


class PredictionTask:
    """What is to be predicted, by whom, and where its parts lie."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.form = form_of(config)
        self.targets = {"predictions.parquet": list_image_refs(config, self.form)}
        self.names = [member.name for member in config.train.members]
        for name in self.names:
            if not exists(join(config.member_dir(name), "model_final.pth")):
                raise RunStateError(f"{config.member_dir(name)}: member {name} is not trained; run train first")
        self.skeleton = skeleton_of_run(config, self.form)
        for name in self.names:
            _check_member(config, name, self.skeleton)
        given_weights(config, self.names, self.skeleton)  # refuses a wrong name now
        if config.predict.weights == "fitted":
            if config.predict.images == "store:val":
                raise RunStateError(
                    "predict.weights: fitted weights are fitted on store:val, so scores there would flatter them: "
                    "predict other images, or give weights"
                )
            self.targets["val_predictions.parquet"] = list_store(config, "val")
        self.folder = config.path("predictions", self._digest())

    def _digest(self) -> str:
        """Of what decides a part besides its images: members, skeleton and settings."""
        section = self.config.predict
        decides: list[Any] = [section.tta, lower_threshold(self.config), self.skeleton.names]
        for name in self.names:
            files = (join(self.config.member_dir(name), file) for file in ("model_final.pth", "config.yaml"))
            decides.append([name, *(hashlib.sha256(read_bytes(file)).hexdigest() for file in files)])
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    def missing(self) -> list[ImageRef]:
        """The images that no part holds; at the end those that could not be used, which are tried again."""
        known: dict[tuple[str, str], bool] = {}
        for table in read_parts(self.folder, ["image", "version", "reason"]):
            for image, version, reason in zip(*(column.to_pylist() for column in table.columns), strict=True):
                known[image, version] = known.get((image, version), False) or not reason
        everything = dict.fromkeys(itertools.chain(*self.targets.values()))
        todo = [asked for asked in everything if not known.get((asked.image, asked.version), False)]
        return sorted(todo, key=lambda asked: (asked.image, asked.version) in known)


def _check_member(config: Config, name: str, skeleton: Skeleton) -> None:
    """Refuse a member of another number of keypoints, and mirrored pictures for one that never saw any."""
    path = join(config.member_dir(name), "config.yaml")
    cfg = yaml.safe_load(read_bytes(path))
    count = cfg.get("MODEL", {}).get("ROI_KEYPOINT_HEAD", {}).get("NUM_KEYPOINTS", len(skeleton))
    if count != len(skeleton):
        raise RunStateError(f"{path}: member {name} predicts {count} keypoints, {len(skeleton)} are asked for")
    if "flip" in config.predict.tta and cfg.get("INPUT", {}).get("RANDOM_FLIP") == "none":
        # On the demo's members it doubled the error: mirrored pictures are strange to them.
        raise RunStateError(
            f"predict.tta: flip: member {name} was trained without flips; take flip out, or train with it"
        )


def _ask_until_done(task: PredictionTask, missing: Sequence[ImageRef]) -> Iterator[dict[str, Any]]:
    """Ask with a new pool for what a lost one left, as long as each finishes something.

    A node that is lost can end a whole Ray Data run: calls to its actors fail several times a second, and their retries
    cannot be without bound, because an image that kills its actor would hang the run.
    """
    section = task.config.predict
    if missing and not fits_a_node(task.config, section.cpus_per_actor, section.gpus_per_actor):
        raise RunStateError(
            f"no node has {section.cpus_per_actor:g} CPUs and {section.gpus_per_actor:g} GPUs for an actor: lower "
            "predict.cpus_per_actor or predict.gpus_per_actor, or set cluster.num_cpus and num_gpus if it grows"
        )
    while missing:
        try:
            yield from _ask_members(task, missing)
            return
        except ray.exceptions.RayError as error:
            left = task.missing()
            if left and ("RunStateError: " in str(error) or len(left) >= len(missing)):
                raise RunStateError(
                    f"{task.folder}: predicting stopped with {len(left)} images left, first {left[0].image}: "
                    f"{describe_ray_error(error)}; what is finished is kept, run predict again to go on"
                ) from error
            missing = left


def _ask_members(task: PredictionTask, missing: Sequence[ImageRef]) -> Iterator[dict[str, Any]]:
    section = task.config.predict
    # Batches are cut from the images' order, so a run that was stopped makes the same ones again.
    batches = [missing[i : i + section.batch_size] for i in range(0, len(missing), section.batch_size)]
    smallest, largest = section.actors
    with ray_data_settings(), warnings.catch_warnings(action="ignore", category=RayDeprecationWarning):
        rows = ray.data.from_items(
            [{"batch": pickle.dumps(batch)} for batch in batches], override_num_blocks=len(batches)
        ).map(
            Predictor,
            fn_constructor_args=(task.config.to_dict(), task.names, task.skeleton.names, task.folder),
            # Few at a time, so that the last batches spread over the pool.
            compute=ray.data.ActorPoolStrategy(
                min_size=min(smallest, len(batches)),
                max_size=min(largest, len(batches)),
                max_tasks_in_flight_per_actor=2,
            ),
            num_cpus=section.cpus_per_actor,
            num_gpus=section.gpus_per_actor or None,
            max_task_retries=3,  # without end by default; Ray 2.60 calls this way to set it deprecated and has no other
        )
    yield from rows.iter_rows()
