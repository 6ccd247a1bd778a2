"""Train the members of the ensemble: one Ray Train run per member, as many at the same time as the cluster holds."""

import contextlib
import gc
import logging
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train.torch import TorchTrainer

from kp_ray.cluster.errors import describe_ray_error, root_cause
from kp_ray.cluster.placement import MODEL_NODE_SELECTOR, fit_task_options
from kp_ray.cluster.resources import training_capacity
from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.config.training import MemberConfig, WorkerRange, metric_mode
from kp_ray.errors import ConfigError, DataError, KpRayError, StoppedError
from kp_ray.models.weights import is_trained
from kp_ray.stage import Progress, no_progress
from kp_ray.storage import writer_lock
from kp_ray.training.checkpoint import SCORE
from kp_ray.training.dataloader import count_rows, usable_rows
from kp_ray.training.logs import LogEntry, read_latest_entry
from kp_ray.training.loop import TrainingResult, train_loop_per_worker
from kp_ray.training.search_result import SearchResult
from kp_ray.training.settings import check_member_settings, check_train_config, record_settings
from kp_ray.training.tuned import apply_search

PROGRESS_PERIOD_S = 1.0
"""Seconds between reads of the members' logs."""
MAX_DATA_SHARE = 0.2
"""Share of an iteration's time above which waiting for images is reported."""


@dataclass(frozen=True)
class MemberSummary:
    """Result of `train` for one member.

    Attributes:
        name: the member's name.
        folder: the member's folder.
        result: the training run's result; None if the member was finished before.
        seconds: duration of the training run, including its start-up; None if the member was finished before.
        unused_variants: description of the stored variants that the member did not train on; "" for none.
        fold: number of the fold that the member holds out; None without `split.folds`.
    """

    name: str
    folder: str
    result: TrainingResult | None = None
    seconds: float | None = None
    unused_variants: str = ""
    fold: int | None = None

    def line(self) -> str:
        """Describe the member on one line."""
        fold = "" if self.fold is None else f" without fold {self.fold}"
        if self.result is None:
            return f"member {self.name}{fold}: finished before, in {self.folder}"
        result, rmse = self.result, self.result.metrics.get("rmse")
        text = f"{result.iterations} iterations"
        text += f" (from the checkpoint at {result.resumed_from})" if result.resumed_from else ""
        text += f", {len(result.weights.random_tensors)} tensors from scratch" if result.weights.random_tensors else ""
        text += f", keypoint head: {result.weights.head}" if result.weights.head else ""
        if rmse is not None:
            text += f", validation RMSE {rmse:.2f} px, PCK@0.05 {result.metrics['pck_0.05']:.3f}"
        text += f", {self.unused_variants}" if self.unused_variants else ""
        return f"member {self.name}{fold}: {text}, in {self.folder}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        fold = {} if self.fold is None else {"fold": self.fold}
        if self.result is None:
            return {"skipped": True, **fold}
        return {**self.result.to_json(), "seconds": self.seconds, **fold}


@dataclass(frozen=True)
class TrainSummary:
    """Result of `train`.

    Attributes:
        members: results per member, in the config's order.
        search: the search whose settings were used; None for the config's own settings.
    """

    members: tuple[MemberSummary, ...]
    search: SearchResult | None = None

    def lines(self) -> list[str]:
        """Return lines of text for the terminal."""
        return [member.line() for member in self.members]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`, by member name."""
        return {member.name: member.to_json() for member in self.members}


def train(config: Config, progress: Progress = no_progress) -> TrainSummary:
    """Train every member that is not finished, as many at the same time as the cluster holds.

    The settings that a finished search found replace the config's own, see `apply_search`.

    Args:
        config: its run folder holds a finished store. A Ray cluster must be running unless every member is finished.
        progress: receives the iterations of each member, with its latest loss as the note.

    Raises:
        RunStateError: see `apply_search`; or a member began with other settings, or another process trains in this run
            folder.
        StoreError: there is no finished store, or it lacks a recipe on which a member trains.
        DataError: a member has too few training rows.
        ClusterError: the cluster is too small for a member.
        ConfigError: see `check_train_config` and `check_train_precision`.
        KpRayError: a member failed, see `fit_member`; raised only when the other members have ended.
    """
    own_config = config
    config, search = apply_search(own_config)
    check_train_config(config)
    check_member_settings(config, from_search=search is not None)
    with writer_lock(config.path("members")):
        pending = [member for member in config.train.members if not is_trained(config.member_dir(member.name))]
        unused_variants = {
            member.name: describe_unused_variants(config, member, check_rows(config, member)) for member in pending
        }
        max_running, use_gpu = training_capacity(config) if pending else (0, False)
        check_train_precision(config, use_gpu)
        own_config.save()
        trained: dict[str, MemberSummary] = {}
        if pending:  # if every member is finished, there may be no cluster
            trained = _fit_members(config, search, pending, progress, max_running=max_running, use_gpu=use_gpu)
    summaries = []
    for member in config.train.members:
        finished_before = MemberSummary(member.name, config.member_dir(member.name))
        summary = trained.get(member.name, finished_before)
        fold = config.held_out_fold(member.name)
        summaries.append(replace(summary, unused_variants=unused_variants.get(member.name, ""), fold=fold))
    return TrainSummary(tuple(summaries), search)


def describe_unused_variants(config: Config, member: MemberConfig, num_usable: int) -> str:
    """Describe how many stored variants a member does not train on, and why; "" for none."""
    num_rows, min_visible = count_rows(config, member), max(1, config.augment.min_visible)
    if num_usable == num_rows:
        return ""
    return (
        f"{num_rows - num_usable} of {num_rows} variants left out (fewer visible keypoints than "
        f"augment.min_visible={min_visible}, or a box without an area)"
    )


def check_rows(config: Config, member: MemberConfig) -> int:
    """Count the rows on which a member can train, and refuse a member with fewer rows than one iteration needs.

    Raises:
        DataError: there are too few rows; the message names the settings that decide.
        StoreError: there is no finished store, or it does not hold a recipe of the member.
    """
    num_usable, min_visible = len(usable_rows(config, member)), config.augment.min_visible
    num_needed = config.train.ims_per_batch * config.train.max_workers  # ims_per_batch counts one worker's images
    if num_usable < num_needed:
        or_workers = " or train.num_workers" if config.train.max_workers > 1 else ""
        lower_min_visible = "lower augment.min_visible, " if min_visible > 1 else ""
        raise DataError(
            f"member {member.name}: {num_usable} training rows have at least {max(1, min_visible)} visible keypoints, "
            f"but an iteration needs {num_needed}: {lower_min_visible}add images or recipes, or lower "
            f"train.ims_per_batch{or_workers}"
        )
    return num_usable


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


class InputMonitor:
    """Warns once about each member whose iterations wait long for images."""

    def __init__(self, config: Config) -> None:
        self.section = config.train
        self.slow_since: dict[str, int] = {}
        self.warned: set[str] = set()

    def check(self, name: str, entry: LogEntry) -> None:
        """Warn if two successive log entries report a long wait: the first batches of a run always take long.

        Args:
            name: name of the member.
            entry: the latest entry of the member's log.
        """
        share = entry.values.get("data_time", 0.0) / entry.values.get("time", math.inf)
        if share <= MAX_DATA_SHARE:
            self.slow_since.pop(name, None)
        elif self.slow_since.setdefault(name, entry.iteration) < entry.iteration and name not in self.warned:
            self.warned.add(name)
            logging.getLogger(__name__).warning(
                f"member {name}: iterations wait {share:.0%} of their time for images: raise train.cpus_per_worker "
                f"(got {self.section.cpus_per_worker:g}), or train.threads_per_feed if CPUs are idle (got "
                f"{self.section.num_feed_threads})"
            )


def _fit_members(
    config: Config,
    search: SearchResult | None,
    members: Sequence[MemberConfig],
    progress: Progress,
    *,
    max_running: int,
    use_gpu: bool,
) -> dict[str, MemberSummary]:
    """Train members, at most `max_running` at the same time, and return their summaries by name.

    Raises:
        KpRayError: a member failed; raised when the other members have ended.
    """
    # Ray Train's `fit` blocks, so each member gets a task.
    fit = ray.remote(**fit_task_options())(_fit_member_task)
    waiting, running = list(members), dict[Any, tuple[MemberConfig, float]]()
    summaries: dict[str, MemberSummary] = {}
    errors: list[KpRayError] = []
    monitor = InputMonitor(config)
    try:
        while waiting or running:
            while waiting and len(running) < max_running:
                member = waiting.pop(0)
                record_settings(config, member, asdict(search) if search else None)
                running[fit.remote(config.to_dict(), member.name, use_gpu)] = member, time.time()
            done_references, _ = ray.wait(list(running), timeout=PROGRESS_PERIOD_S)
            for reference in done_references:
                member, start_s = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    if not isinstance(error.cause, KpRayError):
                        raise
                    errors.append(error.cause)
                else:
                    seconds = round(time.time() - start_s, 1)
                    summaries[member.name] = MemberSummary(member.name, config.member_dir(member.name), result, seconds)
            for member, _ in running.values():
                _report_progress(config, member, progress, monitor)
    except ray.exceptions.RayError as error:
        raise StoppedError(f"training stopped: {describe_ray_error(error)}: run the same command to resume") from error
    finally:
        for reference in running:  # after Ctrl-C or an error: the cluster can outlive this process
            ray.cancel(reference)
    if errors:
        raise type(errors[0])("; ".join(str(error) for error in errors)) from errors[0]
    return summaries


def _report_progress(config: Config, member: MemberConfig, progress: Progress, monitor: InputMonitor) -> None:
    latest = read_latest_entry(config.member_dir(member.name))
    if latest is not None:
        monitor.check(member.name, latest)
        # max_iter counts the iterations of a single worker; N workers need max_iter / N iterations.
        total = round(config.train.max_iter / latest.values.get("workers", 1))
        loss = latest.values.get("total_loss", math.nan)
        progress(member.name, latest.iteration + 1, total, f"loss {loss:.2f}")


def _fit_member_task(values: Mapping[str, Any], name: str, use_gpu: bool) -> TrainingResult:
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
        DivergedError: a loss or the weights are no longer finite.
        ModelError: the starting weights cannot be used.
        StorageError: a part of the store is missing or damaged.
        StoppedError: workers were lost or failed more than `train.max_failures` times.
    """
    check_train_precision(config, use_gpu)
    # By default Ray Train's controller polls for reports every two seconds, and a reporting worker waits for the poll.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    trainer = _create_trainer(config, member, use_gpu=use_gpu, folder=folder, callbacks=callbacks)
    try:
        with release_controller():
            outcome = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        cause = root_cause(error)
        if isinstance(cause, KpRayError):
            raise type(cause)(f"member {member.name}: {cause}") from error
        raise StoppedError(
            f"member {member.name}: training stopped: {describe_ray_error(error)}: run the same command to resume"
        ) from error
    if isinstance(outcome, KpRayError):  # an error that a restart would repeat
        raise type(outcome)(f"member {member.name}: {outcome}") from outcome
    if not isinstance(outcome, TrainingResult):
        raise TypeError(f"member {member.name}: Ray Train returned {outcome!r}")
    return outcome


@contextlib.contextmanager
def release_controller() -> Iterator[None]:
    """Release Ray Train's controller when a run ends or fails, so that its actors and placement groups end too.

    The controller lives as long as this process keeps its handle, and this Ray worker may live for days. `fit` leaves
    the handle in the SIGINT handler that it installs (Ray 2.60), and an error keeps the handle in its traceback.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
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
        train_loop_per_worker,
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
