"""Train one member with Ray Train.

This module does not import Detectron2, because the import takes seconds of CPU time and two processes do not need it:
Ray Train's controller and the task that calls `fit_member`.
"""

import contextlib
import gc
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train.torch import TorchTrainer

from kp_ray.cluster.errors import describe_ray_error, root_cause
from kp_ray.cluster.placement import MODEL_NODE_SELECTOR
from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.config.training import MemberConfig, WorkerRange, metric_mode
from kp_ray.errors import ConfigError, KpRayError, StoppedError, StorageError
from kp_ray.storage import join
from kp_ray.training.result import SCORE, TrainingResult
from kp_ray.training.rows import usable_rows


def check_train_precision(config: Config, use_gpu: bool) -> None:
    """Refuse fp16 for workers that compute on CPUs.

    Raises:
        ConfigError: as described.
    """
    if config.train.precision == "fp16" and not use_gpu:
        raise ConfigError(
            "train.precision: fp16 needs GPUs (got fp16, and workers without a GPU): set it to auto, fp32 or bf16, or "
            "run on nodes with GPUs"
        )


def fit_member_task(values: Mapping[str, Any], name: str, use_gpu: bool) -> TrainingResult:
    """Train a member, see `fit_member`: the body of a Ray task.

    Args:
        values: the config as plain values.
        name: the member's name.
        use_gpu: True gives each worker a GPU.
    """
    config = build_config(values)
    member = next(member for member in config.train.members if member.name == name)
    return fit_member(config, member, use_gpu=use_gpu, folder=config.member_dir(name))


def fit_member(
    config: Config,
    member: MemberConfig,
    *,
    use_gpu: bool,
    folder: str,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> TrainingResult:
    """Train a member with Ray Train, from its last checkpoint if it has one.

    Args:
        config: its run folder holds a finished store; a Ray cluster must be running.
        member: the member to train.
        use_gpu: True gives each worker a GPU.
        folder: local path or URL of a folder for the checkpoints, the log and the finished member.
        callbacks: called by Ray Train's controller when the workers report.

    Raises:
        ConfigError: see `check_train_precision`.
        DivergedError: a loss, the weights or heat maps are no longer finite.
        ModelError: the starting weights cannot be used.
        StorageError: a part of the store, or Ray's record of the checkpoints, is missing or damaged.
        StoppedError: workers were lost or failed more than `train.max_failures` times.
    """
    check_train_precision(config, use_gpu)
    # Poll for reports every half second: a reporting worker waits for the poll, by default for up to two seconds.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    trainer = _create_trainer(config, member, use_gpu=use_gpu, folder=folder, callbacks=callbacks)
    try:
        with release_controller():
            outcome = trainer.fit().return_value
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
        cause = root_cause(error)
        if type(cause).__name__ == "CheckpointManagerInitializationError":  # Ray does not export this class
            raise StorageError(
                f"member {member.name}: {join(folder, 'checkpoint_manager_snapshot.json')}: damaged, or a checkpoint "
                f"that it lists is missing: restore it, or delete {folder} to train again"
            ) from error
        if isinstance(cause, KpRayError):
            raise type(cause)(f"member {member.name}: {cause}") from error
        raise stopped_error(error, member.name) from error
    if isinstance(outcome, KpRayError):  # an error that a restart would repeat
        raise type(outcome)(f"member {member.name}: {outcome}") from outcome
    if not isinstance(outcome, TrainingResult):
        raise TypeError(f"member {member.name}: Ray Train returned {outcome!r}")
    return outcome


def stopped_error(error: BaseException, member: str | None = None) -> StoppedError:
    """Return the error of training that Ray stopped; it names the member, if one is given, and has `error` as cause."""
    prefix = f"member {member}: " if member else ""
    stopped = StoppedError(f"{prefix}training stopped: {describe_ray_error(error)}: run the same command to resume")
    stopped.__cause__ = error
    return stopped


@contextlib.contextmanager
def release_controller() -> Iterator[None]:
    """Release Ray Train's controller when a run ends or fails, so that its actors and placement groups end too.

    The controller lives as long as this process keeps its handle, and this process, a Ray worker, may live for days.
    After `fit` (Ray 2.60), the SIGINT handler that `fit` installed and an error's traceback still hold the handle.
    """
    previous_handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        if previous_handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, previous_handler)
        gc.collect()


def _create_trainer(
    config: Config, member: MemberConfig, *, use_gpu: bool, folder: str, callbacks: Sequence[ray.train.UserCallback]
) -> TorchTrainer:
    section = config.train
    # Ray Data gets references to rows, not images. A stream of images cannot be shuffled as a whole, and it would keep
    # Ray Data's coordinator busy even when training is the bottleneck (measured: 40 % of a core per run).
    rows = usable_rows(config, member)
    # The store sorts its rows by recipe, and Ray Train gives each worker a fixed range of them: shuffle the rows first.
    shuffled = rows.take(np.random.default_rng(member.seed).permutation(len(rows)))
    with ray_data_settings():
        dataset = ray.data.from_arrow(shuffled)
    storage_path, _, name = folder.rstrip("/").rpartition("/")
    is_elastic = isinstance(section.num_workers, WorkerRange)
    return TorchTrainer(
        _train_loop_per_worker,
        train_loop_config={"config": config.to_dict(), "member": member.model_dump(mode="json"), "folder": folder},
        datasets={"train": dataset},
        scaling_config=ray.train.ScalingConfig(
            num_workers=(section.min_workers, section.max_workers) if is_elastic else section.max_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": section.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
            label_selector=MODEL_NODE_SELECTOR,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage_path,
            callbacks=list(callbacks),
            failure_config=ray.train.FailureConfig(max_failures=section.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=section.keep_best,  # Ray Train keeps the latest checkpoint beside these
                checkpoint_score_attribute=SCORE,
                checkpoint_score_order=metric_mode(section.best_metric),
            ),
        ),
    )


def _train_loop_per_worker(loop_config: Mapping[str, Any]) -> TrainingResult | KpRayError:
    """Call the training loop; only a worker imports it."""
    from kp_ray.training.loop import train_loop_per_worker

    return train_loop_per_worker(loop_config)
