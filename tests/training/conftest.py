"""Share a store and a trained member among the tests of training, and make new run folders that use the store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kp_ray.config.schema import Config
from kp_ray.store.plan import make_plan
from kp_ray.store.write import write_store
from kp_ray.training.run import train
from tests.helpers.data import tiny_config
from tests.helpers.training import TWO_WORKERS, TrainedMember


@pytest.fixture(scope="session")
def training_store(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """Write a store of the sample data; return its folder."""
    config = tiny_config(sample_data, tmp_path_factory.mktemp("stored"))
    write_store(make_plan(config))
    return Path(config.path("store"))


@pytest.fixture(scope="session")
def make_config(
    sample_data: dict[str, Any], training_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Config]:
    """Return a function that makes a run folder with the store, and builds its `tiny_config` with changed sections."""

    def make(**sections: Any) -> Config:
        run_dir = tmp_path_factory.mktemp("run")
        (run_dir / "store").symlink_to(training_store)
        return tiny_config(sample_data, run_dir, **sections)

    return make


@pytest.fixture(scope="session")
def trained_member(make_config: Callable[..., Config]) -> TrainedMember:
    """Train a member with two workers, without a stop."""
    config = make_config(train=TWO_WORKERS)
    (member,) = train(config).members
    assert member.result is not None
    return TrainedMember(config, member.result)
