"""Fixtures: run folders with a store and two members of random weights."""

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
from tests.helpers.linked_runs import MEMBERS, NUM_COPIES, link_run


@pytest.fixture(scope="session")
def run_without_store(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Write two members of random weights into a run folder without a store; needs no cluster."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(
        sample_data, folder, train={"members": MEMBERS}, split={"fraction": 0.6}, predict={"batch_size": 2}
    )
    cfg = build_cfg(config, DACON24, "cpu")
    for member in config.train.members:
        torch.manual_seed(member.seed)
        save_model(build_model(cfg), cfg, config.member_dir(member.name), DACON24)
    return config


@pytest.fixture(scope="session")
def trained_run(run_without_store: Config, ray_cluster: None) -> Config:
    """Write a store with two validation scenes into the run folder of `run_without_store`."""
    write_store(make_plan(run_without_store))
    return run_without_store


@pytest.fixture(scope="session")
def predicted_run(trained_run: Config) -> Config:
    """Predict the test images in the run folder of `trained_run`."""
    predict(trained_run)
    return trained_run


@pytest.fixture(scope="session")
def linked_data(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Link every test image under `NUM_COPIES` names; return the changes of the `data` section to predict the links."""
    folder = tmp_path_factory.mktemp("linked")
    for copy in range(NUM_COPIES):
        for path in Path(sample_data["test_images"]).iterdir():
            (folder / f"{copy}{path.name}").symlink_to(path)
    return {"test_images": str(folder), "sample_submission": None, "truth": None}


@pytest.fixture(scope="session")
def expected_predictions(
    trained_run: Config, linked_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """Predict the images of `linked_data` without interruption; return the content of `predictions.parquet`."""
    config = link_run(trained_run, tmp_path_factory.mktemp("expected"), linked_data, batch_size=1)
    predict(config)
    return Path(config.path("predictions.parquet")).read_bytes()
