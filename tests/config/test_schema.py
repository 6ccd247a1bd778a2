"""Fields of the configuration: defaults, types, checks and methods."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from kp_ray.config.load import build_config, load_config
from kp_ray.config.schema import Config
from kp_ray.config.training import metric_mode
from kp_ray.errors import ConfigError
from kp_ray.keypoints import DACON24
from kp_ray.storage import read_bytes


def test_without_settings_paths_are_in_the_default_run_folder() -> None:
    config = load_config(None)
    assert config == Config()
    assert config.run_dir == os.path.abspath("runs/first")
    assert config.path("store", "manifest.json") == f"{config.run_dir}/store/manifest.json"
    assert config.member_dir("a") == f"{config.run_dir}/members/a"


def test_a_worker_can_rebuild_the_config_from_plain_values() -> None:
    config = load_config(None, ["preset=demo", "train.members=[{name: x, recipes: [Original]}]"])
    values = config.to_dict()
    assert build_config(values) == config
    assert yaml.safe_load(yaml.safe_dump(values)) == values


def test_the_config_is_recorded_in_the_run_folder(tmp_path: Path) -> None:
    config = build_config({"run_dir": str(tmp_path / "run"), "seed": 7})
    config.save()
    assert read_bytes(config.path("config.yaml")).decode() == config.to_yaml()


@pytest.mark.parametrize(
    ("num_workers", "message"),
    [
        ({"min": 4, "max": 1}, r"min: is more than max \(got 4 and 1\)"),
        ({"min": 1}, "max: Field required"),
        (0, "greater than or"),
    ],
)
def test_a_wrong_number_of_workers_is_refused(num_workers: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"train.num_workers.*{message}"):
        build_config({"train": {"num_workers": num_workers}})


def test_a_fixed_number_of_workers_is_a_range_with_equal_ends() -> None:
    for num_workers, limits in (({"min": 1, "max": 3}, (1, 3)), (3, (3, 3))):
        train = build_config({"train": {"num_workers": num_workers}}).train
        assert (train.min_workers, train.max_workers) == limits


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "/root", "a\\b", ".hidden", "a\0b", "a\nb"])
def test_a_name_of_a_folder_cannot_lead_out_of_the_run_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a folder"):
        build_config({"train": {"members": [{"name": name}]}})
    with pytest.raises(ConfigError, match="cannot name a folder"):
        build_config({"augment": {"user_recipes": {name: {"transform": {}}}}})


def test_local_paths_become_absolute_and_urls_and_keywords_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    config = build_config(
        {
            "run_dir": "s3://bucket/run",
            "data": {"annotations": "a/../b.csv", "images": "~/frames"},
            "model": {"weights": "start.pth"},
            "train": {"members": [{"name": "a", "weights": "own.pth"}, {"name": "b", "weights": "zoo"}]},
            "predict": {"images": "store:val"},
        }
    )
    assert config.run_dir == "s3://bucket/run"
    assert config.path("store") == "s3://bucket/run/store"
    assert config.data.annotations == f"{tmp_path}/b.csv"
    assert config.data.images == "/home/somebody/frames"
    assert config.model.weights == f"{tmp_path}/start.pth"
    assert [member.weights for member in config.train.members] == [f"{tmp_path}/own.pth", "zoo"]
    assert config.predict.images == "store:val"


def test_the_message_about_an_input_that_is_not_set_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"data\.images is not set: add it to the config, or --set data\.images=PATH"):
        Config().require_input("images")
    assert build_config({"data": {"images": "/frames"}}).require_input("images") == "/frames"


def test_valid_skeleton_settings_override_the_competitions_and_wrong_ones_are_refused() -> None:
    sigmas = [0.05] * len(DACON24)
    assert build_config({"skeleton": {"sigmas": sigmas}}).build_skeleton(DACON24.names).sigmas == tuple(sigmas)
    with pytest.raises(ConfigError, match=r"^skeleton: sigmas: "):
        build_config({"skeleton": {"sigmas": [0.1]}}).build_skeleton(DACON24.names)


def test_other_keypoints_than_the_competitions_need_skeleton_settings() -> None:
    with pytest.raises(ConfigError, match=r"set skeleton\.flip_pairs"):
        Config().build_skeleton(["paw"])


def test_weights_of_members_are_numbers_per_member_or_per_keypoint_and_not_negative() -> None:
    weights = {"a": 2.0, "b": {"nose": 0.5}}
    assert build_config({"predict": {"weights": weights}}).predict.weights == weights
    for wrong_weights in ("fitted", {"a": -1}, {"b": {"nose": -0.5}}):
        with pytest.raises(ConfigError, match="weights"):
            build_config({"predict": {"weights": wrong_weights}})


def test_ap_and_pck_are_maximized_and_pixel_errors_minimized() -> None:
    assert [metric_mode(metric) for metric in ("ap", "ap50", "pck_0.05")] == ["max"] * 3
    assert [metric_mode(metric) for metric in ("rmse", "median_px", "p95_px")] == ["min"] * 3


def test_a_config_cannot_be_changed() -> None:
    config = Config()
    for section, key in ((config, "seed"), (config.train, "max_iter"), (config.train.members[0], "name")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, getattr(section, key))
