"""Train the members of the ensemble: one Ray Train run per member, as many at the same time as the cluster holds."""

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray

from kp_ray.cluster.placement import fit_task_options
from kp_ray.cluster.resources import training_capacity
from kp_ray.config.schema import Config
from kp_ray.config.training import MemberConfig
from kp_ray.errors import DataError, KpRayError, StorageError
from kp_ray.member_files import is_trained
from kp_ray.stage import Progress, no_progress
from kp_ray.storage import delete_file, exists, reader_lock, writer_lock
from kp_ray.training.fit import check_train_precision, fit_member_task, stopped_error
from kp_ray.training.logs import LogEntry, read_latest_entry
from kp_ray.training.result import TrainingResult
from kp_ray.training.rows import count_rows, usable_rows
from kp_ray.training.search_result import SearchResult
from kp_ray.training.settings import check_member_settings, check_train_config, record_settings
from kp_ray.training.tuned import apply_search

PROGRESS_PERIOD_S = 1.0
"""Seconds between reads of the members' logs."""
MAX_WAIT_SHARE = 0.2
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
        text += f", {len(result.random_tensors)} tensors from scratch" if result.random_tensors else ""
        text += f", keypoint head: {result.keypoint_head}" if result.keypoint_head else ""
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
            folder or writes its store.
        StoreError: there is no finished store, or it lacks a recipe on which a member trains.
        DataError: a member has too few training rows.
        ClusterError: the cluster is too small for a member.
        ConfigError: see `check_train_config` and `check_train_precision`.
        KpRayError: a member failed, see `fit_member`; raised only when the other members have ended.
    """
    own_config = config
    with reader_lock(own_config.path("store")):
        config, search = apply_search(own_config)
        check_train_config(config)
        check_member_settings(config, from_search=search is not None)
        with writer_lock(config.path("members")):
            pending = [member for member in config.train.members if not is_trained(config.member_dir(member.name))]
            unused_variants = {
                member.name: describe_unused_variants(config, member, check_rows(config, member)) for member in pending
            }
            max_running, use_gpu = training_capacity(config) if pending else (0, False)
            if pending:
                check_train_precision(config, use_gpu)
            own_config.save()
            trained_members: dict[str, MemberSummary] = {}
            if pending:  # if every member is finished, there may be no cluster
                _delete_results_of_earlier_members(config)
                trained_members = _fit_members(
                    config, search, pending, progress, max_running=max_running, use_gpu=use_gpu
                )
    summaries = []
    for member in config.train.members:
        finished_before = MemberSummary(member.name, config.member_dir(member.name))
        summary = trained_members.get(member.name, finished_before)
        fold = config.held_out_fold(member.name)
        summaries.append(replace(summary, unused_variants=unused_variants.get(member.name, ""), fold=fold))
    return TrainSummary(tuple(summaries), search)


def _delete_results_of_earlier_members(config: Config) -> None:
    # `predict` makes the last two again. Without predict.json, submission.csv does not count as these members' result.
    for name in ("crossval.json", "evaluation.json", "predictions.parquet", "predict.json"):
        if exists(config.path(name)):
            delete_file(config.path(name))


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


class InputMonitor:
    """Warns once about each member whose iterations wait long for images."""

    def __init__(self, config: Config) -> None:
        self.section = config.train
        self.slow_since: dict[str, int] = {}
        self.warned: set[str] = set()

    def check(self, name: str, entry: LogEntry) -> None:
        """Warn if two successive log entries report a long wait.

        A single entry does not count, because the first batches of a run always take long.

        Args:
            name: name of the member.
            entry: the latest entry of the member's log.
        """
        share = entry.values.get("data_time", 0.0) / entry.values.get("time", math.inf)
        if share <= MAX_WAIT_SHARE:
            self.slow_since.pop(name, None)
        elif self.slow_since.setdefault(name, entry.iteration) < entry.iteration and name not in self.warned:
            self.warned.add(name)
            logging.getLogger(__name__).warning(
                f"member {name}: iterations wait {share:.0%} of their time for images: raise train.cpus_per_worker "
                f"(got {self.section.cpus_per_worker:g}) or, if CPUs are idle, train.threads_per_feed (got "
                f"{self.section.num_prefetch_threads})"
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
    fit = ray.remote(**fit_task_options())(fit_member_task)
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
                except ray.exceptions.RayError as error:  # the task failed, or its process or node is lost
                    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else None
                    errors.append(cause if isinstance(cause, KpRayError) else stopped_error(error, member.name))
                else:
                    seconds = round(time.time() - start_s, 1)
                    summaries[member.name] = MemberSummary(member.name, config.member_dir(member.name), result, seconds)
            for member, _ in running.values():
                _report_progress(config, member, progress, monitor)
    except ray.exceptions.RayError as error:
        raise stopped_error(error) from error
    finally:
        for reference in running:  # after Ctrl-C or an error: the cluster can outlive this process
            ray.cancel(reference)
    if errors:
        raise type(errors[0])("; ".join(str(error) for error in errors)) from errors[0]
    return summaries


def _report_progress(config: Config, member: MemberConfig, progress: Progress, monitor: InputMonitor) -> None:
    latest = None
    with contextlib.suppress(StorageError):  # storage that fails once must not stop the training
        latest = read_latest_entry(config.member_dir(member.name))
    if latest is not None:
        monitor.check(member.name, latest)
        # max_iter is the number of iterations if one worker trains alone; N workers need max_iter / N.
        total = round(config.train.max_iter / latest.values.get("workers", 1))
        loss = latest.values.get("total_loss", math.nan)
        progress(member.name, latest.iteration + 1, total, f"loss {loss:.2f}")
