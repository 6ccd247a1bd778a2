"""The plots of a search, and the importance of its parameters."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from kp_ray.config.load import build_config
from kp_ray.tuning.plots import parameter_importance, write_plots
from kp_ray.tuning.space import Point, to_point
from kp_ray.tuning.trials import read_trials
from tests.helpers.searches import write_trial

CONFIG = build_config({"tune": {"recipes": {}}})


def make_results(count: int) -> tuple[list[Point], list[float]]:
    """Make random points, and results that depend mostly on the learning rate and a little on flips."""
    rng = np.random.default_rng(0)
    own_point = to_point(CONFIG.train, CONFIG)
    points = [
        replace(
            own_point,
            base_lr=10 ** rng.uniform(-4, -2),
            warmup=rng.uniform(0, 0.2),
            flip=bool(rng.integers(2)),
            schedule=("multistep", "cosine")[rng.integers(2)],
        )
        for _ in range(count)
    ]
    return points, [(math.log10(point.base_lr) + 3) ** 2 + 0.5 * point.flip for point in points]


def test_importance_ranks_parameters_by_their_effect() -> None:
    points, values = make_results(100)
    shares = parameter_importance(CONFIG, points, values)
    assert list(shares)[:2] == ["base_lr", "flip"]
    assert set(shares) == {"base_lr", "flip", "warmup", "schedule"}  # no other parameter varies
    assert math.isclose(sum(shares.values()), 1)
    assert shares["base_lr"] > 0.5 > 0.1 > shares["schedule"]
    assert parameter_importance(CONFIG, points, values) == shares


def test_importance_is_empty_for_few_or_equal_results() -> None:
    points, values = make_results(8)
    assert parameter_importance(CONFIG, points[:4], values[:4]) == {}
    assert parameter_importance(CONFIG, points, [1.0] * 8) == {}
    assert parameter_importance(CONFIG, points, [1.0] + [2.0] * 7) == {}  # the median is 2.0: all count as good
    assert parameter_importance(CONFIG, [points[0]] * 8, values) == {}
    assert parameter_importance(CONFIG, [], []) == {}


def test_every_plot_is_written_for_one_and_for_many_trials(tmp_path: Path) -> None:
    for count in (1, 6):
        config = build_config({"run_dir": str(tmp_path / str(count)), "tune": {"recipes": {}}})
        for number, (point, value) in enumerate(zip(*make_results(count), strict=True)):
            write_trial(config, f"trial-{number:03d}", float(number), {2: value + 1, 8: value}, params=point)
        paths = write_plots(config, read_trials(config))
        assert [Path(path).stem for path in paths] == ["learning_rate", "curves", "parallel", "importance"]
        for path in paths:
            assert Path(path).read_bytes().lstrip().startswith(b"<?xml")
        assert ("Importance unknown" in Path(paths[-1]).read_text()) == (count == 1)
