"""The schedulers of a search, new and resumed."""

from collections.abc import Callable

import pytest
from ray.tune.schedulers import TrialScheduler

from kp_ray.config.schema import Config
from kp_ray.tuning.schedulers import build_scheduler
from tests.helpers.searches import ray_trial, write_search_log, write_trial

SECTION = {"num_trials": 6, "max_iter": 8, "eval_period": 2, "metric": "rmse"}


@pytest.mark.parametrize("scheduler_name", ["asha", "median"])
@pytest.mark.parametrize("with_log", [True, False], ids=["log", "no_log"])
def test_a_new_trial_is_compared_with_trials_from_before_the_resume(
    scheduler_name: str, with_log: bool, make_config: Callable[..., Config]
) -> None:
    config = make_config(tune={**SECTION, "scheduler": scheduler_name})
    decisions = []
    for num_ended in (0, 4):
        for number in range(num_ended):
            write_trial(config, f"trial-{number:03d}", 1.0, {2: 10.0 + number, 4: 5.0, 8: 1.0}, end={})
        if num_ended and with_log:
            write_search_log(config, *((f"trial-{number:03d}", 2, 10.0 + number) for number in range(num_ended)))
        scheduler = build_scheduler(config)
        new_trial = ray_trial(5)
        scheduler.on_trial_add(None, new_trial)
        decisions.append(scheduler.on_trial_result(None, new_trial, {"iteration": 2, "rmse": 90.0}))
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.STOP]


@pytest.mark.parametrize("scheduler_name", ["asha", "median"])
def test_the_trial_with_the_configs_own_settings_is_never_stopped(
    scheduler_name: str, make_config: Callable[..., Config]
) -> None:
    config = make_config(tune={**SECTION, "scheduler": scheduler_name})
    scheduler = build_scheduler(config)
    trials = [ray_trial(number) for number in range(5)]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    for trial in trials[2:]:
        scheduler.on_trial_result(None, trial, {"iteration": 2, "rmse": 10.0})
    decisions = [scheduler.on_trial_result(None, trial, {"iteration": 2, "rmse": 90.0}) for trial in trials[:2]]
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.STOP]


# The median rule compares a trial with at least three others, ASHA with at least one.
@pytest.mark.parametrize(("scheduler_name", "num_others"), [("asha", 0), ("median", 2)])
def test_the_reports_of_the_trial_with_the_configs_own_settings_count_for_other_trials(
    scheduler_name: str, num_others: int, make_config: Callable[..., Config]
) -> None:
    config = make_config(tune={**SECTION, "scheduler": scheduler_name})
    decisions = []
    for has_own_report in (False, True):
        scheduler = build_scheduler(config)
        own_trial, new_trial, *others = [ray_trial(number) for number in range(2 + num_others)]
        for trial in (own_trial, new_trial, *others):
            scheduler.on_trial_add(None, trial)
        for trial in ([own_trial] if has_own_report else []) + others:
            scheduler.on_trial_result(None, trial, {"iteration": 2, "rmse": 10.0})
        decisions.append(scheduler.on_trial_result(None, new_trial, {"iteration": 2, "rmse": 90.0}))
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.STOP]


@pytest.mark.parametrize("scheduler_name", ["asha", "median"])
def test_a_resumed_trial_is_not_stopped_for_reports_from_before_the_resume(
    scheduler_name: str, make_config: Callable[..., Config]
) -> None:
    config = make_config(tune={**SECTION, "scheduler": scheduler_name})
    write_trial(config, "trial-005", 1.0, {2: 50.0, 4: 20.0})
    stopped_names = [f"trial-{number:03d}" for number in range(1, 5)]
    for trial_name in stopped_names:  # stopped at 4 iterations, but trained until the stop arrived
        write_trial(config, trial_name, 2.0, {2: 20.0, 4: 10.0, 6: 1.0}, end={})
    reports = [("trial-005", 2, 50.0), ("trial-005", 4, 15.0)]
    reports += [
        (trial_name, iteration, rmse) for trial_name in stopped_names for iteration, rmse in ((2, 40.0), (4, 12.0))
    ]
    write_search_log(config, *reports)
    scheduler = build_scheduler(config)
    resumed_trial, new_trial = ray_trial(5), ray_trial(6)
    for trial in (resumed_trial, new_trial):
        scheduler.on_trial_add(None, trial)
    # Without the trial's earlier reports, this report would stop the trial.
    assert scheduler.on_trial_result(None, resumed_trial, {"iteration": 6, "rmse": 45.0}) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(None, new_trial, {"iteration": 2, "rmse": 60.0}) == TrialScheduler.STOP


@pytest.mark.parametrize("scheduler_name", ["asha", "median"])
def test_failed_trials_do_not_stop_another_trial(scheduler_name: str, make_config: Callable[..., Config]) -> None:
    config = make_config(tune={**SECTION, "scheduler": scheduler_name})
    failed_names = [f"trial-{number:03d}" for number in range(4)]
    for trial_name in failed_names:
        write_trial(config, trial_name, 1.0, {}, end={"reason": "the loss is no longer finite"})
    write_search_log(config, *((trial_name, 0, None) for trial_name in failed_names))
    scheduler = build_scheduler(config)
    new_trial = ray_trial(5)
    scheduler.on_trial_add(None, new_trial)
    assert scheduler.on_trial_result(None, new_trial, {"iteration": 2, "rmse": 90.0}) == TrialScheduler.CONTINUE
