"""Test members of other runs: names, skeletons, and the results that depend on the members."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, DataError, ModelError, RunStateError
from kp_ray.json_files import write_json
from kp_ray.keypoints import DACON24
from kp_ray.prediction.evaluate import evaluate_run
from kp_ray.prediction.fuse import read_run_predictions
from kp_ray.prediction.members import check_validation_images, list_members
from kp_ray.prediction.stage import PredictStage
from kp_ray.prediction.task import PredictionTask
from tests.helpers.linked_runs import configure_run
from tests.helpers.predictions import write_prediction_arrays
from tests.helpers.stores import write_small_store


@pytest.fixture
def copied_run(run_with_members: Config, tmp_path: Path) -> Config:
    """Copy the members into a run folder, so that a test can change them."""
    shutil.copytree(run_with_members.path("members"), tmp_path / "copied" / "members")
    return configure_run(run_with_members, tmp_path / "copied")


def test_members_of_other_runs_are_named_by_their_run_folder() -> None:
    train = {"members": [{"name": "a"}, {"name": "b"}]}

    def list_folders(*members: str) -> dict[str, str]:
        return list_members(
            build_config({"run_dir": "/runs/x", "train": train, "predict": {"members": members or None}})
        )

    assert list_folders() == {"a": "/runs/x/members/a", "b": "/runs/x/members/b"}
    assert list_folders("b", "/runs/y/members/a/", "s3://bucket/z/members/a/") == {
        "b": "/runs/x/members/b",
        "y/a": "/runs/y/members/a",
        "z/a": "s3://bucket/z/members/a",
    }
    assert list_folders("/runs/x/members/a") == {"a": "/runs/x/members/a"}
    assert list_folders("/one/y/members/a", "/two/y/members/a") == {
        "y/a": "/one/y/members/a",
        "/two/y/members/a": "/two/y/members/a",
    }
    assert list_folders("/backup/a", "/") == {"backup/a": "/backup/a", "/": "/"}
    with pytest.raises(ConfigError, match=r"predict\.members: c is not a member of this run: .* \(a, b\), or the path"):
        list_folders("c")
    with pytest.raises(ConfigError, match=r"predict\.members: a member is listed twice"):
        list_folders("a", "a")
    with pytest.raises(ConfigError, match=r"predict\.members: a member is listed twice"):
        list_folders("s3://bucket/z/members/a", "s3://bucket/z/members/a/")
    with pytest.raises(ConfigError, match=r"predict\.members: /runs/x/members/a is listed twice, by name and by path"):
        list_folders("a", "/runs/x/members/a")


def test_a_member_of_another_run_changes_the_folder_of_the_parts_and_can_have_a_weight(
    run_with_members: Config, copied_run: Config
) -> None:
    other_member_dir = copied_run.member_dir("a")
    config = configure_run(
        run_with_members, Path(run_with_members.run_dir), members=["b", other_member_dir], weights={"copied/a": 2}
    )
    PredictStage().check(config)
    task = PredictionTask(config)
    assert task.members == {"b": run_with_members.member_dir("b"), "copied/a": other_member_dir}
    assert task.predictor_arguments(has_gpu=False)["members"] == task.members
    assert task.folder != PredictionTask(run_with_members).folder
    weights_path = Path(other_member_dir, "model_final.pth")
    weights_path.write_bytes(weights_path.read_bytes() + b"0")
    assert PredictionTask(config).folder != task.folder


def test_a_member_with_another_skeleton_is_refused_and_the_message_names_both_skeletons(
    run_with_members: Config, copied_run: Config
) -> None:
    other_member_dir = copied_run.member_dir("a")
    config = configure_run(run_with_members, Path(run_with_members.run_dir), members=["a", other_member_dir])
    path = Path(other_member_dir, "model_final.pth")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "keypoints": list(DACON24.names[::-1])}, path)
    skeletons = rf"got 24 keypoints \({DACON24.names[-1]}, .*, {DACON24.names[0]}\), expected 24 keypoints"
    message = rf"copied/members/a has another skeleton than {run_with_members.run_dir} \({skeletons}"
    for check in (PredictStage().check, PredictionTask):
        with pytest.raises(DataError, match=message):
            check(config)
    path.unlink()
    with pytest.raises(ModelError, match=r"predict\.members: .*copied/members/a: holds no finished member"):
        PredictStage().check(config)


def test_members_trained_on_another_store_do_not_predict_validation_images(copied_run: Config, tmp_path: Path) -> None:
    write_small_store(Path(copied_run.path("store")))
    config = configure_run(copied_run, tmp_path / "copied", images="store:val")
    for name in ("a", "b"):
        write_json(f"{config.member_dir(name)}/settings.json", {"the store": "0123"})
    for check in (PredictionTask, evaluate_run):
        with pytest.raises(RunStateError, match=r"copied/members/a: was made with the store .*: restore the setting"):
            check(config)
    settings_path = Path(config.member_dir("a"), "settings.json")
    settings_path.unlink()
    with pytest.raises(RunStateError, match=rf"^{settings_path}: is missing, .* restore it, or delete this folder"):
        check_validation_images(config)
    other_member_dir = config.member_dir("b")
    alone = configure_run(copied_run, tmp_path / "other", images="store:val", members=[other_member_dir])
    shutil.copytree(copied_run.path("store"), tmp_path / "other" / "store")
    check_validation_images(alone)  # its training data are unknown


def test_predictions_of_other_members_are_refused(copied_run: Config) -> None:
    path = copied_run.path("predictions.parquet")
    write_prediction_arrays(path, ["a", "other/b"], ["x.jpg"], np.full((2, 1, 24, 3), 0.5), DACON24.names)
    with pytest.raises(
        RunStateError, match=r"predictions\.parquet: its members .* \(got a, other/b, expected a, b\): run predict"
    ):
        read_run_predictions(copied_run, DACON24)
