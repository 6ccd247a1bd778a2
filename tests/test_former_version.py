"""The results in a run folder of kp_ray 0.1.0 are read, converted or refused in one line.

`run-0.1.0.tar.gz` is a run folder of that version with generated images. It is small, because it has no checkpoints
and all weights are zero.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

import kp_ray
from kp_ray.config.load import load_config
from kp_ray.config.schema import Config
from kp_ray.errors import RunStateError
from kp_ray.keypoints import DACON24
from kp_ray.models.weights import load_member
from kp_ray.store.plan import make_plan
from kp_ray.store.verify import verify_store
from kp_ray.store.write import write_store
from kp_ray.training.run import train


@pytest.fixture
def former_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Unpack the run folder and its data; return its config."""
    with tarfile.open(Path(__file__).with_name("run-0.1.0.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return load_config("config.yaml")


def test_the_store_is_read_verified_and_converted_without_rewriting_a_part(former_config: Config) -> None:
    rows = kp_ray.read_store(former_config.path("store")).to_pylist()
    assert len(rows) == 12
    assert verify_store(make_plan(former_config)) == []
    record = write_store(make_plan(former_config))
    assert (record.parts_written, record.parts_kept) == (0, 3)
    assert str(kp_ray.read_store(former_config.path("store")).to_pylist()) == str(rows)
    assert verify_store(make_plan(former_config)) == []


def test_the_member_opens(former_config: Config) -> None:
    model, cfg = load_member(former_config.member_dir("a"), "cpu", DACON24.names)
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 24
    assert all(not value.any() for value in model.state_dict().values())


def test_an_unfinished_search_is_refused_and_the_finished_member_is_kept_if_no_search_is_used(
    former_config: Config,
) -> None:
    with pytest.raises(RunStateError, match=r"train\.tuned=false"):
        train(former_config)
    for config in (
        load_config("config.yaml", ["train.tuned=false"]),
        load_config("config.yaml", ["tune.num_trials=0"]),
    ):
        (member,) = train(config).members
        assert member.result is None, "finished before"
    shutil.rmtree(former_config.path("tune"))
    (member,) = train(load_config("config.yaml", ["train.tuned=false"])).members
    assert member.result is None


def test_the_predictions_get_the_same_scores(former_config: Config) -> None:
    old_scores = json.loads(Path(former_config.path("evaluation.json")).read_text())
    scores = kp_ray.evaluate(former_config).to_json()
    assert scores["rmse"] == old_scores["rmse"]
    assert old_scores["members"]["a"]["pck"].items() <= scores["members"]["a"]["pck"].items()


def test_a_changed_setting_of_the_member_is_named(former_config: Config) -> None:
    with pytest.raises(RunStateError, match=r"train\.base_lr"):
        train(load_config("config.yaml", ["train.tuned=false", "train.base_lr=0.5"]))
