"""The schedulers that stop trials early, given the trials' earlier reports when a search resumes."""

import math
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from kp_ray.config.schema import Config
from kp_ray.tuning.apply import build_scaled_cfg, trial_config
from kp_ray.tuning.departures import ReplayingAsha, ReplayingMedian, ReplayingScheduler
from kp_ray.tuning.records import Report, is_over, read_reports, trial_dir, trial_name, worst_value
from kp_ray.tuning.space import build_recipe_sets, to_point

REDUCTION_FACTOR = 2
"""ASHA's reduction factor N: about one in N of the trials that reach a rung continues past the rung."""


def build_scheduler(config: Config) -> TrialScheduler:
    """Build the scheduler of a search, with the earlier reports of its trials.

    Raises:
        StorageError: a trial's file or the log is damaged.
    """
    section = config.tune
    if section.scheduler == "none":
        return FIFOScheduler()
    cfg = build_scaled_cfg(trial_config(config, to_point(config.train, config), build_recipe_sets(config)))
    max_iter = cfg.SOLVER.MAX_ITER
    grace_period = max(1, min(max_iter, cfg.TEST.EVAL_PERIOD))
    objective: dict[str, Any] = {"metric": section.metric, "mode": section.mode, "time_attr": "iteration"}
    scheduler: ReplayingScheduler
    if section.scheduler == "asha":
        scheduler = ReplayingAsha(
            **objective, max_t=max_iter, grace_period=grace_period, reduction_factor=REDUCTION_FACTOR
        )
    else:  # with a finite time slice the rule would also pause trials, and each resume would start new workers
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
