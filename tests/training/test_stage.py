"""The stage `train` without a cluster: its checks, the members that it skips, and its forecast."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kp_ray.cluster.resources import Capacity
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, RunStateError, StoreError
from kp_ray.stage import no_progress
from kp_ray.training import run as run_module
from kp_ray.training.search_result import SearchResult, read_member_search, write_result
from kp_ray.training.settings import record_settings
from kp_ray.training.stage import TrainStage
from kp_ray.training.tuned import apply_search, record_search
from tests.helpers.clusters import forbid_ray
from tests.helpers.data import tiny_config
from tests.helpers.stores import write_small_store

MEMBERS = {"members": [{"name": "a"}, {"name": "b"}]}


def finish_member(config: Config, name: str) -> None:
    """Write the files that mark a member as trained."""
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


def test_a_run_whose_members_are_finished_needs_no_cluster(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = TrainStage()
    finish_member(config, "a")
    assert not stage.is_done(config)
    finish_member(config, "b")
    assert stage.is_done(config)
    forbid_ray(monkeypatch)
    summary = stage.run(config, no_progress)
    assert summary.to_json() == {"a": {"skipped": True}, "b": {"skipped": True}}
    assert summary.lines()[0] == f"member a: finished before, in {config.member_dir('a')}"
    assert Path(config.path("config.yaml")).read_text() == config.to_yaml()


def test_results_of_earlier_members_are_deleted_before_a_member_is_trained(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("crossval.json", "evaluation.json", "predictions.parquet", "predict.json")
    results = [Path(config.path(name)) for name in names]
    for path in results:
        path.write_text("of the earlier members")
    remaining_results: list[list[Path]] = []

    def skip_training(*_: Any, **__: Any) -> dict[str, Any]:
        remaining_results.append([path for path in results if path.exists()])
        return {}

    monkeypatch.setattr(run_module, "training_capacity", lambda config: Capacity(num_runs=1, use_gpu=False))
    monkeypatch.setattr(run_module, "_fit_members", skip_training)
    for name in ("a", "b"):
        finish_member(config, name)
    TrainStage().run(config, no_progress)
    assert all(path.exists() for path in results)
    Path(config.member_dir("b"), "model_final.pth").unlink()
    TrainStage().run(config, no_progress)
    assert remaining_results == [[]]


def test_members_with_other_settings_are_refused_and_the_recorded_config_stays(config: Config) -> None:
    stage = TrainStage()
    finish_member(config, "a")
    finish_member(config, "b")
    stage.run(config, no_progress)
    changed_config = tiny_config({}, Path(config.run_dir), train={**MEMBERS, "base_lr": 0.5})
    for method in (stage.check, stage.is_done, lambda config: stage.run(config, no_progress)):
        with pytest.raises(RunStateError, match=r"train\.base_lr"):
            method(changed_config)
    assert Path(config.path("config.yaml")).read_text() == config.to_yaml()


def test_the_forecast_counts_members_iterations_and_rows(config: Config) -> None:
    finish_member(config, "a")
    forecast = TrainStage().forecast(config)
    assert forecast.to_json() == {"members": 2, "finished": 1, "iterations": 4, "train": 6, "val": 3}
    assert forecast.lines() == [
        "2 members (1 finished) of 4 iterations on 1 workers, 4 images per worker and iteration, 6 stored rows of all "
        "recipes, 3 validation rows"
    ]
    elastic_config = tiny_config({}, Path(config.run_dir), train={**MEMBERS, "num_workers": {"min": 1, "max": 2}})
    forecast = TrainStage().forecast(elastic_config)
    assert forecast.iterations == 2
    assert " on 1 to 2 workers" in forecast.lines()[0]


RESULT = SearchResult("trial-003", "rmse", 8, 43.21, 47.5, {"base_lr": 0.002, "recipes": ["Original"]})


def test_a_finished_search_replaces_the_configs_own_settings_and_is_described(config: Config) -> None:
    record_search(config)
    write_result(config, RESULT)
    tuned_config, search = apply_search(config)
    assert search == RESULT
    assert (tuned_config.train.base_lr, tuned_config.train.recipes) == (0.002, ("Original",))
    assert [member.name for member in tuned_config.train.members] == ["a", "b"]
    assert apply_search(tuned_config) == (tuned_config, None)
    line = (
        "settings from the search (trial-003, rmse 43.21 after 8 iterations; the config's own: 47.5): base_lr 0.002, "
        "recipes ['Original']"
    )
    assert TrainStage().describe_settings(config) == TrainStage().forecast(config).lines()[0] == line
    finish_member(config, "a")  # trained with the config's own settings
    for method in (TrainStage().check, TrainStage().is_done):
        with pytest.raises(RunStateError, match=r"members/a: .* train\.recipes None, .*: set train\.tuned=false"):
            method(config)


def test_members_that_use_a_searchs_settings_are_finished_and_record_the_search(config: Config) -> None:
    record_search(config)
    write_result(config, RESULT)
    tuned_config, search = apply_search(config)
    for member in tuned_config.train.members:
        record_settings(tuned_config, member, asdict(RESULT))
        Path(config.member_dir(member.name), "model_final.pth").touch()
    assert TrainStage().is_done(config)
    summary = TrainStage().run(config, no_progress)
    assert summary.search == RESULT
    assert read_member_search(config.member_dir("a")) == search
    assert Path(config.path("config.yaml")).read_text() == config.to_yaml()


def test_a_search_is_not_used_if_the_config_excludes_it(config: Config) -> None:
    record_search(config)
    write_result(config, RESULT)
    for section in ({"train": {**MEMBERS, "tuned": False}}, {"train": MEMBERS, "tune": {"num_trials": 0}}):
        own_config = tiny_config({}, Path(config.run_dir), **section)
        assert apply_search(own_config) == (own_config, None)
        assert TrainStage().describe_settings(own_config) is None


def test_a_search_that_is_not_finished_or_began_with_other_settings_is_refused(config: Config) -> None:
    record_search(config)
    TrainStage().check(config)  # `run` finishes the search before it trains
    for method in (TrainStage().is_done, TrainStage().forecast):
        with pytest.raises(RunStateError, match=r"tune: the search is not finished: run tune .*train\.tuned=false"):
            method(config)
    write_result(config, RESULT)
    changed_config = tiny_config({}, Path(config.run_dir), train={**MEMBERS, "weight_decay": 0.5})
    with pytest.raises(RunStateError, match=r"tune: was made with train\.weight_decay .*train\.tuned=false"):
        TrainStage().check(changed_config)


def test_a_search_without_better_settings_keeps_the_configs_own_settings(config: Config) -> None:
    record_search(config)
    write_result(config, SearchResult("trial-000", "rmse", 8, 47.5, 47.5, {}))
    tuned_config, search = apply_search(config)
    assert tuned_config.train == config.train.model_copy(update={"tuned": False})
    assert search
    assert (
        search.describe()
        == "settings: the config's own; the search found none clearly better (rmse 47.5 after 8 iterations)"
    )
