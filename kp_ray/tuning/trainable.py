"""One trial as Ray Tune runs it: an actor that waits for its training run and reports each evaluation."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import ray
import ray.tune

from kp_ray.cluster.errors import describe_ray_error
from kp_ray.cluster.placement import fit_task_options
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import DivergedError, KpRayError, StorageError
from kp_ray.storage import exists, join
from kp_ray.training.run import fit_member
from kp_ray.tuning.apply import scaled_cfg, solver_params, trial_config
from kp_ray.tuning.records import (
    TrialEnd,
    TrialStart,
    delete_end,
    has_lasting_end,
    read_log,
    read_trial_log,
    to_evaluations,
    trial_dir,
    trial_name,
    worst_value,
    write_end,
    write_start,
)
from kp_ray.tuning.space import Point, recipe_sets

POLL_S = 0.5
"""Seconds between checks for a new evaluation."""
STOP_S = 60.0
"""Seconds that a stopped trial waits for its training run to end."""


class TrialTrainable(ray.tune.Trainable):
    """Train the first member with a trial's settings and report every evaluation once, in order.

    The final evaluation is reported after training has ended, so that no scheduler stops a run that is writing its
    weights; a trial that restarts after that reports it once more. A trial that fails reports the worst value at
    iteration 0, with the fields of its `TrialEnd`; the sampler uses that value only if the failure is final (a
    diverged loss).

    Training runs in a separate task so that it can be cancelled cleanly: Ray Train's clean-up after a killed driver
    queries the wrong cluster if a machine runs several.
    """

    values: Mapping[str, Any]
    """Plain values of the search's config; `build_trainable` sets them."""
    use_gpu: bool

    def setup(self, config: dict[str, Any]) -> None:
        """Start or resume the training run.

        Args:
            config: the dict that `TrialSearcher.suggest` returns: `number` and `params`.
        """
        self.base = build_config(self.values)
        self.metric = self.base.tune.metric
        name, point = trial_name(config["number"]), Point(**config["params"])
        self.folder = trial_dir(self.base, name)
        with _record_failure(self.folder):
            self._start_training(name, point)

    def _start_training(self, name: str, point: Point) -> None:
        self.began = time.time()
        is_over = has_lasting_end(self.folder)
        if not is_over:
            delete_end(self.folder)  # recorded by an earlier attempt
        config = trial_config(self.base, point, recipe_sets(self.base))
        cfg = scaled_cfg(config)
        self.max_iter = int(cfg.SOLVER.MAX_ITER)
        write_start(
            self.folder, TrialStart(self.began, point, self.max_iter, solver_params(config, cfg, point.recipes))
        )
        reports = [report for report in read_log(self.base) if report.trial == name]
        self.earlier_s = max((report.seconds for report in reports), default=0.0)
        self.reported = min(max((report.iteration for report in reports), default=0), self.max_iter - 1)
        self.training: ray.ObjectRef | None = None
        if is_over or exists(join(self.folder, "model_final.pth")):
            return
        fit = ray.remote(**fit_task_options())(_fit)
        self.training = fit.remote(config.to_dict(), self.folder, self.use_gpu)

    def step(self) -> dict[str, Any]:
        """Wait for the next evaluation or the end of training, and return its result for Ray Tune."""
        with _record_failure(self.folder):
            while True:
                ended = self.training is None or bool(ray.wait([self.training], timeout=POLL_S)[0])
                for evaluation in to_evaluations(read_trial_log(self.folder)):
                    is_due = evaluation.iteration > self.reported and (ended or evaluation.iteration < self.max_iter)
                    if is_due and evaluation.value(self.metric) is not None:
                        self.reported = evaluation.iteration
                        is_last = self.reported == self.max_iter
                        return self._report({**evaluation.metrics, "iteration": self.reported}, done=is_last)
                if ended:
                    end = self._failure()
                    with contextlib.suppress(StorageError):  # full disk: the result carries the end to the driver
                        write_end(self.folder, end)
                    worst = {self.metric: worst_value(self.base.tune), "iteration": 0}
                    return self._report({**worst, **asdict(end)}, done=True)

    def _report(self, values: Mapping[str, Any], *, done: bool) -> dict[str, Any]:
        return {**values, "seconds": round(self.earlier_s + time.time() - self.began, 1), "done": done}

    def _failure(self) -> TrialEnd:
        """Return why training ended without its last evaluation.

        Raises:
            RayError: the training task itself died, or ended with a bug; Ray Tune retries the trial. A `KpRayError` is
                not retried: Ray Train has used its worker restarts already.
        """
        try:
            if self.training is not None:
                ray.get(self.training)
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, KpRayError):
                raise
            return TrialEnd(str(error.cause), lasting=isinstance(error.cause, DivergedError))
        return TrialEnd(f"its last evaluation has no {self.metric}")

    def cleanup(self) -> None:
        """End the training run of a trial that is stopped."""
        if self.training is not None and not ray.wait([self.training], timeout=0)[0]:
            ray.cancel(self.training)
            ray.wait([self.training], timeout=STOP_S)


def build_trainable(config: Config, *, use_gpu: bool) -> type[TrialTrainable]:
    """Return the class that Ray Tune runs for every trial of a config's search."""
    return type("Trial", (TrialTrainable,), {"values": config.to_dict(), "use_gpu": use_gpu})


def _fit(values: Mapping[str, Any], folder: str, use_gpu: bool) -> None:
    config = build_config(values)
    fit_member(config, config.train.members[0], use_gpu=use_gpu, folder=folder)


@contextlib.contextmanager
def _record_failure(folder: str) -> Iterator[None]:
    """Record the cause of a failure before Ray Tune reduces the exception to text; it may still retry the trial."""
    try:
        yield
    except Exception as error:
        with contextlib.suppress(StorageError):  # on a full disk the error itself says so
            write_end(folder, TrialEnd(describe_ray_error(error), lasting=False))
        raise
