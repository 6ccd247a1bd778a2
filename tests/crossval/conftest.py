"""Share run folders with a store of two folds, and members with random weights; needs no cluster."""

import shutil
from typing import Any

import pytest
import torch

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.crossval.run import make_tasks, predict_folds
from kp_ray.keypoints import DACON24
from kp_ray.models.presets import build_cfg, build_model
from kp_ray.models.weights import save_model
from kp_ray.store.plan import make_plan
from kp_ray.training.settings import record_settings
from tests.helpers.data import tiny_config
from tests.helpers.folds import predict_in_process
from tests.helpers.linked_runs import MEMBERS
from tests.helpers.stores import write_planned_store


def write_members(config: Config) -> None:
    """Write the members of a config with random weights."""
    cfg = build_cfg(config, DACON24, "cpu")
    for member in config.train.members:
        torch.manual_seed(member.seed)
        record_settings(config, member)
        save_model(build_model(cfg), cfg, config.member_dir(member.name), DACON24)


@pytest.fixture(scope="session")
def fold_config(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Write a run folder with one member per fold and return its config."""
    folder = tmp_path_factory.mktemp("folds")
    config = tiny_config(sample_data, folder, train={"members": MEMBERS}, split={"folds": 2, "fraction": 0.1})
    write_planned_store(make_plan(config))
    write_members(config)
    return config


@pytest.fixture(scope="session")
def predicted_folds(fold_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Predict both folds in a run folder where the members a and c hold out fold 0, and b fold 1; tests copy it."""
    folder = tmp_path_factory.mktemp("predicted")
    shutil.copytree(fold_config.path("store"), folder / "store")
    values = fold_config.to_dict()
    train = {**values["train"], "members": [*MEMBERS, {"name": "c", "seed": 3}]}
    config = build_config({**values, "run_dir": str(folder), "train": train})
    write_members(config)
    for _, task in make_tasks(config):
        predict_in_process(task)
    assert predict_folds(config) == 0
    return config
