"""Bootstrap intervals over scenes."""

import numpy as np
import pytest

from kp_ray.crossval.score import bootstrap_intervals


def test_whole_scenes_are_resampled() -> None:
    values = np.array([0.0, 0.0, 10.0, 10.0])
    ((low, high),) = bootstrap_intervals(lambda rows: [values[rows].mean()], ["x", "x", "y", "y"])
    assert (low, high) == (0.0, 10.0), "a sample can hold a single scene"
    assert bootstrap_intervals(lambda rows: [1.0, 2.0], ["x", "x"]) == [None, None]


def test_the_interval_of_many_scenes_is_1_96_standard_errors_to_each_side() -> None:
    values = np.random.default_rng(0).normal(0, 1, 400)
    ((low, high),) = bootstrap_intervals(lambda rows: [values[rows].mean()], [str(scene) for scene in range(400)])
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
