"""Run a search's trials with Ray Tune, and record their reports and ends in the run folder.

`departures.py` lists where kp_ray departs from Ray's documented use, and why.
"""

import math
from typing import Any
from uuid import uuid4

import ray
import ray.tune

from kp_ray.cluster.errors import describe_ray_error
from kp_ray.cluster.placement import trial_resources
from kp_ray.config.schema import Config
from kp_ray.errors import StoppedError
from kp_ray.stage import Progress
from kp_ray.temp_folders import shared_temp_folder
from kp_ray.tuning.departures import ResumedSearch, find_callback_error, prepare_environment, read_trial_error
from kp_ray.tuning.records import (
    Report,
    TrialEnd,
    append_report,
    read_search_log,
    trial_dir,
    trial_name,
    write_end,
)
from kp_ray.tuning.schedulers import build_scheduler
from kp_ray.tuning.trainable import build_trainable
from kp_ray.tuning.trials import Trial, read_trials, write_tables


def run_trials(config: Config, searcher: ResumedSearch, progress: Progress, *, use_gpu: bool) -> None:
    """Run the trials of a searcher, each to its end or until the scheduler stops it.

    Args:
        config: the search's config; a Ray cluster must be running.
        searcher: chooses the point of each trial.
        progress: called with the trial's name when a trial reports and when it ends.
        use_gpu: True if training workers use GPUs.

    Raises:
        StoppedError: Ray Tune cannot continue.
    """
    prepare_environment()
    with shared_temp_folder(f"tune-{uuid4().hex}") as snapshot_dir:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(build_trainable(config, use_gpu=use_gpu), trial_resources()),
            tune_config=ray.tune.TuneConfig(
                num_samples=len(searcher.numbers), search_alg=searcher, scheduler=build_scheduler(config)
            ),
            run_config=ray.tune.RunConfig(
                name="search",
                storage_path=str(snapshot_dir),
                verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=config.train.max_failures),
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),  # a trial resumes from its folder
                callbacks=[_RecordCallback(config, progress)],
            ),
        )
        try:
            tuner.fit()
        except (ray.exceptions.RayError, ray.tune.TuneError) as error:
            reason = describe_ray_error(find_callback_error(error))
            raise StoppedError(
                f"{config.path('tune')}: the search stopped: {reason}: run the same command to resume it"
            ) from error


class _RecordCallback(ray.tune.Callback):
    """Writes the search's log, the ends of trials and the tables, and reports progress; runs in the driver."""

    def __init__(self, config: Config, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self.running_names: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state: Ray Tune's snapshot is not used, and `progress` cannot be pickled."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.running_names.add(_ray_trial_name(trial))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        name, value = _ray_trial_name(trial), result[self.config.tune.metric]
        if result["iteration"] == 0:  # a failure, which the trial could not record if its disk was full
            write_end(trial_dir(self.config, name), TrialEnd(result["reason"], is_final=result["is_final"]))
        logged_reports = {(report.trial, report.iteration) for report in read_search_log(self.config)}
        if (name, result["iteration"]) not in logged_reports:
            finite_value = value if math.isfinite(value) else None
            append_report(self.config, Report(name, result["iteration"], result["seconds"], finite_value))
            if not result["done"]:  # `on_trial_complete` follows and shows the end
                self._show(name)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._record_end(_ray_trial_name(trial), TrialEnd())

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        # The trial itself records its reason, unless its process was killed or its disk is full.
        self._record_end(_ray_trial_name(trial), TrialEnd(describe_ray_error(read_trial_error(trial)), is_final=False))

    def _record_end(self, name: str, end: TrialEnd) -> None:
        write_end(trial_dir(self.config, name), end)
        self.running_names.discard(name)
        self._show(name)

    def _show(self, name: str) -> None:
        """Write the tables, and report the progress of a trial, or its end if the trial no longer runs."""
        trials = read_trials(self.config, self.running_names)
        write_tables(self.config, trials)
        for trial in trials:
            # A trial that an earlier command trained fully is "finished" while it still reports: show only its end.
            if trial.name == name and (trial.status == "running") == (name in self.running_names):
                self.progress(name, trial.iterations, trial.start.max_iter, describe_trial(trial, self.config))


def _ray_trial_name(trial: Any) -> str:
    """Return the name of one of Ray Tune's trials."""
    return trial_name(trial.config["number"])


def describe_trial(trial: Trial, config: Config) -> str:
    """Describe a trial's state and settings on one line, e.g. "running rmse 43.2 base_lr 0.001 ..."."""
    solver = trial.start.solver
    steps = f" x{solver.gamma:.2g} at {solver.steps}" if solver.gamma else ""
    cells = {
        config.tune.metric: "" if trial.value is None else f"{trial.value:.4g}",
        "base_lr": f"{solver.base_lr:.3g}",
        "schedule": solver.schedule + steps,
        "flip": "yes" if solver.flip else "no",
        "recipes": solver.recipes,
        "seconds": "" if trial.seconds is None else f"{trial.seconds:.0f}",
        "reason": trial.reason,
    }
    return " ".join([trial.status, *(f"{name} {cell}" for name, cell in cells.items() if cell)])
