"""One store for all tests of the search, and configs with run folders of their own over it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kp_ray.config.schema import Config
from kp_ray.store.plan import plan
from kp_ray.store.write import write_store
from tests.helpers.data import tiny_config


@pytest.fixture(scope="session")
def search_store(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """The folder of a finished store over the sample."""
    config = tiny_config(sample_data, tmp_path_factory.mktemp("stored"))
    write_store(plan(config))
    return Path(config.path("store"))


@pytest.fixture(scope="session")
def make_config(
    sample_data: dict[str, Any], search_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Config]:
    """A function that makes a tiny config, sections replaced by keyword, in a new run folder that has the store."""

    def make(**sections: Any) -> Config:
        run_dir = tmp_path_factory.mktemp("run")
        (run_dir / "store").symlink_to(search_store)
        return tiny_config(sample_data, run_dir, **sections)

    return make
