"""Settings that decide a member's weights are recorded; different settings are refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, ModelError, RunStateError, StorageError, StoreError
from kp_ray.store.plan import make_plan
from kp_ray.training.settings import (
    check_member_settings,
    check_train_config,
    record_settings,
    refuse_late_search,
    refuse_new_store,
)
from kp_ray.training.tuned import record_search
from tests.helpers.data import TINY_NET, tiny_config
from tests.helpers.stores import write_planned_store, write_small_store


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Write a store, and record the settings of a member that has begun; return the config."""
    config = tiny_config({}, tmp_path)
    write_small_store(tmp_path / "store")
    record_settings(config, config.train.members[0])
    return config


def change_sections(config: Config, **sections: Any) -> Config:
    """Return a config with the same run folder and changed sections."""
    return tiny_config({}, Path(config.run_dir), **sections)


@pytest.mark.parametrize(
    ("sections", "difference"),
    [
        ({"train": {"base_lr": 0.5}}, "train.base_lr 0.001, now 0.5"),
        ({"train": {"members": [{"name": "a", "seed": 7}]}}, "member.seed 1, now 7"),
        ({"augment": {"min_visible": 20}}, "augment.min_visible 1, now 20"),
        ({"skeleton": {"sigmas": [0.05] * 24}}, "skeleton.sigmas None, now"),
        ({"model": {"cfg": {**TINY_NET, "SOLVER.MOMENTUM": 0.8}}}, "model.cfg.SOLVER.MOMENTUM None, now 0.8"),
        ({"model": {"cfg": {}}}, "model.cfg.INPUT.MIN_SIZE_TRAIN [64], now None"),
    ],
)
def test_the_error_about_a_changed_deciding_setting_names_the_setting(
    config: Config, sections: dict[str, Any], difference: str
) -> None:
    check_member_settings(config)
    with pytest.raises(RunStateError) as caught:
        check_member_settings(change_sections(config, **sections))
    assert f"{config.member_dir('a')}: was made with {difference}" in str(caught.value)


def test_settings_that_decide_nothing_may_change(config: Config) -> None:
    check_member_settings(
        change_sections(config, train={"keep_best": 3, "cpus_per_worker": 1, "log_period": 7, "max_failures": 0})
    )


def test_another_store_is_refused(config: Config) -> None:
    path = Path(config.path("store", "_manifest.json"))
    path.write_text(path.read_text().replace('"seed": ', '"seed": 1'))
    with pytest.raises(RunStateError, match="was made with the store"):
        check_member_settings(config)


def test_members_that_began_without_a_search_are_named_before_a_search_begins(config: Config) -> None:
    with pytest.raises(RunStateError, match=rf"^{config.member_dir('a')}: began without a search, .*num_trials=0"):
        refuse_late_search(config)
    record_settings(config, config.train.members[0], {"trial": "trial-001"})
    refuse_late_search(config)
    refuse_late_search(change_sections(config, train={"members": [{"name": "new"}]}))


def test_a_run_that_would_replace_the_store_of_a_member_or_search_is_refused(config: Config) -> None:
    with pytest.raises(
        RunStateError, match=rf"^{config.member_dir('a')}: began with the present store, .* other member names,"
    ):
        refuse_new_store(config)
    other_config = change_sections(config, train={"members": [{"name": "new"}]}, tune={"num_trials": 2})
    refuse_new_store(other_config)
    record_search(other_config)
    with pytest.raises(RunStateError, match=rf"^{config.path('tune')}: began with the present store"):
        refuse_new_store(other_config)
    refuse_new_store(change_sections(config, train={"members": [{"name": "new"}], "tuned": False}))


def test_a_run_may_restore_the_store_with_which_a_member_began(config: Config) -> None:
    path = Path(config.path("store", "_manifest.json"))
    path.write_text(path.read_text().replace('"seed": ', '"seed": 1'))
    refuse_new_store(config)


def test_the_error_about_damaged_settings_names_their_file(config: Config) -> None:
    path = Path(config.member_dir("a"), "settings.json")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(StorageError, match=rf"^{path}: damaged .*: restore it, or delete {path.parent} to train"):
        check_member_settings(config)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"WARMUP_METHOD": "quadratic"}, "Unknown warmup method: quadratic"),
        ({"CLIP_GRADIENTS.ENABLED": True, "CLIP_GRADIENTS.CLIP_TYPE": "median"}, "'median' is not a valid"),
    ],
    ids=["WARMUP_METHOD", "CLIP_TYPE"],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_solver_options_with_which_detectron2_cannot_build_the_solver_are_refused(
    options: dict[str, Any], problem: str, optimizer: str, config: Config
) -> None:
    solver = {f"SOLVER.{name}": value for name, value in options.items()}
    wrong_config = change_sections(
        config, train={"optimizer": optimizer}, model={"preset": "r18", "cfg": {**TINY_NET, **solver}}
    )
    with pytest.raises(ConfigError, match=rf"^model\.cfg: the optimizer or schedule cannot be built \({problem}"):
        check_train_config(wrong_config)


def test_a_wrong_detectron2_option_is_refused_with_and_without_a_store(config: Config, tmp_path: Path) -> None:
    wrong_sections = {"model": {"preset": "r18", "cfg": {"SOLVER.NO_SUCH": 1}}}
    for wrong_config in (
        change_sections(config, **wrong_sections),
        tiny_config({}, tmp_path / "empty", **wrong_sections),
    ):
        with pytest.raises(ConfigError, match=r"^model\.cfg\.SOLVER\.NO_SUCH: "):
            check_train_config(wrong_config)


def test_a_skeleton_that_does_not_fit_the_store_is_refused(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"^skeleton: "):
        check_train_config(change_sections(config, skeleton={"sigmas": [0.1]}))


def test_starting_weights_that_do_not_exist_are_refused_before_a_cluster_starts(config: Config, tmp_path: Path) -> None:
    for sections, key in (
        ({"model": {"weights": str(tmp_path / "no.pth")}, "train": {"members": [{"name": "b"}]}}, "model.weights"),
        ({"train": {"members": [{"name": "b", "weights": str(tmp_path / "no.pth")}]}}, "train.members[b].weights"),
    ):
        with pytest.raises(ModelError, match=rf"^{re.escape(key)}: {tmp_path}/no\.pth: there is no such file"):
            check_train_config(tiny_config({}, tmp_path, **sections))
    weights = {"model": {"weights": str(tmp_path / "no.pth")}}
    check_train_config(change_sections(config, **weights))  # a member that has begun needs them no longer
    (tmp_path / "no.pth").touch()
    check_train_config(tiny_config({}, tmp_path / "new", **weights))


def test_a_recipe_that_is_not_stored_is_refused_before_a_cluster_starts(config: Config, tmp_path: Path) -> None:
    members = {"members": [{"name": "a", "recipes": ["Rotate45"]}]}
    for train in ({"recipes": ["Rotate45"]}, members):
        with pytest.raises(StoreError, match="holds no recipe 'Rotate45'"):
            check_train_config(change_sections(config, train=train))
        with pytest.raises(ConfigError, match=r"augment\.recipes lacks a recipe \(got Rotate45\)"):
            check_train_config(tiny_config({}, tmp_path / "empty", train=train))


def test_a_recipe_that_is_stored_only_for_validation_is_refused(sample_data: dict[str, Any], tmp_path: Path) -> None:
    train = {"recipes": ["Original"]}
    config = tiny_config(sample_data, tmp_path / "run", augment={"recipes": ["Rotate45"]}, train=train)
    write_planned_store(make_plan(config))
    with pytest.raises(StoreError, match="holds no recipe 'Original' for training: choose from Rotate45"):
        check_train_config(config)


def test_a_setting_that_an_earlier_version_did_not_record_counts_as_its_default(config: Config) -> None:
    path = Path(config.member_dir("a"), "settings.json")
    fields = json.loads(path.read_text())
    del fields["train.deterministic"]
    path.write_text(json.dumps(fields))
    check_member_settings(config)
    with pytest.raises(RunStateError, match=r"train\.deterministic False, now True"):
        check_member_settings(change_sections(config, train={"deterministic": True}))


def test_mlflow_must_be_installed_and_a_local_file_needs_a_local_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config({}, tmp_path, train={"mlflow": "local"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^train\.mlflow: MLflow is not installed"):
        check_train_config(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    check_train_config(config)
    monkeypatch.setattr("kp_ray.training.settings.is_local", lambda path: False)
    with pytest.raises(ConfigError, match=r"^train\.mlflow: `local` needs a local run_dir"):
        check_train_config(config)
