"""One trial as Ray Tune runs it: an actor that waits for its training run and reports each evaluation."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import ray
import ray.tune

from kp_ray.cluster.errors import describe_ray_error
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import DivergedError, KpRayError, StorageError
from kp_ray.member_files import is_trained
from kp_ray.tuning.apply import build_scaled_cfg, solver_params, trial_config
from kp_ray.tuning.departures import TrainingRun
from kp_ray.tuning.records import (
    OWN_TRIAL,
    TrialEnd,
    TrialEvaluation,
    TrialStart,
    delete_end,
    is_over,
    read_search_log,
    read_trial_log,
    to_evaluations,
    trial_dir,
    trial_name,
    worst_value,
    write_end,
    write_start,
)
from kp_ray.tuning.space import Point, build_recipe_sets


class TrialTrainable(ray.tune.Trainable):
    """Trains the first member with a trial's settings and reports every evaluation once, in order.

    The last evaluation is reported after training has ended, so that no scheduler stops a run that is writing its
    weights; a trial that restarts after that report repeats it. A trial that fails reports the worst value at iteration
    0, with the fields of its `TrialEnd`. The sampler uses that value only if the failure is final, e.g. a diverged
    loss.
    """

    values: Mapping[str, Any]
    """Plain values of the search's config; `build_trainable` sets them."""
    use_gpu: bool
    """True if training workers use GPUs; `build_trainable` sets it."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start or resume the training run.

        Args:
            config: the dict that `ResumedSearch.suggest` returns: `number` and `params`.
        """
        self.search_config = build_config(self.values)
        self.metric = self.search_config.tune.metric
        name, point = trial_name(config["number"]), Point(**config["params"])
        self.folder = trial_dir(self.search_config, name)
        with _record_failure(self.folder):
            self._start_training(name, point)

    def _start_training(self, name: str, point: Point) -> None:
        self.start_time = time.time()
        has_ended = is_over(self.folder)
        if not has_ended:
            delete_end(self.folder)  # the end that an earlier attempt recorded
        recipe_sets = build_recipe_sets(self.search_config)
        config = trial_config(self.search_config, point, recipe_sets, is_own_trial=name == OWN_TRIAL)
        cfg = build_scaled_cfg(config)
        self.max_iter = int(cfg.SOLVER.MAX_ITER)
        write_start(
            self.folder, TrialStart(self.start_time, point, self.max_iter, solver_params(config, cfg, point.recipes))
        )
        reports = [report for report in read_search_log(self.search_config) if report.trial == name]
        self.earlier_duration_s = max((report.seconds for report in reports), default=0.0)
        # At most max_iter - 1, so that a trial that restarts repeats its last report.
        self.last_iteration = min(max((report.iteration for report in reports), default=0), self.max_iter - 1)
        self.is_training = not (has_ended or is_trained(self.folder))
        self.training_run = TrainingRun(config, self.folder, use_gpu=self.use_gpu) if self.is_training else None

    def step(self) -> dict[str, Any]:
        """Wait for the next evaluation or the end of training, and return its result for Ray Tune."""
        with _record_failure(self.folder):
            while True:
                evaluation = self._next_evaluation()
                if evaluation is not None:
                    self.last_iteration = evaluation.iteration
                    is_last = evaluation.iteration == self.max_iter
                    return self._to_result({**evaluation.metrics, "iteration": evaluation.iteration}, done=is_last)
                if not self.is_training:
                    return self._report_failure()
                self.is_training = self.training_run is not None and self.training_run.wait_for_report()

    def _next_evaluation(self) -> TrialEvaluation | None:
        """Return the first evaluation in the training log that the trial must report now; None if there is none.

        An evaluation whose tuned metric is missing or not finite is skipped.
        """
        for evaluation in to_evaluations(read_trial_log(self.folder)):
            is_new = evaluation.iteration > self.last_iteration
            is_due = evaluation.iteration < self.max_iter or not self.is_training
            if is_new and is_due and evaluation.value(self.metric) is not None:
                return evaluation
        return None

    def _to_result(self, values: Mapping[str, Any], *, done: bool) -> dict[str, Any]:
        seconds = round(self.earlier_duration_s + time.time() - self.start_time, 1)
        return {**values, "seconds": seconds, "done": done}

    def _report_failure(self) -> dict[str, Any]:
        """Record why training ended without its last evaluation, and return the result that reports the failure.

        Raises:
            RayError: the training task died, or ended with a bug; Ray Tune retries the trial. A run that ended with a
                `KpRayError` is not retried here: Ray Train has already used its worker restarts.
        """
        end = TrialEnd(f"its last evaluation has no {self.metric}")
        try:
            if self.training_run is not None:
                self.training_run.wait_for_end()
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, KpRayError):
                raise
            end = TrialEnd(str(error.cause), is_final=isinstance(error.cause, DivergedError))
        with contextlib.suppress(StorageError):  # on a full disk the result carries the end to the driver
            write_end(self.folder, end)
        return self._to_result(
            {self.metric: worst_value(self.search_config.tune), "iteration": 0, **asdict(end)}, done=True
        )

    def cleanup(self) -> None:
        """End the training run of a trial that is stopped."""
        if self.training_run is not None:
            self.training_run.stop()


def build_trainable(config: Config, *, use_gpu: bool) -> type[TrialTrainable]:
    """Return the class that Ray Tune runs for every trial of a config's search."""
    return type("Trial", (TrialTrainable,), {"values": config.to_dict(), "use_gpu": use_gpu})


@contextlib.contextmanager
def _record_failure(folder: str) -> Iterator[None]:
    """Record the cause of an exception, which Ray Tune would keep only as text; Ray Tune may still retry the trial."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(StorageError):  # on a full disk `error` itself names the cause
            write_end(folder, TrialEnd(describe_ray_error(error), is_final=False))
        raise
