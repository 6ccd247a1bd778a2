"""The search algorithm of a resumed search."""

import json
import math
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from kp_ray.config.schema import Config
from kp_ray.tuning.searcher import TrialSearcher
from kp_ray.tuning.space import Point
from tests.helpers.searches import leave_trial


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_resumed_search_draws_what_an_undisturbed_one_would_have_drawn(
    sampler: str, make_config: Callable[..., Config]
) -> None:
    config = make_config(tune={"num_trials": 9, "max_iter": 8, "metric": "rmse", "sampler": sampler})
    drawn: list[str] = []

    def run_next_trial(searcher: TrialSearcher, end: dict[str, Any] | None) -> None:
        """Draw a trial and leave its files; `end` None: the search is killed meanwhile."""
        suggested = searcher.suggest("next")
        assert suggested
        number, point = suggested["number"], Point(**suggested["params"])
        drawn.append(json.dumps(suggested))
        rmse = 50 + 10 * abs(math.log10(point.base_lr) + 3) + number
        shutil.rmtree(config.path("tune", "trials", f"trial-{number:03d}"), ignore_errors=True)
        leave_trial(config, f"trial-{number:03d}", number, {8: rmse}, params=point, end=end)
        searcher.on_trial_complete("next", {"rmse": math.inf if end and end["reason"] else rmse})

    def final_end(number: int) -> dict[str, Any]:
        return {"lasting": True, "reason": "the loss" if number == 3 else ""}

    whole = TrialSearcher(config)
    for number in range(9):
        run_next_trial(whole, final_end(number))
    undisturbed, drawn = drawn, []
    assert len(set(undisturbed)) == 9
    assert not TrialSearcher(config).waiting
    shutil.rmtree(config.path("tune"))
    for number in range(9):
        run_next_trial(TrialSearcher(config), {"lasting": False, "reason": "a node died"} if number % 2 else None)
        run_next_trial(TrialSearcher(config), final_end(number))
    assert drawn[::2] == drawn[1::2] == undisturbed


def test_no_more_trials_run_at_once_than_the_cluster_or_the_config_allows(make_config: Callable[..., Config]) -> None:
    for allowed, section in ((4, {}), (2, {"max_concurrent": 2})):
        searcher = TrialSearcher(make_config(tune={"num_trials": 6, **section}))  # 1 of 4 CPUs per trial
        started = [searcher.suggest(str(number)) is not None for number in range(6)]
        assert started == [True] * allowed + [False] * (6 - allowed)
        searcher.on_trial_complete("0", error=True)
        assert searcher.suggest("next") is not None
