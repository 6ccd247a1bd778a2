"""A real search on the tiny sample: trials are training runs, what is left behind, and going on after a stop."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from kp_ray.config import InputError, build, load
from kp_ray.store import plan, write_store
from kp_ray.tune import FIRST_STEP, LAST_STEP, apply_params, published_point, steps_of, tune


@given(num_steps=st.integers(0, 8), max_iter=st.integers(20, 20000))
def test_steps_are_spread_between_the_published_first_and_last(num_steps: int, max_iter: int) -> None:
    steps = steps_of(num_steps, max_iter)
    assert len(steps) == num_steps
    assert steps == sorted(set(steps))
    if num_steps > 1:
        assert (steps[0], steps[-1]) == (round(FIRST_STEP * max_iter), round(LAST_STEP * max_iter))


def test_the_published_schedule_is_the_first_trial_and_comes_back_unchanged() -> None:
    config = build({"preset": "dacon"})
    point = published_point(config)
    assert point == {"base_lr": 0.001, "gamma": 0.8, "num_steps": 6, "schedule": "multistep"}
    assert apply_params(config, point, max_iter=10000).train == config.train


@pytest.mark.usefixtures("ray_cluster")
def test_a_search_leaves_its_trials_and_a_config_that_train_takes(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run")
    write_store(plan(config))
    seen: list[tuple[str, int]] = []
    result = tune(config, lambda trial, iteration, metrics: seen.append((trial, iteration)))
    table = pd.read_csv(config.path("tune", "trials.csv"))
    assert len(table) == result["trials"] == 2
    assert set(table.status) <= {"finished", "stopped"}
    assert len({trial for trial, _ in seen}) == 2
    assert table.rmse.min() == pytest.approx(result["best"])
    parquet = pd.read_parquet(config.path("tune", "trials.parquet"))
    pd.testing.assert_frame_equal(parquet.drop(columns="reason"), table.drop(columns="reason"), check_dtype=False)
    best = load(result["config"])
    assert best.train.base_lr == pytest.approx(result["params"]["base_lr"])
    assert best.train.max_iter == config.train.max_iter
    assert [member.name for member in best.train.members] == ["a-tuned"]
    again = tune(config)  # a finished search is not repeated
    assert again["best"] == pytest.approx(result["best"])
    assert len(pd.read_csv(config.path("tune", "trials.csv"))) == 2


@pytest.mark.usefixtures("ray_cluster")
def test_a_search_without_validation_rows_is_refused(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run", split={"fraction": 0})
    write_store(plan(config))
    with pytest.raises(InputError, match=r"set split\.fraction above 0"):
        tune(config)
