"""Share a run folder with a store of two folds and, for each fold, a member with random weights; needs no cluster."""

from typing import Any

import pytest
import torch

from kp_ray.config.schema import Config
from kp_ray.keypoints import DACON24
from kp_ray.models.presets import build_cfg, build_model
from kp_ray.models.weights import save_model
from kp_ray.store.plan import make_plan
from kp_ray.training.settings import record_settings
from tests.helpers.data import tiny_config
from tests.helpers.linked_runs import MEMBERS
from tests.helpers.stores import write_planned_store


@pytest.fixture(scope="session")
def fold_config(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Write the run folder and return its config."""
    folder = tmp_path_factory.mktemp("folds")
    config = tiny_config(sample_data, folder, train={"members": MEMBERS}, split={"folds": 2, "fraction": 0.1})
    write_planned_store(make_plan(config))
    cfg = build_cfg(config, DACON24, "cpu")
    for member in config.train.members:
        torch.manual_seed(member.seed)
        record_settings(config, member)
        save_model(build_model(cfg), cfg, config.member_dir(member.name), DACON24)
    return config
