"""The search space: its points and their order."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kp_ray.config.load import build_config
from kp_ray.config.training import TrainConfig
from kp_ray.config.tuning import TuneConfig
from kp_ray.errors import ConfigError
from kp_ray.tuning.apply import apply_point, to_steps
from kp_ray.tuning.space import (
    PARAMETERS,
    Point,
    add_result,
    build_recipe_sets,
    build_space,
    build_study,
    first_points,
    to_point,
)
from tests.helpers.searches import FIXED_RANGES, OWN_SET, points_of_any_schedule
from tests.helpers.stores import write_small_store

DACON = build_config({"preset": "dacon"})


def test_own_settings_come_first_and_the_published_schedule_second() -> None:
    point = first_points(DACON, OWN_SET)[0]
    assert apply_point(DACON, point, OWN_SET, max_iter=10000).train == DACON.train
    demo = build_config({"preset": "demo", "tune": TuneConfig().model_dump(mode="json")})
    own_point, published_point = first_points(demo, OWN_SET)
    assert (own_point.schedule, own_point.base_lr) == ("cosine", 0.003)
    assert to_steps(published_point, 10000) == [3000, 4000, 5000, 6000, 7000, 8000]
    assert replace(published_point, flip=True) == replace(point, flip=True)


@given(points_of_any_schedule(st.just("own")))
def test_settings_become_a_point_inside_the_space(point: Point) -> None:
    config = build_config(
        {"tune": {"base_lr": [1e-5, 1], "weight_decay": [1e-6, 1], "gamma": [0.01, 1], "num_steps": [0, 8]}}
    )
    space = build_space(config, OWN_SET)
    assert tuple(space) == PARAMETERS
    for train in (apply_point(config, point, OWN_SET, config.train.max_iter).train, TrainConfig()):
        train_point = to_point(train, config)
        add_result(build_study("min"), space, train_point, 0.0)  # Optuna refuses a value outside its range
        assert train_point.base_lr == train.base_lr


def test_the_points_of_the_config_follow_its_own_settings_in_order_without_repetition() -> None:
    config = build_config(
        {"preset": "dacon", "tune": {"num_trials": 4, "points": [{"base_lr": "2e-3"}, {"gamma": 0.8}, {"flip": False}]}}
    )
    points = first_points(config, OWN_SET)
    # The published schedule and gamma 0.8 are the config's own settings, so they add no point.
    assert [(point.base_lr, point.flip) for point in points] == [(0.001, True), (0.002, True), (0.001, False)]


def test_steps_in_any_order_become_the_same_point() -> None:
    points = [to_point(TrainConfig(steps=steps), DACON) for steps in ((3000, 4000, 5000), (5000, 3000, 4000))]
    assert (points[0].first_step, points[0].step_spacing) == pytest.approx((0.3, 0.1))
    assert points[0] == points[1]


@pytest.mark.parametrize(
    ("train_recipes", "member_recipes", "own", "upright"),
    [
        (None, None, None, ("Original",)),
        (["Original"], ["Original", "Rotate45_CenterCrop"], ("Original", "Rotate45_CenterCrop"), ("Original",)),
        (None, ["Original"], ("Original",), None),
        (["Rotate45_CenterCrop"], None, ("Rotate45_CenterCrop",), None),
    ],
)
def test_the_own_set_has_the_recipes_of_the_first_member_and_the_upright_set_those_that_do_not_rotate(
    train_recipes: list[str] | None,
    member_recipes: list[str] | None,
    own: tuple[str, ...] | None,
    upright: tuple[str, ...] | None,
    tmp_path: Path,
) -> None:
    members = [{"name": "a", "recipes": member_recipes}, {"name": "b"}]
    config = build_config({"run_dir": str(tmp_path), "train": {"recipes": train_recipes, "members": members}})
    write_small_store(tmp_path / "store")
    assert build_recipe_sets(config) == {"own": own} | ({"upright": upright} if upright else {})


def test_own_settings_outside_the_space_replace_no_point_inside() -> None:
    section = {"num_trials": 16, "sampler": "grid", **FIXED_RANGES, "base_lr": [1e-3, 1e-2]}
    config = build_config({"preset": "dacon", "train": {"base_lr": 0.0005}, "tune": section})
    points = first_points(config, OWN_SET)
    assert points[0].base_lr == 0.001, "the nearest point of the space; the trial itself trains with 0.0005"
    for schedule in config.tune.schedules:
        lrs = sorted(round(point.base_lr, 5) for point in points[1:] if point.schedule == schedule)
        assert {0.001, 0.00316, 0.01} <= set(lrs)


def test_a_grid_has_every_combination_once() -> None:
    section = {"num_trials": 16, "sampler": "grid", **FIXED_RANGES, "base_lr": [1e-4, 1e-2], "gamma": [0.5, 0.8]}
    points = first_points(build_config({"preset": "dacon", "tune": section}), OWN_SET)
    assert len(points) == len(set(points)) == 3 + 9  # gamma does not matter to a cosine schedule
    assert points[0].gamma == 0.8
    assert sorted({round(point.base_lr, 6) for point in points}) == [1e-4, 1e-3, 1e-2]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"points": [{"bse_lr": 1}]}, r"tune\.points\.0: bse_lr is not searched: choose from base_lr, "),
        ({"points": [{}, {"base_lr": 1}]}, r"tune\.points\.1: base_lr is outside its range .*0\.0001.* \(got 1\): "),
        ({"points": [{"base_lr": "x"}]}, r"tune\.points\.0: base_lr is outside its range .* \(got x\)"),
        ({"points": [{"num_steps": 2.5}]}, r"num_steps is outside its range .* \(got 2\.5\)"),
        ({"points": [{"recipes": "all"}]}, r"recipes is outside its range .* \(got all\)"),
        (
            {"num_trials": 2, "points": [{"base_lr": 0.002}, {"base_lr": 0.005}]},
            r"tune\.num_trials: leaves out 1 of tune\.points, .* \(got 2\): raise it to 3, or remove",
        ),
        ({"sampler": "grid"}, r"tune\.num_trials: is less than the \d+ points of the grid \(got 16\): raise it"),
        ({"flips": []}, "flips: the list is empty: name at least one"),
        ({"gamma": [0.5, 1.5]}, r"tune\.gamma: is more than 1 \(got 1\.5\)"),
        ({"weight_decay": [0, 1]}, r"tune\.weight_decay: not a range .* with 0 < low"),
        ({"metric": "rsme"}, r"tune\.metric: Input should be 'rmse', "),
        (
            {"recipes": {"own": ["Original"]}},
            "recipes: the name `own` stands for the first member's recipes: rename this set",
        ),
    ],
)
def test_the_error_about_a_wrong_setting_names_the_setting(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        first_points(build_config({"tune": section}), OWN_SET)
