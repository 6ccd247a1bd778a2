"""The schedulers that stop trials early, rebuilt from the trials' folders when a search resumes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from kp_ray.config.schema import Config
from kp_ray.tuning.apply import scaled_cfg, trial_config
from kp_ray.tuning.records import Report, has_lasting_end, read_reports, trial_dir, trial_name, worst_value
from kp_ray.tuning.space import recipe_sets, to_point

REDUCTION_FACTOR = 2
"""About one in so many of the trials that reach one of ASHA's rungs continues past it."""


def build_scheduler(config: Config) -> TrialScheduler:
    """Return the scheduler of a search; it knows the reports of the trials that are over.

    Raises:
        StorageError: a trial's file or the log is damaged.
    """
    section = config.tune
    if section.scheduler == "none":
        return FIFOScheduler()
    cfg = scaled_cfg(trial_config(config, to_point(config.train, config), recipe_sets(config)))
    max_iter = cfg.SOLVER.MAX_ITER
    grace_period = max(1, min(max_iter, cfg.TEST.EVAL_PERIOD))
    goal: dict[str, Any] = {"metric": section.metric, "mode": section.mode, "time_attr": "iteration"}
    if section.scheduler == "asha":
        scheduler = _Asha(**goal, max_t=max_iter, grace_period=grace_period, reduction_factor=REDUCTION_FACTOR)
    else:  # a finite time slice would also pause trials in favour of each other, and each pause costs new workers
        scheduler = _Median(**goal, grace_period=grace_period, min_time_slice=math.inf)
    scheduler.results = {
        name: [_to_result(report, config) for report in reports] for name, reports in read_reports(config).items()
    }
    for number in range(section.num_trials):
        name = trial_name(number)
        if has_lasting_end(trial_dir(config, name)):
            scheduler.on_trial_add(None, RayTrial("ended", config={"number": number}, trial_id=name, stub=True))
    return scheduler


def _to_result(report: Report, config: Config) -> dict[str, Any]:
    value = worst_value(config.tune) if report.value is None else report.value
    return {"iteration": report.iteration, config.tune.metric: value}


class _ReplayingScheduler(TrialScheduler):
    """Learn a trial's earlier reports when it is added, without deciding about them again.

    Ray Tune's schedulers resume only from its own snapshot, which is not kept (`ray_tune.py`).
    """

    results: Mapping[str, Sequence[dict[str, Any]]]
    replay: Callable[..., Any]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for result in self.results.get(trial_name(trial.config["number"]), ()):
            self.replay(tune_controller, trial, result)


class _Asha(_ReplayingScheduler, ASHAScheduler):
    replay = ASHAScheduler.on_trial_result


class _Median(_ReplayingScheduler, MedianStoppingRule):
    replay = MedianStoppingRule.on_trial_complete  # its on_trial_result ignores a trial that it decided to stop
