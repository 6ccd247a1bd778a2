"""The stage `tune`, without a search."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, RunStateError, StoreError
from kp_ray.store.manifest import read_manifest, write_manifest
from kp_ray.store.plan import make_plan
from kp_ray.training.search_result import SearchResult, write_result
from kp_ray.training.tuned import apply_search, check_search_settings, record_search, search_fields
from kp_ray.tuning.apply import SolverParams
from kp_ray.tuning.ray_tune import describe_trial
from kp_ray.tuning.search import TuneSummary
from kp_ray.tuning.stage import TuneStage
from kp_ray.tuning.trials import read_trials
from tests.helpers.data import tiny_config
from tests.helpers.searches import write_trial
from tests.helpers.stores import write_planned_store


def test_without_a_store_only_the_check_passes(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run", train={"num_workers": {"min": 1, "max": 2}})
    stage = TuneStage()
    assert stage.applies(config)
    assert not stage.applies(tiny_config(sample_data, tmp_path / "run", tune={"num_trials": 0}))
    stage.check(config)
    for method in (stage.is_done, stage.forecast):
        with pytest.raises(StoreError, match="run augment first"):
            method(config)
    assert not (tmp_path / "run").exists()


def test_the_check_refuses_a_search_that_cannot_begin(make_config: Callable[..., Config]) -> None:
    stage = TuneStage()
    config = make_config()
    stage.check(config)
    assert not stage.is_done(config)
    with pytest.raises(ConfigError, match=r"train\.num_workers: .* give a number"):
        stage.check(make_config(train={"num_workers": {"min": 1, "max": 2}}))
    with pytest.raises(ConfigError, match=r"train\.recipes: .* \(got \d+; one iteration needs 400\)"):
        stage.check(make_config(train={"ims_per_batch": 400}))
    with pytest.raises(ConfigError, match=r"tune\.num_trials"):
        stage.check(make_config(tune={"num_trials": 0}))


def test_the_flip_of_the_first_trial_needs_flip_pairs_too(make_config: Callable[..., Config]) -> None:
    settings = {"skeleton": {"flip_pairs": []}, "tune": {"num_trials": 2, "flips": [False]}}
    with pytest.raises(ConfigError, match=r"^skeleton\.flip_pairs: .* so train\.flip would mirror images"):
        TuneStage().check(make_config(train={"flip": True}, **settings))
    TuneStage().check(make_config(train={"flip": False}, **settings))


def test_a_search_on_a_fold_without_images_is_refused(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run", split={"folds": 2}, train={"ims_per_batch": 2})
    write_planned_store(make_plan(config))
    TuneStage().check(config)
    manifest = read_manifest(config.path("store"))
    assert manifest.folds is not None
    # As if every image of fold 0 were unusable.
    units = ((), manifest.folds.units[0] + manifest.folds.units[1])
    folds = manifest.folds.model_copy(update={"units": units})
    write_manifest(config.path("store"), manifest.model_copy(update={"folds": folds}))
    with pytest.raises(StoreError, match=r"has no usable images in fold 0, .*: let member a hold out"):
        TuneStage().check(config)


def test_the_error_about_a_search_with_other_settings_names_the_setting(make_config: Callable[..., Config]) -> None:
    config = make_config()
    path = Path(config.path("tune", "settings.json"))
    path.parent.mkdir()
    path.write_text(json.dumps({"seed": config.seed + 1}))
    for method in (TuneStage().check, TuneStage().is_done):
        with pytest.raises(RunStateError, match=rf"{path.parent}: was made with seed {config.seed + 1}, now "):
            method(config)


def test_an_option_or_a_recipe_set_that_a_search_began_with_cannot_be_removed(
    make_config: Callable[..., Config],
) -> None:
    recipes = {"a": ["Original"], "b": ["Original", "CenterCrop_1"]}
    config = make_config(model={"cfg": {"SOLVER.MOMENTUM": 0.5}}, tune={"recipes": recipes})
    Path(config.path("tune")).mkdir()
    record_search(config)
    check_search_settings(config, "fix it")
    without_option = config.model_copy(update={"model": config.model.model_copy(update={"cfg": {}})})
    with pytest.raises(RunStateError, match=r"model\.cfg\.SOLVER\.MOMENTUM 0\.5, now None: fix it"):
        check_search_settings(without_option, "fix it")
    without_set = config.model_copy(update={"tune": config.tune.model_copy(update={"recipes": {"a": ("Original",)}})})
    with pytest.raises(RunStateError, match=r"tune\.recipes\.b \['Original', 'CenterCrop_1'\], now None: fix it"):
        check_search_settings(without_set, "fix it")


def test_a_result_is_used_although_its_damaged_settings_were_deleted(make_config: Callable[..., Config]) -> None:
    config = make_config()
    result = SearchResult("trial-001", "rmse", 4, 9.0, 20.0, {"base_lr": 0.5})
    Path(config.path("tune")).mkdir()
    write_result(config, result)
    tuned_config, used_result = apply_search(config)
    assert used_result == result
    assert tuned_config.train.base_lr == 0.5


def test_how_trials_are_scored_may_change_only_after_the_search(make_config: Callable[..., Config]) -> None:
    config = make_config()
    other_config = config.model_copy(update={"predict": config.predict.model_copy(update={"decode": "argmax"})})
    Path(config.path("tune")).mkdir()
    record_search(config)
    check_search_settings(config, "fix it")
    with pytest.raises(RunStateError, match=r"predict\.decode 'expectation', now 'argmax': fix it"):
        check_search_settings(other_config, "fix it")
    Path(config.path("tune", "result.json")).write_text("{}")
    check_search_settings(other_config, "fix it")


def test_a_field_that_a_search_did_not_record_counts_as_its_default(make_config: Callable[..., Config]) -> None:
    config = make_config()
    fields = search_fields(config)
    del fields["tune"]["min_gain"], fields["train"]["precision"]
    Path(config.path("tune")).mkdir()
    Path(config.path("tune", "settings.json")).write_text(json.dumps(fields))
    check_search_settings(config, "fix it")
    other_config = config.model_copy(update={"tune": config.tune.model_copy(update={"min_gain": 0.2})})
    with pytest.raises(RunStateError, match=r"tune\.min_gain 0\.05, now 0\.2: fix it"):
        check_search_settings(other_config, "fix it")


def test_a_search_recorded_without_its_decoding_is_accepted(make_config: Callable[..., Config]) -> None:
    config = make_config(predict={"decode": "argmax"})
    fields = {name: value for name, value in search_fields(config).items() if name != "predict"}
    Path(config.path("tune")).mkdir()
    Path(config.path("tune", "settings.json")).write_text(json.dumps(fields))
    check_search_settings(config, "fix it")


def test_a_forecast_counts_trials_iterations_and_rows(make_config: Callable[..., Config]) -> None:
    forecast = TuneStage().forecast(make_config(tune={"num_trials": 5, "max_iter": 30}))
    forecast_json = forecast.to_json()
    assert (forecast_json["trials"], forecast_json["iterations"]) == (5, 30)
    assert forecast_json["train"] > forecast_json["val"] > 0
    assert forecast.lines() == [
        f"5 trials of up to 30 iterations, {forecast_json['val']} validation rows, compared by rmse"
    ]


def test_a_summary_names_the_chosen_trial_and_the_iterations() -> None:
    params = SolverParams(0.001, 10, "cosine", 0, "[]", None, 0.1, True, "own")
    summary = TuneSummary(4, 1, "rmse", 43.21234, 47.0, "trial-002", params, 20, 32, "run/tune/best.yaml")
    counts_line, chosen_line = summary.lines()
    assert counts_line == "4 trials, 1 failed, 20 iterations (32 without early stops)"
    assert chosen_line.startswith(
        "chosen: trial-002 with rmse 43.21 (the config's own settings 47): base_lr 0.001, warmup_iters 10, "
    )
    assert "gamma" not in chosen_line
    summary_json = json.loads(json.dumps(summary.to_json()))
    assert list(summary_json) == [
        "trials",
        "failed",
        "metric",
        "best",
        "own",
        "trial",
        "params",
        "iterations",
        "iterations_without_stops",
        "config",
    ]
    assert summary_json["params"]["gamma"] is None


def test_the_note_of_a_trial_has_its_state_and_its_settings(make_config: Callable[..., Config]) -> None:
    config = make_config()
    write_trial(config, "trial-000", 1.0, {2: 50.0}, end={})
    write_trial(config, "trial-001", 2.0, {}, end={"reason": "the loss is no longer finite"})
    settings = "schedule multistep x0.5 at [6] flip yes recipes own"
    assert [describe_trial(trial, config) for trial in read_trials(config)] == [
        f"stopped rmse 50 base_lr 0.001 {settings}",
        f"failed base_lr 0.002 {settings} reason the loss is no longer finite",
    ]
