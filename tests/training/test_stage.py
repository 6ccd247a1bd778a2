"""The stage `train` without a cluster: what it refuses, what it skips, and its forecast."""

from pathlib import Path

import pytest
import ray

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, RunStateError, StoreError
from kp_ray.stage import no_progress
from kp_ray.training.settings import record_settings
from kp_ray.training.stage import TrainStage
from tests.helpers.data import tiny_config
from tests.helpers.stores import write_small_store

MEMBERS = {"members": [{"name": "a"}, {"name": "b"}]}


def finish_member(config: Config, name: str) -> None:
    """Write the files by which a member counts as trained."""
    member = next(member for member in config.train.members if member.name == name)
    record_settings(config, member)
    Path(config.member_dir(name), "model_final.pth").touch()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    write_small_store(tmp_path / "store")
    return tiny_config({}, tmp_path, train=MEMBERS)


def test_without_a_store_only_the_options_are_checked(tmp_path: Path) -> None:
    config = tiny_config({}, tmp_path)
    TrainStage().check(config)
    with pytest.raises(StoreError):
        TrainStage().is_done(config)
    with pytest.raises(ConfigError):
        TrainStage().check(tiny_config({}, tmp_path, model={"cfg": {"NO_SUCH": 1}}))


def test_a_run_whose_members_are_finished_needs_no_cluster(config: Config) -> None:
    stage = TrainStage()
    finish_member(config, "a")
    assert not stage.is_done(config)
    finish_member(config, "b")
    assert stage.is_done(config)
    was_connected = ray.is_initialized()
    summary = stage.run(config, no_progress)
    assert ray.is_initialized() == was_connected
    assert summary.to_json() == {"a": {"skipped": True}, "b": {"skipped": True}}
    assert summary.lines()[0] == f"member a: finished before, in {config.member_dir('a')}"
    assert Path(config.path("config.yaml")).read_text() == config.to_yaml()


def test_a_member_of_other_settings_is_refused_and_the_recorded_config_stays(config: Config) -> None:
    stage = TrainStage()
    finish_member(config, "a")
    finish_member(config, "b")
    stage.run(config, no_progress)
    other = tiny_config({}, Path(config.run_dir), train={**MEMBERS, "base_lr": 0.5})
    for call in (stage.check, stage.is_done, lambda config: stage.run(config, no_progress)):
        with pytest.raises(RunStateError, match=r"train\.base_lr"):
            call(other)
    assert Path(config.path("config.yaml")).read_text() == config.to_yaml()


def test_the_forecast_counts_members_iterations_and_rows(config: Config) -> None:
    finish_member(config, "a")
    forecast = TrainStage().forecast(config)
    assert forecast.to_json() == {"members": 2, "finished": 1, "iterations": 4, "train": 6, "val": 3}
    assert forecast.lines() == [
        "2 members (1 finished) of 4 iterations on 1 workers, 4 images per worker and iteration, 6 stored rows of all "
        "recipes, 3 validation rows"
    ]
    elastic = tiny_config({}, Path(config.run_dir), train={**MEMBERS, "num_workers": {"min": 1, "max": 2}})
    forecast = TrainStage().forecast(elastic)
    assert forecast.iterations == 2
    assert " on 1 to 2 workers" in forecast.lines()[0]
