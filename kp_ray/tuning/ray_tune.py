"""Run a search's trials with Ray Tune, and note in the run folder what happens to them.

Where this departs from Ray's documented use, the reason stands beside it. The largest: a search resumes from
its trials' folders, not from Ray Tune's snapshot, which may lag behind them when a driver is killed (`searcher.py`,
`schedulers.py`). A trial only waits for a training run, which has resources of its own (`trainable.py`).
"""

import math
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.tune

from kp_ray.cluster.errors import describe_ray_error
from kp_ray.cluster.placement import trial_resources
from kp_ray.cluster.ray_internals import keep_credentials_out_of_tune_logs
from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError, StoppedError
from kp_ray.stage import Progress
from kp_ray.tuning.records import Report, TrialEnd, append_report, read_log, trial_dir, trial_name, write_end
from kp_ray.tuning.schedulers import build_scheduler
from kp_ray.tuning.searcher import TrialSearcher
from kp_ray.tuning.trainable import build_trainable
from kp_ray.tuning.trials import Trial, read_trials, write_tables


def run_trials(config: Config, searcher: TrialSearcher, progress: Progress, *, use_gpu: bool) -> None:
    """Run the trials that a searcher has waiting, each to its end or until the scheduler stops it.

    Args:
        config: of the search; a Ray cluster must be running.
        searcher: decides what each trial tries.
        progress: called with the row of a trial when it reports and when it ends.
        use_gpu: whether training workers use GPUs.

    Raises:
        StoppedError: Ray Tune cannot continue.
    """
    _prepare_environment()
    with tempfile.TemporaryDirectory(prefix="kp_ray-tune-", ignore_cleanup_errors=True) as snapshots:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(build_trainable(config, use_gpu=use_gpu), trial_resources()),
            tune_config=ray.tune.TuneConfig(
                num_samples=len(searcher.waiting), search_alg=searcher, scheduler=build_scheduler(config)
            ),
            run_config=ray.tune.RunConfig(
                name="search",
                storage_path=snapshots,
                verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=config.train.max_failures),
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),  # a trial's folder is its state
                callbacks=[_Listener(config, progress)],
            ),
        )
        try:
            tuner.fit()
        except (ray.exceptions.RayError, ray.tune.TuneError) as error:
            reason = describe_ray_error(_find_own_error(error) or error)
            raise StoppedError(
                f"{config.path('tune')}: the search stopped: {reason}: run the same command to resume it"
            ) from error


def _find_own_error(error: BaseException | None) -> KpRayError | None:
    """Return the error that one of our callbacks raised; Ray Tune replaces it by a TuneError, during its handling."""
    while error is not None and not isinstance(error, KpRayError):
        error = error.__cause__ or error.__context__
    return error


def _prepare_environment() -> None:
    keep_credentials_out_of_tune_logs([name for name in os.environ if name.startswith("AWS_")])
    # Ctrl-C must end the driver, as a kill does; Ray Tune's handler makes the search look finished.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")


class _Listener(ray.tune.Callback):
    """Write the log, the ends of trials and the tables, and report progress."""

    def __init__(self, config: Config, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self.running: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Give Ray Tune's snapshot, which nobody reads, nothing to copy."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.running.add(_name(trial))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        name, value = _name(trial), result[self.config.tune.metric]
        if result["iteration"] == 0:  # the trial's disk may have been full
            write_end(trial_dir(self.config, name), TrialEnd(result["reason"], lasting=result["lasting"]))
        known = {(report.trial, report.iteration) for report in read_log(self.config)}
        if (name, result["iteration"]) not in known:
            finite = value if math.isfinite(value) else None
            append_report(self.config, Report(name, result["iteration"], result["seconds"], finite))
            self._write(name)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._end(_name(trial), TrialEnd())

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        # The trial itself records its reason, unless its process was killed or its disk is full.
        self._end(_name(trial), TrialEnd(describe_ray_error(_read_ray_error(trial)), lasting=False))

    def _end(self, name: str, end: TrialEnd) -> None:
        write_end(trial_dir(self.config, name), end)
        self.running.discard(name)
        self._write(name)

    def _write(self, name: str) -> None:
        trials = read_trials(self.config, self.running)
        write_tables(self.config, trials)
        for trial in trials:
            if trial.name == name:
                self.progress(name, trial.iterations, trial.start.max_iter, describe_trial(trial, self.config))


def _name(trial: Any) -> str:
    return trial_name(trial.config["number"])


def _read_ray_error(trial: Any) -> Exception:
    """Return the exception that ended one of Ray Tune's trials.

    Ray's own `get_pickled_error` reads from the storage path, to which the file has not been copied yet (Ray 2.60).
    """
    if trial.pickled_error_file:
        error: Exception = pickle.loads(Path(trial.pickled_error_file).read_bytes())  # noqa: S301  (Ray wrote it)
        return error
    return ray.tune.TuneError(Path(trial.error_file).read_text())


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
