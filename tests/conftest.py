"""One Ray for all tests that need one, and tiny data made once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # clusters of these tests are on loopback and short-lived
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "180")  # two test processes share the cores
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")

from kp_ray.config.schema import Config
from kp_ray.synthetic.dataset import make_sample
from tests.helpers.data import tiny_config

settings.register_profile("siege", max_examples=12_000)  # of `make test-faults`


LONGEST_FIRST = ("test_jobs.py", "test_augment_faults.py", "test_train.py", "test_predict.py", "test_pipeline.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes go first, so that neither of two processes ends with one while the other is idle."""
    rank = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with 4 logical CPUs, whatever the machine has."""
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=True, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """12 labelled and 10 test frames of 320x180, with the paths of a config's data section."""
    folder = tmp_path_factory.mktemp("sample")
    made = make_sample(str(folder), num_images=12, width=320, height=180, seed=3, num_processes=1)
    keys = ("annotations", "images", "test_images", "sample_submission", "truth")
    return {key: made[key] for key in keys}


@pytest.fixture
def tiny(sample_data: dict[str, Any], tmp_path: Path) -> Config:
    """A config over the sample that does every stage within seconds."""
    return tiny_config(sample_data, tmp_path / "run")
