"""The schedulers that stop trials early, filled from the trials' folders when a search resumes."""

import math
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from kp_ray.config.schema import Config
from kp_ray.tuning.apply import scaled_cfg, trial_config
from kp_ray.tuning.departures import ReplayingAsha, ReplayingMedian, ReplayingScheduler
from kp_ray.tuning.records import Report, is_over, read_reports, trial_dir, trial_name, worst_value
from kp_ray.tuning.space import recipe_sets, to_point

REDUCTION_FACTOR = 2
"""ASHA's reduction factor: about one in this number of the trials that reach a rung continues past it."""


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
    objective: dict[str, Any] = {"metric": section.metric, "mode": section.mode, "time_attr": "iteration"}
    scheduler: ReplayingScheduler
    if section.scheduler == "asha":
        scheduler = ReplayingAsha(
            **objective, max_t=max_iter, grace_period=grace_period, reduction_factor=REDUCTION_FACTOR
        )
    else:  # with a finite time slice the rule also pauses trials, and each pause costs new workers
        scheduler = ReplayingMedian(**objective, grace_period=grace_period, min_time_slice=math.inf)
    scheduler.earlier_results = {
        name: [_to_result(report, config) for report in reports] for name, reports in read_reports(config).items()
    }
    for number in range(section.num_trials):
        if is_over(trial_dir(config, trial_name(number))):
            scheduler.add_ended_trial(number)
    return scheduler


def _to_result(report: Report, config: Config) -> dict[str, Any]:
    """Convert a report of the log to the result that Ray Tune gave the scheduler."""
    value = worst_value(config.tune) if report.value is None else report.value
    return {"iteration": report.iteration, config.tune.metric: value}
