"""Fixtures: configs of searches, each with its own run folder and a finished store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kp_ray.config.schema import Config
from kp_ray.store.plan import make_plan
from kp_ray.store.write import write_store
from tests.helpers.data import tiny_config
from tests.helpers.stores import write_small_store


@pytest.fixture
def make_config(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """Return a function that builds a tiny config with the passed sections, and writes its store without a cluster.

    The store has three variants for validation, and six for training, three of which are of `Original`.
    """

    def make(**sections: Any) -> Config:
        run_dir = tmp_path_factory.mktemp("run")
        write_small_store(run_dir / "store")
        sections["train"] = {"ims_per_batch": 2, **sections.get("train", {})}
        return tiny_config(sample_data, run_dir, **sections)

    return make


@pytest.fixture(scope="session")
def search_store(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """Augment the sample images once; return the store's folder."""
    config = tiny_config(sample_data, tmp_path_factory.mktemp("store_run"))
    write_store(make_plan(config))
    return Path(config.path("store"))


@pytest.fixture(scope="session")
def make_search_config(
    sample_data: dict[str, Any], search_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Config]:
    """Return a function that builds a tiny config with a store of the augmented sample images."""

    def make(**sections: Any) -> Config:
        run_dir = tmp_path_factory.mktemp("run")
        (run_dir / "store").symlink_to(search_store)
        return tiny_config(sample_data, run_dir, **sections)

    return make
