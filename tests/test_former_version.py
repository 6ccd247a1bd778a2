"""A run folder of kp_ray 0.1.0: its store, member, search and predictions are read, converted or refused in one line.

`run-0.1.0.tar.gz` is a run of that version on generated images. Its checkpoints are left out and its weights set to
zero, so that the file is small.
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
def former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Unpack the run folder and its data; return its config."""
    with tarfile.open(Path(__file__).with_name("run-0.1.0.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return load_config("config.yaml")


def test_its_store_is_read_and_verified_as_it_is_and_converted_without_rewriting_a_part(former: Config) -> None:
    rows = kp_ray.read_store(former.path("store")).to_pylist()
    assert len(rows) == 12
    assert verify_store(make_plan(former)) == []
    figures = write_store(make_plan(former))
    assert (figures.parts_written, figures.parts_kept) == (0, 3)
    assert str(kp_ray.read_store(former.path("store")).to_pylist()) == str(rows)
    assert verify_store(make_plan(former)) == []


def test_its_member_opens(former: Config) -> None:
    model, cfg = load_member(former.member_dir("a"), "cpu", DACON24.names)
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 24
    assert all(not value.any() for value in model.state_dict().values())


def test_its_finished_member_is_kept_without_its_search_and_refused_with_an_unfinished_one(former: Config) -> None:
    with pytest.raises(RunStateError, match=r"train\.tuned=false"):
        train(former)
    for config in (
        load_config("config.yaml", ["train.tuned=false"]),
        load_config("config.yaml", ["tune.num_trials=0"]),
    ):
        (member,) = train(config).members
        assert member.result is None, "finished before"
    shutil.rmtree(former.path("tune"))
    (member,) = train(load_config("config.yaml", ["train.tuned=false"])).members
    assert member.result is None


def test_its_predictions_get_the_same_scores(former: Config) -> None:
    recorded = json.loads(Path(former.path("evaluation.json")).read_text())
    scores = kp_ray.evaluate(former).to_json()
    assert scores["rmse"] == recorded["rmse"]
    assert recorded["members"]["a"]["pck"].items() <= scores["members"]["a"]["pck"].items()


def test_a_changed_setting_of_its_member_is_named(former: Config) -> None:
    with pytest.raises(RunStateError, match=r"train\.base_lr"):
        train(load_config("config.yaml", ["train.tuned=false", "train.base_lr=0.5"]))
