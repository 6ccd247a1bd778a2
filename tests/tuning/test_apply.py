"""Points of the search space applied to a config."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from kp_ray.config.load import build_config
from kp_ray.tuning.apply import train_fields, trial_config
from kp_ray.tuning.space import Point, to_point
from tests.helpers.searches import points_of_any_schedule

DACON = build_config({"preset": "dacon"})
RECIPE_SETS = {"own": None, "crops": ("RandomCrop_1",)}

points = points_of_any_schedule(st.sampled_from(list(RECIPE_SETS)))


@given(point=points, max_iter=st.integers(1, 20000))
def test_the_steps_and_the_warmup_of_any_point_lie_inside_the_trial(point: Point, max_iter: int) -> None:
    search_config = build_config({"preset": "dacon", "tune": {"max_iter": max_iter}})
    config = trial_config(search_config, point, RECIPE_SETS)
    steps = config.train.steps
    if point.schedule == "multistep":
        assert list(steps) == sorted(set(steps))
        assert all(0 < step < max_iter for step in steps)
        assert len(steps) <= point.num_steps
    else:  # a cosine schedule ignores steps and gamma
        assert (steps, config.train.gamma) == (DACON.train.steps, DACON.train.gamma)
    assert config.train.warmup_iters <= max_iter
    assert config.train.eval_period == max(1, max_iter // 8)
    assert config.train.recipes == (RECIPE_SETS[point.recipes] or DACON.train.recipes)
    assert (config.train.members, config.model) == (DACON.train.members, DACON.model)


def test_trial_0_keeps_the_configs_own_settings_even_outside_the_search_space() -> None:
    train = {"base_lr": 0.5, "steps": [1000, 1100, 7000, 10000], "warmup_iters": 50, "flip": False}
    config = build_config({"preset": "dacon", "train": train, "tune": {"flips": [True], "max_iter": 10000}})
    point = to_point(config.train, config)
    own_train = trial_config(config, point, RECIPE_SETS, is_own_trial=True).train
    assert own_train == config.train.model_copy(update={"eval_period": 1250})
    assert trial_config(config, point, RECIPE_SETS).train.base_lr == 0.01  # the end of tune.base_lr


@given(max_iter=st.integers(1, 3000))
def test_a_short_trial_0_scales_the_configs_own_schedule(max_iter: int) -> None:
    config = build_config({"preset": "dacon", "tune": {"max_iter": max_iter}})
    own_train = trial_config(config, to_point(config.train, config), RECIPE_SETS, is_own_trial=True).train
    # The preset's warm-up takes 1/10 of the iterations; its steps are at 3/10 to 8/10.
    assert (own_train.max_iter, own_train.warmup_iters) == (max_iter, round(max_iter / 10))
    steps = {round(tenths * max_iter / 10) for tenths in range(3, 9)}
    assert list(own_train.steps) == sorted(step for step in steps if 0 < step < max_iter)


def test_train_fields_holds_only_the_fields_that_a_point_changes() -> None:
    config = build_config({"preset": "dacon", "tune": {"recipes": {"crops": ["RandomCrop_1"]}}})
    own_point = to_point(config.train, config)
    assert train_fields(config, own_point) == {}
    cosine_point = replace(own_point, base_lr=0.002, schedule="cosine")
    assert train_fields(config, cosine_point) == {"base_lr": 0.002, "schedule": "cosine"}
    crops_point = replace(own_point, num_steps=2, recipes="crops")
    assert train_fields(config, crops_point) == {"steps": [3000, 4000], "recipes": ["RandomCrop_1"]}


def test_a_set_of_recipes_replaces_the_recipes_of_every_member() -> None:
    members = [{"name": "a", "recipes": ["Original"]}, {"name": "b"}]
    config = build_config({"preset": "dacon", "train": {"members": members}})
    own_point = to_point(config.train, config)
    assert trial_config(config, own_point, RECIPE_SETS).train.members == config.train.members
    train = trial_config(config, replace(own_point, recipes="crops"), RECIPE_SETS).train
    assert (train.recipes, [member.recipes for member in train.members]) == (("RandomCrop_1",), [None, None])
