"""The search algorithm of a resumed search."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from kp_ray.config.schema import Config
from kp_ray.tuning.departures import ResumedSearch, TrialSampler
from kp_ray.tuning.searcher import build_searcher
from kp_ray.tuning.space import Point, build_recipe_sets, build_space, build_study, first_points
from tests.helpers.searches import OWN_SET, write_trial

pytestmark = pytest.mark.usefixtures("ray_cluster")  # its capacity limits the number of concurrent trials


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_resumed_search_samples_the_points_of_an_uninterrupted_search(
    sampler: str, make_config: Callable[..., Config]
) -> None:
    config = make_config(tune={"num_trials": 9, "max_iter": 8, "metric": "rmse", "sampler": sampler})
    suggestions: list[str] = []

    def run_next_trial(searcher: ResumedSearch, end: dict[str, Any] | None) -> None:
        """Sample a trial and write its files; with `end` None, as if the driver was killed during the trial."""
        trial_id = str(len(suggestions))
        suggestion = searcher.suggest(trial_id)
        assert suggestion
        number, point = suggestion["number"], Point(**suggestion["params"])
        suggestions.append(json.dumps(suggestion))
        rmse = 50 + 10 * abs(math.log10(point.base_lr) + 3) + number
        shutil.rmtree(config.path("tune", "trials", f"trial-{number:03d}"), ignore_errors=True)
        write_trial(config, f"trial-{number:03d}", number, {8: rmse}, params=point, end=end)
        searcher.on_trial_complete(trial_id, {"rmse": math.inf if end and end["reason"] else rmse})

    def final_end(number: int) -> dict[str, Any]:
        return {"lasting": True, "reason": "the loss" if number == 3 else ""}

    searcher = build_searcher(config)
    for number in range(9):
        run_next_trial(searcher, final_end(number))
    uninterrupted_suggestions, suggestions = suggestions, []
    assert len(set(uninterrupted_suggestions)) == 9
    assert not build_searcher(config).numbers
    shutil.rmtree(config.path("tune"))
    for number in range(9):
        run_next_trial(build_searcher(config), {"lasting": False, "reason": "a node died"} if number % 2 else None)
        run_next_trial(build_searcher(config), final_end(number))
    assert suggestions[::2] == suggestions[1::2] == uninterrupted_suggestions


def test_cluster_and_config_limit_the_number_of_concurrent_trials(make_config: Callable[..., Config]) -> None:
    for limit, section in ((4, {}), (2, {"max_concurrent": 2})):
        searcher = build_searcher(make_config(tune={"num_trials": 6, **section}))  # 1 of 4 CPUs per trial
        has_started = [searcher.suggest(str(number)) is not None for number in range(6)]
        assert has_started == [True] * limit + [False] * (6 - limit)
        searcher.on_trial_complete("0", error=True)
        assert searcher.suggest("next") is not None


def test_trials_that_have_begun_resume_with_their_points_before_new_trials_start(
    make_config: Callable[..., Config],
) -> None:
    config = make_config(tune={"num_trials": 4, "max_iter": 8})
    points = first_points(config, build_recipe_sets(config))
    recorded_point = replace(points[0], base_lr=0.003)
    write_trial(config, "trial-003", 1.0, {2: 50.0}, params=recorded_point)  # trial 2 has not begun
    searcher = build_searcher(config)
    suggestions = [searcher.suggest(str(number)) for number in range(4)]
    assert [suggestion and suggestion["number"] for suggestion in suggestions] == [0, 1, 3, 2]
    first_three_points = [suggestion and Point(**suggestion["params"]) for suggestion in suggestions[:3]]
    assert first_three_points == [*points[:2], recorded_point]


@pytest.mark.parametrize(
    ("result", "error", "state"),
    [
        ({"rmse": 40.0}, False, TrialState.COMPLETE),
        ({"rmse": math.inf, "is_final": True}, False, TrialState.COMPLETE),  # a diverged loss: the worst value
        ({"rmse": math.inf, "is_final": False}, False, TrialState.FAIL),
        (None, True, TrialState.FAIL),
    ],
    ids=["value", "diverged", "may_be_retried", "error"],
)
def test_the_sampler_learns_from_final_results_only(
    result: dict[str, Any] | None, error: bool, state: TrialState, make_config: Callable[..., Config]
) -> None:
    config = make_config(tune={"num_trials": 1})
    storage = InMemoryStorage()
    study = build_study("min", storage)
    sampler = TrialSampler(lambda seed: RandomSampler(seed=seed))
    searcher = ResumedSearch(config, build_space(config, OWN_SET), storage, study.study_name, sampler, [0])
    searcher.suggest("first")
    searcher.on_trial_complete("first", result, error)
    (trial,) = study.trials
    assert (trial.state, trial.value) == (state, result["rmse"] if result and state == TrialState.COMPLETE else None)


def test_ray_tune_can_pickle_a_search_and_its_snapshot_is_empty(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    searcher = build_searcher(make_config(tune={"num_trials": 3}))
    searcher.suggest("first")
    unpickled_searcher = ray.cloudpickle.loads(ray.cloudpickle.dumps(searcher))
    assert unpickled_searcher.numbers == searcher.numbers == [1, 2]
    searcher.save_to_dir(str(tmp_path))
    assert not list(tmp_path.iterdir())  # a search resumes from its trials' folders
