"""Train every member: one Ray Train run each, as many at once as the cluster holds."""

import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import ray
import ray.train
from pyarrow.fs import LocalFileSystem
from ray.train.torch import TorchTrainer

from kp_ray.cluster.errors import describe_ray_error
from kp_ray.cluster.resources import runs_at_once
from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config, MemberConfig, WorkerRange, metric_mode
from kp_ray.errors import DivergedError, KpRayError, RunStateError, StoppedError
from kp_ray.models.presets import build_cfg
from kp_ray.storage import exists, filesystem, join, read_json, write_bytes, writer_lock
from kp_ray.store.manifest import read_manifest, store_digest
from kp_ray.training.checkpoint import SCORE
from kp_ray.training.dataloader import usable_rows
from kp_ray.training.logs import read_latest_entry
from kp_ray.training.loop import train_loop_per_worker


def train(config: Config, progress: Callable[[str, int, int, float], None] | None = None) -> dict[str, Any]:
    """Train every member that is not finished, as many at once as the cluster holds.

    Args:
        config: with a finished store in its run folder; a Ray cluster must be running.
        progress: called with (member, iteration, iterations in all, latest loss).

    Returns:
        Per member: what `fit_member` returns and `seconds`, or `skipped: true`.

    Raises:
        RunStateError: another process trains in this run folder, no training rows, a cluster too small for a member,
            a diverged loss, or workers lost too often. The other members are trained first.
    """
    check_options(config)
    check_settings(config)
    with writer_lock(config.path("members")):
        return _train(config, progress)


def _train(config: Config, progress: Callable[[str, int, int, float], None] | None) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    failed: list[KpRayError] = []
    waiting = []
    for member in config.train.members:
        _check_rows(config, member)
        if exists(join(config.member_dir(member.name), "model_final.pth")):
            summary[member.name] = {"skipped": True}
        else:
            waiting.append(member)
    at_once, use_gpu = runs_at_once(config)
    config.save()
    running: dict[Any, tuple[MemberConfig, float]] = {}
    # Ray Train's `fit` blocks, so each member gets a task that needs no CPU of its own.
    fit = ray.remote(num_cpus=0, max_retries=0)(_fit_member)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                member = waiting.pop(0)
                _note_settings(config, member)
                running[fit.remote(config.to_dict(), member.name, use_gpu)] = (member, time.time())
            done, _ = ray.wait(list(running), timeout=1.0)
            for reference in done:
                member, began = running.pop(reference)
                try:
                    summary[member.name] = {**ray.get(reference), "seconds": round(time.time() - began, 1)}
                except ray.exceptions.RayTaskError as error:
                    if not isinstance(error.cause, KpRayError):
                        raise
                    failed.append(error.cause)  # of this member alone
            if progress:
                for member, _ in running.values():
                    _tell_progress(config, member, progress)
    except ray.exceptions.RayError as error:
        raise RunStateError(f"training stopped: {describe_ray_error(error)}; run train again to go on") from error
    if failed:
        raise RunStateError("; ".join(str(one) for one in failed))
    return {name: summary[name] for name in (member.name for member in config.train.members)}


def check_options(config: Config) -> None:
    """Refuse before anything starts what every worker would refuse.

    Raises:
        RunStateError: a wrong option of Detectron2, or MLflow is not there.
    """
    manifest = read_manifest(config.path("store"))
    build_cfg(config, config.build_skeleton(manifest.skeleton), "cpu")
    if config.train.mlflow and importlib.util.find_spec("mlflow") is None:
        raise RunStateError("train.mlflow: MLflow is not installed: pip install 'kp_ray[mlflow]'")
    if config.train.mlflow == "local" and not isinstance(filesystem(config.run_dir)[0], LocalFileSystem):
        raise RunStateError("train.mlflow: `local` needs a local run_dir: name a tracking server's URI")


def _check_rows(config: Config, member: MemberConfig) -> None:
    usable, needed = len(usable_rows(config, member)), config.train.ims_per_batch * config.train.worker_range[1]
    if usable < needed:
        raise RunStateError(
            f"member {member.name}: {usable} training rows have at least {config.augment.min_visible} visible "
            f"keypoints, a step needs {needed}: add images or recipes, or lower train.ims_per_batch"
        )


NOT_DECIDING = {
    "members", "cpus_per_worker", "threads_per_worker", "use_gpu", "keep_best", "log_period", "max_failures", "mlflow",
}  # fmt: skip
"""Of the training section, what may change when a run goes on."""


def _settings(config: Config, member: MemberConfig) -> dict[str, Any]:
    """What decides a member's weights, as plain values."""
    values = config.to_dict()
    decides = {f"model.{name}": value for name, value in values["model"].items()}
    decides |= {f"train.{name}": value for name, value in values["train"].items() if name not in NOT_DECIDING}
    decides |= {f"member.{name}": value for name, value in member.model_dump(mode="json").items() if name != "name"}
    decides |= {"augment.min_visible": config.augment.min_visible, "skeleton": values["skeleton"]}
    decides["the store"] = store_digest(config.path("store"))
    return dict(json.loads(json.dumps(decides)))


def check_settings(config: Config) -> None:
    """Refuse settings other than those that the members of this run folder began with.

    Raises:
        RunStateError: naming the setting.
    """
    for member in config.train.members:
        if exists(join(config.member_dir(member.name), "settings.json")):
            _check_same_settings(config, member)


def _note_settings(config: Config, member: MemberConfig) -> None:
    path = join(config.member_dir(member.name), "settings.json")
    write_bytes(path, json.dumps(_settings(config, member), indent=1).encode())


def _check_same_settings(config: Config, member: MemberConfig) -> None:
    folder = config.member_dir(member.name)
    path, now = join(folder, "settings.json"), _settings(config, member)
    before = read_json(path, "delete this file and go on with the settings that the member began with")
    for name in now:
        if before.get(name) != now[name]:
            told = "another store" if name == "the store" else f"{name} {before.get(name)!r:.80}, now {now[name]!r:.80}"
            raise RunStateError(
                f"{folder}: was trained with other settings: {told}; give the member a new name, choose a new run_dir, "
                "or delete this folder to train it anew"
            )


def _tell_progress(config: Config, member: MemberConfig, progress: Callable[[str, int, int, float], None]) -> None:
    latest = read_latest_entry(config.member_dir(member.name))
    if latest is not None:
        total = round(config.train.max_iter / latest.values["workers"])
        progress(member.name, latest.iteration + 1, total, latest.values.get("total_loss", float("nan")))


def _fit_member(values: Mapping[str, Any], name: str, use_gpu: bool) -> dict[str, Any]:
    config = build_config(values)
    member = next(one for one in config.train.members if one.name == name)
    return fit_member(config, member, use_gpu=use_gpu, folder=config.member_dir(name))


def fit_member(
    config: Config,
    member: MemberConfig,
    *,
    use_gpu: bool,
    folder: str,
) -> dict[str, Any]:
    """One Ray Train run, from its last checkpoint if it has one, to a finished member in `folder`.

    Returns:
        The last evaluation, `iterations`, `resumed_from` (the iteration of the checkpoint gone on from, 0: none) and
        `not_in_weights` (names of tensors that the starting weights do not have).

    Raises:
        DivergedError: the loss is no longer finite.
        RunStateError: the starting weights or a part of the store cannot be used.
        StoppedError: workers were lost or failed more than `train.max_failures` times.
    """
    # The controller asks for reports every two seconds by default, which would hold back every report.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    train = config.train
    # Ray Data shards and shuffles which rows, not their pictures: a stream of pictures keeps its coordinator busy for
    # as long as training is the slower side (measured: 40 % of a core a run), and cannot be shuffled as a whole.
    rows = usable_rows(config, member)
    # Each worker's shard is a run of these rows for the whole training; in the store they are sorted by recipe.
    mixed = rows.take(np.random.default_rng(member.seed).permutation(len(rows)))
    with ray_data_settings():
        dataset = ray.data.from_arrow(mixed)
    parent, _, name = folder.rstrip("/").rpartition("/")
    resources = {"CPU": train.cpus_per_worker, **({"GPU": 1} if use_gpu else {})}
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"config": config.to_dict(), "member": member.model_dump(mode="json"), "folder": folder},
        datasets={"train": dataset},
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.worker_range if isinstance(train.num_workers, WorkerRange) else train.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=parent,
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            # Ray keeps the latest beside these.
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=train.keep_best,
                checkpoint_score_attribute=SCORE,
                checkpoint_score_order=metric_mode(train.best_metric),
            ),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise StoppedError(
            f"member {member.name}: training stopped: {describe_ray_error(error)}; run the same command to go on"
        ) from error
    outcome = dict(result.return_value or {})
    if "diverged" in outcome:
        raise DivergedError(f"member {member.name}: {outcome['diverged']}")
    if "error" in outcome:
        raise RunStateError(f"member {member.name}: {outcome['error']}")
    return outcome
