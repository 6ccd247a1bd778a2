"""The tables of trials, and the choice of a trial."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.tuning.trials import METRICS, choose_trial, read_trials, write_tables
from tests.helpers.searches import write_search_log, write_trial


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Build the config of a search whose trials the test writes."""
    return build_config({"run_dir": str(tmp_path)})


def test_the_best_trial_is_chosen_among_those_with_the_most_iterations(config: Config) -> None:
    for began, (name, evaluations) in enumerate({"a": {8: 30.0}, "b": {8: 20.0}, "c": {4: 10.0}}.items()):
        write_trial(config, name, began, evaluations)
    write_trial(config, "d", 4.0, {8: 1.0}, end={"reason": "the loss is no longer finite"})
    trials = read_trials(config)
    best = choose_trial(trials, config.tune)
    assert best
    assert best.name == "b"
    highest = choose_trial(trials, build_config({"tune": {"metric": "pck_0.1"}}).tune)  # PCK is maximized
    assert highest
    assert highest.name == "a"
    assert choose_trial(trials[3:], config.tune) is None
    assert choose_trial([replace(trials[0], value=None)], config.tune) is None


@pytest.mark.parametrize(
    ("section", "other_value", "is_chosen"),
    [
        ({"min_gain": 0}, 20.0, False),
        ({"min_gain": 0}, 19.9, True),
        ({}, 19.1, False),  # the default is 5 %
        ({}, 18.9, True),
        ({"metric": "pck_0.1", "min_gain": 0.2}, 0.59, False),  # the error 1 - 0.5 must fall below 0.4
        ({"metric": "pck_0.1", "min_gain": 0.2}, 0.61, True),
    ],
)
def test_other_settings_replace_the_configs_own_only_if_they_are_clearly_better(
    config: Config, section: dict[str, Any], other_value: float, is_chosen: bool
) -> None:
    own_value = 0.5 if "metric" in section else 20.0
    section_tune = build_config({"tune": section}).tune
    write_trial(config, "trial-000", 5.0, {8: own_value})
    write_trial(config, "trial-001", 1.0, {8: other_value})
    chosen = choose_trial(read_trials(config), section_tune)
    assert chosen
    assert chosen.name == ("trial-001" if is_chosen else "trial-000")


def test_a_trial_has_a_value_at_its_evaluations(config: Config) -> None:
    write_trial(config, "trial-000", 5.0, {4: 35.0, 8: 20.0})
    (trial,) = read_trials(config)
    assert [trial.value_at(iterations, "rmse") for iterations in (4, 8, 9)] == [35.0, 20.0, None]


def test_the_tables_list_evaluated_and_failed_trials_in_the_order_of_their_start(
    config: Config, tmp_path: Path
) -> None:
    write_trial(config, "late", 3.0, {2: 50.0, 4: 40.0})
    write_trial(config, "early", 1.0, {2: 60.0, 4: 45.0, 8: 30.0})
    write_trial(config, "broken", 2.0, {2: 90.0}, end={"reason": "the loss is no longer finite"})
    write_trial(config, "nothing", 4.0, {})
    write_search_log(config, ("late", 2, 50.0), ("late", 4, 40.0))
    trials = read_trials(config)
    assert [(trial.name, trial.status, trial.iterations, trial.value) for trial in trials] == [
        ("early", "finished", 8, 30.0),
        ("broken", "failed", 2, None),
        ("late", "stopped", 4, 40.0),
    ]
    write_tables(config, trials)
    table = pd.read_csv(tmp_path / "tune" / "trials.csv")
    assert list(table.seconds.dropna()) == [1.0]
    assert table.reason[1] == "the loss is no longer finite"
    parquet = pq.read_table(tmp_path / "tune" / "trials.parquet")
    assert list(table) == parquet.column_names[: len(table.columns)]
    assert parquet.column_names[len(table.columns) :] == ["began", "params", "evaluations"]
    assert json.loads(parquet["params"][0].as_py())["base_lr"] == 0.001
    assert [evaluation["rmse"] for evaluation in parquet["evaluations"][0].as_py()] == [60.0, 45.0, 30.0]
    assert set(parquet["evaluations"][0].as_py()[0]) == {"iteration", *METRICS}


def test_a_running_trial_is_not_failed_while_ray_may_retry_it(config: Config) -> None:
    write_trial(config, "trial-000", 1.0, {2: 50.0})
    write_trial(config, "trial-001", 2.0, {2: 50.0}, end={"reason": "a node died", "lasting": False})
    write_trial(config, "trial-002", 3.0, {})
    write_trial(config, "trial-003", 4.0, {2: 9.0}, end={"reason": "the loss"})
    names = [f"trial-{number:03d}" for number in range(4)]
    assert [trial.status for trial in read_trials(config, running_names=names)] == ["running"] * 3 + ["failed"]
    assert [trial.status for trial in read_trials(config)] == ["stopped", "failed", "failed"]
