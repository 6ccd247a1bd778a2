"""Fixtures of the store's tests."""

from typing import Any

import pytest

from kp_ray.config.schema import Config
from kp_ray.store.plan import make_plan
from kp_ray.store.write import write_store
from tests.helpers.data import tiny_config


@pytest.fixture(scope="session")
def store_config(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Config:
    """Write the store of the tiny config and return the config; tests must not change the store."""
    config = tiny_config(sample_data, tmp_path_factory.mktemp("written"))
    write_store(make_plan(config))
    return config
