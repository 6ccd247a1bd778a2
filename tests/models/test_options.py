"""Detectron2's options: each one takes effect in kp_ray or is refused with what to do instead."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yacs.config
from detectron2.config import get_cfg
from detectron2.solver import build_lr_scheduler

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError
from kp_ray.keypoints import DACON24
from kp_ray.models.inputs import to_dataset_dict
from kp_ray.models.options import (
    ALLOWED_VALUES,
    DERIVED_OPTIONS,
    HONORED_OPTIONS,
    REFUSED_OPTIONS,
    find_entry,
    iter_options,
)
from kp_ray.models.presets import build_cfg, build_model, check_network, derive_options
from kp_ray.training.optimizer import build_optimizer
from kp_ray.training.stage import TrainStage
from tests.helpers.data import tiny_config
from tests.helpers.rows import random_row

OPTIONS = sorted(iter_options(get_cfg()))
DERIVED_OR_REFUSED = [name for name in OPTIONS if name in DERIVED_OPTIONS or find_entry(name, REFUSED_OPTIONS)]
READ_ELSEWHERE = {"CUDNN_BENCHMARK", "FLOAT32_PRECISION", "DATALOADER.ASPECT_RATIO_GROUPING"}
"""Honored options that workers and their input read: test_worker, test_dataloader and test_loop test their effect."""


def default_value(name: str) -> Any:
    """Return the value of an option in Detectron2's default config."""
    value = get_cfg()
    for part in name.split("."):
        value = value[part]
    return value


def config_with(cfg: dict[str, Any], **train: Any) -> Config:
    """Build a config of the small preset with options of Detectron2."""
    return build_config({"model": {"preset": "r18", "cfg": cfg}, "train": train})


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_detectron2_is_derived_refused_limited_or_honored(name: str) -> None:
    is_refused = bool(find_entry(name, REFUSED_OPTIONS))
    is_honored = bool(find_entry(name, HONORED_OPTIONS)) and not is_refused and name not in DERIVED_OPTIONS
    assert [name in DERIVED_OPTIONS, is_refused, name in ALLOWED_VALUES, is_honored].count(True) == 1


def test_the_tables_name_only_options_that_detectron2_has() -> None:
    entries = {*DERIVED_OPTIONS, *REFUSED_OPTIONS, *ALLOWED_VALUES, *HONORED_OPTIONS} - {"FLOAT32_PRECISION"}
    assert {entry for entry in entries if not any(find_entry(name, (entry,)) for name in OPTIONS)} == set()


def test_the_derived_options_are_those_that_kp_ray_sets() -> None:
    assert derive_options(Config(), DACON24, "cpu").keys() == DERIVED_OPTIONS.keys()


@pytest.mark.parametrize("name", DERIVED_OR_REFUSED)
def test_an_option_that_would_have_no_effect_is_refused_before_a_cluster_starts(tmp_path: Path, name: str) -> None:
    config = tiny_config({}, tmp_path, model={"cfg": {name: default_value(name)}})
    with pytest.raises(ConfigError, match=rf"^model\.cfg\.{name}: .* \(got .*\): (set|remove|list) "):
        TrainStage().check(config)


@pytest.mark.parametrize(
    ("options", "train", "key"),
    [
        ({"INPUT.FORMAT": "L"}, {}, "INPUT.FORMAT"),
        ({"MODEL.META_ARCHITECTURE": "RetinaNet"}, {}, "MODEL.META_ARCHITECTURE"),
        ({"MODEL.ROI_HEADS.NAME": "CascadeROIHeads"}, {}, "MODEL.ROI_HEADS.NAME"),
        ({"INPUT.MIN_SIZE_TRAIN_SAMPLING": "range"}, {}, "INPUT.MIN_SIZE_TRAIN"),
        ({"INPUT.MIN_SIZE_TRAIN": []}, {}, "INPUT.MIN_SIZE_TRAIN"),
        ({"INPUT.MIN_SIZE_TEST": 0}, {}, "INPUT.MIN_SIZE_TEST"),
        ({"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 0}, {}, "MODEL.RPN.BATCH_SIZE_PER_IMAGE"),
        ({"TEST.DETECTIONS_PER_IMAGE": -1}, {}, "TEST.DETECTIONS_PER_IMAGE"),
        ({"INPUT.MIN_SIZE_TEST": None}, {}, "INPUT.MIN_SIZE_TEST: this option needs a value"),
        ({"MODEL.RPN.NMS_THRESH": None}, {}, "MODEL.RPN.NMS_THRESH: this option needs a value"),
        ({"INPUT.MIN_SIZE_TRAIN": [[1, 2]]}, {}, "INPUT.MIN_SIZE_TRAIN: numbers are expected"),
        ({"SOLVER.MOMENTUM": 0.5}, {"optimizer": "adamw"}, "SOLVER.MOMENTUM"),
        ({"CUDNN_BENCHMARK": True}, {"deterministic": True}, "CUDNN_BENCHMARK"),
        ({"TEST.AUG": {"ENABLED": True}}, {}, "TEST.AUG"),
        ({"NO_SUCH": 1}, {}, "NO_SUCH"),
        ({"MODEL.RPN.NO_SUCH_THING": 1}, {}, "MODEL.RPN.NO_SUCH_THING"),
        ({"SOLVER.MOMENTUM": "fast"}, {}, "SOLVER.MOMENTUM"),
    ],
)
def test_the_error_about_wrong_options_begins_with_the_option_to_correct(
    options: dict[str, Any], train: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.cfg\.{key}"):
        build_cfg(config_with(options, **train), DACON24, "cpu")


def test_the_last_learning_rate_needs_a_cosine_schedule_in_the_run_or_its_search() -> None:
    options = {"model": {"cfg": {"SOLVER.BASE_LR_END": 1e-5}}, "tune": {"num_trials": 0}}
    with pytest.raises(ConfigError, match=r"^model\.cfg\.SOLVER\.BASE_LR_END"):
        build_cfg(build_config(options), DACON24, "cpu")
    build_cfg(build_config(options | {"train": {"schedule": "cosine"}}), DACON24, "cpu")
    build_cfg(build_config(options | {"tune": {"num_trials": 2}}), DACON24, "cpu")
    with pytest.raises(
        ConfigError, match=r"BASE_LR_END: is above the search's lowest rate \(got 1e-05, tune\.base_lr be"
    ):
        build_cfg(build_config(options | {"tune": {"num_trials": 2, "base_lr": [1e-6, 1e-3]}}), DACON24, "cpu")


def test_a_network_that_cannot_be_built_is_refused_before_a_cluster_starts(tmp_path: Path) -> None:
    check_network(build_cfg(config_with({"MODEL.FPN.FUSE_TYPE": "avg"}), DACON24, "cpu"))
    for options in ({"MODEL.BACKBONE.NAME": "no_such"}, {"MODEL.RESNETS.DEPTH": 19}, {"MODEL.RPN.IN_FEATURES": ["p9"]}):
        with pytest.raises(ConfigError, match=r"^model\.cfg: the network cannot be built"):
            TrainStage().check(tiny_config({}, tmp_path, model={"cfg": options}))


def test_every_honored_option_is_read_by_the_model_the_solver_or_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    names_read: set[str] = set()
    read_attribute = yacs.config.CfgNode.__getattr__

    def record_read(node: Any, name: str) -> Any:
        value = read_attribute(node, name)
        if "prefix" in node.__dict__:  # set by `set_prefixes`; a deep copy of the node has it too
            names_read.add(f"{node.__dict__['prefix']}{name}")
        return value

    def set_prefixes(node: Any, prefix: str) -> None:
        node.__dict__["prefix"] = prefix
        for name, value in node.items():
            if isinstance(value, yacs.config.CfgNode):
                set_prefixes(value, f"{prefix}{name}.")

    monkeypatch.setattr(yacs.config.CfgNode, "__getattr__", record_read)
    rng, row = np.random.default_rng(0), random_row()
    clipping = {"SOLVER.CLIP_GRADIENTS.ENABLED": True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm"}
    for train in ({}, {"optimizer": "adamw", "schedule": "cosine"}):
        config = config_with(clipping, **train)
        cfg = build_cfg(config, DACON24, "cpu")
        set_prefixes(cfg, "")
        model = build_model(cfg)
        optimizer = build_optimizer(cfg, model, config.train)
        build_lr_scheduler(cfg, optimizer)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # reads the options of gradient clipping
        for generator in (rng, None):
            to_dataset_dict(row, cfg, DACON24, generator)
    honored_names = {
        name
        for name in OPTIONS
        if (find_entry(name, HONORED_OPTIONS) or name in ALLOWED_VALUES) and name not in DERIVED_OR_REFUSED
    }
    assert honored_names - names_read == READ_ELSEWHERE & set(OPTIONS)


def test_the_channels_of_the_input_are_in_the_order_of_input_format() -> None:
    row = random_row()
    bgr, rgb = (
        to_dataset_dict(row, build_cfg(config_with({"INPUT.FORMAT": name}), DACON24, "cpu"), DACON24, None)["image"]
        for name in ("BGR", "RGB")
    )
    assert torch.equal(rgb, bgr.flip(0))
    assert not torch.equal(rgb, bgr)


def test_training_sizes_are_chosen_from_a_list_or_from_a_range() -> None:
    row = random_row(320, 180)
    sizes = {}
    for sampling in ("choice", "range"):
        options = {"INPUT.MIN_SIZE_TRAIN": [90, 100], "INPUT.MIN_SIZE_TRAIN_SAMPLING": sampling}
        cfg = build_cfg(config_with(options | {"INPUT.MAX_SIZE_TRAIN": 400}), DACON24, "cpu")
        rng = np.random.default_rng(0)
        sizes[sampling] = {to_dataset_dict(row, cfg, DACON24, rng)["image"].shape[1] for _ in range(100)}
    assert sizes == {"choice": {90, 100}, "range": set(range(90, 101))}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_biases_can_have_a_learning_rate_and_a_decay_of_their_own(optimizer: str) -> None:
    options = {"SOLVER.BIAS_LR_FACTOR": 2.0, "SOLVER.WEIGHT_DECAY_BIAS": 0.25}
    config = config_with(options, optimizer=optimizer, base_lr=0.01)
    model = torch.nn.Linear(2, 1)
    groups = build_optimizer(build_cfg(config, DACON24, "cpu"), model, config.train).param_groups
    (bias,) = (group for group in groups if any(parameter is model.bias for parameter in group["params"]))
    (weight,) = (group for group in groups if any(parameter is model.weight for parameter in group["params"]))
    assert (bias["lr"], bias["weight_decay"]) == (0.02, 0.25)
    assert (weight["lr"], weight["weight_decay"]) == (0.01, config.train.weight_decay)
