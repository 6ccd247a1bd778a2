"""Fixtures: run folders with a store and two members with random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kp_ray.config.schema import Config
from kp_ray.keypoints import DACON24
from kp_ray.models.presets import build_cfg, build_model
from kp_ray.models.weights import save_model
from kp_ray.prediction.run import predict
from kp_ray.store.plan import make_plan
from kp_ray.store.write import write_store
from tests.helpers.data import tiny_config
from tests.helpers.linked_runs import MEMBERS, NUM_LINKS, link_run


@pytest.fixture(scope="session")
def run_with_members(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Write two members with random weights into a run folder; needs no cluster."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(
        sample_data, folder, train={"members": MEMBERS}, split={"fraction": 0.6}, predict={"batch_size": 2}
    )
    cfg = build_cfg(config, DACON24, "cpu")
    for member in config.train.members:
        torch.manual_seed(member.seed)
        save_model(build_model(cfg), cfg, config.member_dir(member.name), DACON24)
    return config


@pytest.fixture(scope="session")
def run_with_store(run_with_members: Config, ray_cluster: None) -> Config:
    """Write a store of 4 training images and two validation scenes into the run folder of `run_with_members`."""
    write_store(make_plan(run_with_members))
    return run_with_members


@pytest.fixture(scope="session")
def predicted_run(run_with_store: Config) -> Config:
    """Predict the 10 test images in the run folder of `run_with_store`."""
    predict(run_with_store)
    return run_with_store


@pytest.fixture(scope="session")
def linked_data(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Link every test image under `NUM_LINKS` names; return the `data` settings with which the links are predicted."""
    folder = tmp_path_factory.mktemp("linked")
    for number in range(NUM_LINKS):
        for path in Path(sample_data["test_images"]).iterdir():
            (folder / f"{number}{path.name}").symlink_to(path)
    return {"test_images": str(folder), "sample_submission": None, "truth": None}


@pytest.fixture(scope="session")
def expected_predictions(
    run_with_store: Config, linked_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """Predict the images of `linked_data` without interruption; return the content of `predictions.parquet`."""
    config = link_run(run_with_store, tmp_path_factory.mktemp("expected"), linked_data, batch_size=1)
    predict(config)
    return Path(config.path("predictions.parquet")).read_bytes()
