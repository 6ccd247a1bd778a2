"""What stops trials early, over restarts of a search."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from kp_ray.config.schema import Config
from kp_ray.tuning.space import applied_cfg, apply_params, point_of, recipe_sets
from kp_ray.tuning.trial import evaluations_of, read_end, read_log, read_trial_log, trial_dir, trial_name, worst_value

REDUCTION = 2
"""Of the trials that get to one of ASHA's rungs, about one in so many goes on."""


def build_scheduler(config: Config) -> TrialScheduler:
    """The scheduler; of trials that have ended it knows what they had reported."""
    section = config.tune
    trial = apply_params(config, point_of(config.train, config), recipe_sets(config))
    solver = applied_cfg(trial)
    total, grace = solver.SOLVER.MAX_ITER, max(1, min(solver.SOLVER.MAX_ITER, solver.TEST.EVAL_PERIOD))
    told: dict[str, Any] = {"metric": section.metric, "mode": section.mode, "time_attr": "iteration"}
    if section.scheduler == "none":
        return FIFOScheduler()
    if section.scheduler == "asha":
        scheduler = _Asha(**told, max_t=total, grace_period=grace, reduction_factor=REDUCTION)
    else:  # by default it would also pause trials for each other, which costs new workers
        scheduler = _Median(**told, grace_period=grace, min_time_slice=math.inf)
    scheduler.reports = read_reports(config)
    for number in range(section.num_trials):
        if read_end(trial_dir(config, number)).get("lasting"):
            scheduler.on_trial_add(
                None, Trial("ended", config={"number": number}, trial_id=trial_name(number), stub=True)
            )
    return scheduler


class _Recalling(TrialScheduler):
    """Knows what a trial had reported before a restart; it was decided on then."""

    reports: Mapping[str, Sequence[dict[str, Any]]]
    recall: Callable[..., Any]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for one in self.reports.get(trial_name(trial.config["number"]), ()):
            self.recall(tune_controller, trial, one)


class _Asha(_Recalling, ASHAScheduler):
    recall = ASHAScheduler.on_trial_result


class _Median(_Recalling, MedianStoppingRule):
    recall = MedianStoppingRule.on_trial_complete  # its on_trial_result takes none after it has decided to stop


def read_reports(config: Config) -> dict[str, list[dict[str, Any]]]:
    """What each trial has reported so far, in order: `iteration` and the tuned metric, of a failure the worst. Of a
    trial that has ended and is not in the log, somebody having deleted that, what it evaluated."""
    metric, told = config.tune.metric, dict[str, list[dict[str, Any]]]()
    for line in read_log(config):
        value = worst_value(config.tune) if line[metric] is None else line[metric]
        told.setdefault(line["trial"], []).append({"iteration": line["iteration"], metric: value})
    for number in range(config.tune.num_trials):
        home = trial_dir(config, number)
        if trial_name(number) not in told and read_end(home).get("lasting"):
            known = [one for one in evaluations_of(read_trial_log(home)) if math.isfinite(one.get(metric, math.nan))]
            told[trial_name(number)] = [{"iteration": one["iteration"], metric: one[metric]} for one in known]
    return told
