"""Test members of other runs: their names, their skeletons, and what depends on them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, DataError, ModelError, RunStateError
from kp_ray.keypoints import DACON24
from kp_ray.prediction.fuse import read_run_predictions
from kp_ray.prediction.members import list_members
from kp_ray.prediction.stage import PredictStage
from kp_ray.prediction.task import PredictionTask
from tests.helpers.linked_runs import configure_run
from tests.helpers.predictions import write_prediction_arrays


@pytest.fixture
def copied(with_members: Config, tmp_path: Path) -> Config:
    """Return a run folder whose members are copies that a test can change."""
    shutil.copytree(with_members.path("members"), tmp_path / "copied" / "members")
    return configure_run(with_members, tmp_path / "copied")


def test_members_of_other_runs_are_named_by_their_run_folder() -> None:
    train = {"members": [{"name": "a"}, {"name": "b"}]}

    def named(*members: str) -> dict[str, str]:
        return list_members(
            build_config({"run_dir": "/runs/x", "train": train, "predict": {"members": members or None}})
        )

    assert named() == {"a": "/runs/x/members/a", "b": "/runs/x/members/b"}
    assert named("b", "/runs/y/members/a/", "s3://bucket/z/members/a") == {
        "b": "/runs/x/members/b", "y/a": "/runs/y/members/a", "z/a": "s3://bucket/z/members/a"
    }  # fmt: skip
    assert named("/runs/x/members/a") == {"a": "/runs/x/members/a"}
    assert named("/one/y/members/a", "/two/y/members/a") == {
        "y/a": "/one/y/members/a", "/two/y/members/a": "/two/y/members/a"
    }  # fmt: skip
    assert named("/backup/a") == {"backup/a": "/backup/a"}
    with pytest.raises(ConfigError, match=r"predict\.members: c is not a member of this run: .* \(a, b\), or the path"):
        named("c")
    with pytest.raises(ConfigError, match=r"predict: members: a member is listed twice"):
        named("a", "a")


def test_a_member_of_another_run_has_its_own_part_folder_and_weight(with_members: Config, copied: Config) -> None:
    other = copied.member_dir("a")
    config = configure_run(with_members, Path(with_members.run_dir), members=["b", other], weights={"copied/a": 2})
    PredictStage().check(config)
    task = PredictionTask(config)
    assert task.members == {"b": with_members.member_dir("b"), "copied/a": other}
    assert task.predictor_arguments(has_gpu=False)["members"] == task.members
    assert task.folder != PredictionTask(with_members).folder
    weights = Path(other, "model_final.pth")
    weights.write_bytes(weights.read_bytes() + b"0")
    assert PredictionTask(config).folder != task.folder


def test_a_member_of_another_skeleton_is_refused_and_both_are_named(with_members: Config, copied: Config) -> None:
    other = copied.member_dir("a")
    config = configure_run(with_members, Path(with_members.run_dir), members=["a", other])
    path = Path(other, "model_final.pth")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "keypoints": list(DACON24.names[::-1])}, path)
    last, first = DACON24.names[-1], DACON24.names[0]
    message = rf"copied/members/a predicts 24 keypoints \({last}, .*, {first}\), {with_members.run_dir} 24 keypoints \("
    for call in (PredictStage().check, PredictionTask):
        with pytest.raises(DataError, match=message):
            call(config)
    path.unlink()
    with pytest.raises(ModelError, match=r"predict\.members: .*copied/members/a: holds no finished member"):
        PredictStage().check(config)


def test_predictions_of_other_members_are_not_fused_or_scored(copied: Config) -> None:
    path = copied.path("predictions.parquet")
    write_prediction_arrays(path, ["a", "other/b"], ["x.jpg"], np.full((2, 1, 24, 3), 0.5), DACON24.names)
    with pytest.raises(
        RunStateError, match=r"predictions\.parquet: was predicted by a, other/b, now a, b: run predict"
    ):
        read_run_predictions(copied, DACON24)
