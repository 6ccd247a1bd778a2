"""Points of the search space applied to a config."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kp_ray.config.load import build_config
from kp_ray.tuning.apply import best_config, trial_config
from kp_ray.tuning.space import Point, to_point

DACON = build_config({"preset": "dacon"})
SETS = {"own": None, "crops": ("RandomCrop_1",)}

shares = st.floats(0, 1)
points = st.builds(
    Point, base_lr=st.floats(1e-5, 1), weight_decay=st.floats(1e-6, 1), warmup=shares, num_steps=st.integers(0, 8),
    first_step=shares, step_spacing=shares, gamma=st.floats(0.01, 1), recipes=st.sampled_from(list(SETS)),
)  # fmt: skip


@settings(deadline=None)  # a busy machine takes longer than the default of 200 ms
@given(point=points, max_iter=st.integers(1, 20000))
def test_the_steps_and_the_warmup_of_any_point_lie_inside_the_trial(point: Point, max_iter: int) -> None:
    config = build_config({"preset": "dacon", "tune": {"max_iter": max_iter}})
    trial = trial_config(config, point, SETS)
    steps = trial.train.steps
    assert list(steps) == sorted(set(steps))
    assert all(0 < step < max_iter for step in steps)
    assert len(steps) <= point.num_steps
    assert trial.train.warmup_iters <= max_iter
    assert trial.train.eval_period == max(1, max_iter // 8)
    assert trial.train.recipes == (SETS[point.recipes] or DACON.train.recipes)
    assert (trial.train.members, trial.model) == (DACON.train.members, DACON.model)


def test_fusion_weights_follow_the_members_to_their_new_names() -> None:
    members, weights = [{"name": "a"}, {"name": "b"}], {"a": 2, "b": {"nose": 0.5}}
    config = build_config(
        {"preset": "dacon", "train": {"members": members}, "predict": {"weights": weights}, "tune": {"recipes": {}}}
    )
    best = best_config(config, to_point(config.train, config))
    assert best.predict.weights == {"a-tuned": 2, "b-tuned": {"nose": 0.5}}
    assert [member.name for member in best.train.members] == ["a-tuned", "b-tuned"]


def test_a_set_of_recipes_replaces_the_recipes_of_every_member() -> None:
    members = [{"name": "a", "recipes": ["Original"]}, {"name": "b"}]
    config = build_config({"preset": "dacon", "train": {"members": members}})
    own = to_point(config.train, config)
    assert trial_config(config, own, SETS).train.members == config.train.members
    crops = trial_config(config, Point(**{**vars(own), "recipes": "crops"}), SETS).train
    assert (crops.recipes, [member.recipes for member in crops.members]) == (("RandomCrop_1",), [None, None])
