"""Test the settings that are resolved or refused before the first image is predicted."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import ray

from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError, ConfigError, ModelError
from kp_ray.keypoints import DACON24
from kp_ray.prediction.run import predict_images
from kp_ray.prediction.task import PredictionTask
from kp_ray.stage import no_progress
from tests.helpers.linked_runs import configure_run, link_run


@pytest.fixture
def copied_run(run_with_store: Config, tmp_path: Path) -> Config:
    """Copy the members into a run folder without a store, so that a test can change them; `predict.tta` has `flip`."""
    shutil.copytree(run_with_store.path("members"), tmp_path / "run" / "members")
    return configure_run(run_with_store, tmp_path / "run", tta=["flip"])


def test_an_untrained_member_is_refused(sample_config: Config) -> None:
    with pytest.raises(ModelError, match="member a is not trained: run train first"):
        PredictionTask(sample_config)


def test_flips_need_a_member_that_was_trained_with_flips(copied_run: Config) -> None:
    assert len(PredictionTask(copied_run).find_missing_images()) == 10
    cfg_path = Path(copied_run.member_dir("b"), "config.yaml")
    cfg_path.write_text(cfg_path.read_text().replace("RANDOM_FLIP: horizontal", "RANDOM_FLIP: none"))
    with pytest.raises(ConfigError, match=r"predict\.tta: member b was trained without flips"):
        PredictionTask(copied_run)


def test_a_member_with_another_number_of_keypoints_is_refused(copied_run: Config) -> None:
    cfg_path = Path(copied_run.member_dir("b"), "config.yaml")
    cfg_path.write_text(cfg_path.read_text().replace("NUM_KEYPOINTS: 24", "NUM_KEYPOINTS: 17"))
    with pytest.raises(ModelError, match=r"member b has another number of keypoints .* \(got 17, expected 24\)"):
        PredictionTask(copied_run)


@pytest.mark.parametrize("content", ["", "[", "text"])
def test_the_error_about_a_damaged_config_of_a_member_names_its_path(copied_run: Config, content: str) -> None:
    cfg_path = Path(copied_run.member_dir("b"), "config.yaml")
    cfg_path.write_text(content)
    with pytest.raises(ModelError, match=f"{cfg_path}: damaged"):
        PredictionTask(copied_run)


def test_each_setting_or_file_that_changes_detections_changes_the_folder_of_the_parts(copied_run: Config) -> None:
    folder = PredictionTask(copied_run).folder
    assert PredictionTask(copied_run).folder == folder

    def find_folder(**changes: Any) -> str:
        section = copied_run.predict.model_copy(update=changes)
        return PredictionTask(copied_run.model_copy(update={"predict": section})).folder

    assert find_folder(batch_size=7, fusion="median") == folder, "neither setting changes a detection"
    assert find_folder(tta=()) != folder
    assert find_folder(fallback_threshold=0.01) != folder
    no_flips = copied_run.model_copy(update={"predict": copied_run.predict.model_copy(update={"tta": ()})})
    pairs = copied_run.skeleton.model_copy(update={"flip_pairs": tuple(DACON24.flip_pairs[1:])})
    assert PredictionTask(copied_run.model_copy(update={"skeleton": pairs})).folder != folder
    assert PredictionTask(no_flips.model_copy(update={"skeleton": pairs})).folder == PredictionTask(no_flips).folder
    weights_path = Path(copied_run.member_dir("a"), "model_final.pth")
    weights_path.write_bytes(weights_path.read_bytes() + b"0")
    assert PredictionTask(copied_run).folder != folder


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"c": 1}, r"^predict\.weights: c is not a member that predicts: use the names \(a, b\)"),
        ({"a": {"tail": 1}}, r"^predict\.weights: a: tail is not a keypoint"),
        ({"a": 0, "b": {"nose": 0}}, r"^predict\.weights: every member has weight 0 for nose"),
        ({"a": {"nose": -1}}, r"^config: predict\.weights: a: a weight is negative"),
        ("fitted", r"^config: predict\.weights.*: Input should be 'equal'; or: .* \(got 'fitted'\)"),
    ],
)
def test_invalid_weights_are_refused(run_with_store: Config, tmp_path: Path, weights: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PredictionTask(link_run(run_with_store, tmp_path / "run", weights=weights))


def test_nodes_without_cpus_or_whose_labels_forbid_models_are_refused(
    run_with_members: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spot_node = {"Alive": True, "Resources": {"CPU": 8}, "Labels": {"kp-ray/models": "no"}}
    gpu_node = {"Alive": True, "Resources": {"GPU": 1}, "NodeManagerAddress": "10.0.0.8"}
    nodes = [spot_node | {"NodeManagerAddress": "10.0.0.7"}, gpu_node]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    task = PredictionTask(link_run(run_with_members, tmp_path / "run"))  # another test predicts in the shared folder
    message = r"^cluster: the label kp-ray/models=no keeps predict off .* \(got 10\.0\.0\.7\)"
    with pytest.raises(ClusterError, match=message):
        predict_images(task, task.find_missing_images(), no_progress)
    del nodes[0]
    with pytest.raises(ClusterError, match=r"^cluster: no node has enough CPUs for predict \(got 1 nodes .* 0 CPUs\)"):
        predict_images(task, task.find_missing_images(), no_progress)
