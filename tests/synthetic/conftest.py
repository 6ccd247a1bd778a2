"""A generated data set and planned clips, which several test modules share."""

import pytest

from kp_ray.synthetic.dataset import SampleSummary, make_sample, plan_clips
from kp_ray.synthetic.motion import SyntheticClip
from tests.helpers.synthetic import SIZE


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleSummary:
    """Generate 20 labelled and 4 test frames with seed 3."""
    folder = tmp_path_factory.mktemp("sample")
    return make_sample(str(folder), num_images=20, num_test=4, seed=3, num_processes=1, **SIZE)


@pytest.fixture(scope="session")
def clips() -> list[SyntheticClip]:
    """Plan the clips of 96 frames with seed 11."""
    return plan_clips("train", 96, 11)
