"""Forecasts of the stages, and the whole pipeline from labels to a submission on the command line."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, RunStateError, StoreError
from kp_ray.pipeline import STAGES, Runner, find_next_verb, forecast_stage, make_stage, run_pipeline
from kp_ray.stage import no_progress
from kp_ray.store.plan import make_plan
from kp_ray.training.search_result import SearchResult, write_result
from kp_ray.training.settings import record_settings
from kp_ray.training.tuned import apply_search, record_search
from tests.helpers.data import SHARED, TINY_NET, tiny_config
from tests.helpers.processes import file_times, last_json, run_command, run_kp_ray
from tests.helpers.stores import copy_images, write_planned_store, write_small_store


def run_verb(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `kp-ray` with lines of 200 columns, so that no line of its output is wrapped."""
    return run_kp_ray(*arguments, cwd=cwd, env={**os.environ, "COLUMNS": "200"})


def read_json_output(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON object that a successful command printed."""
    assert result.returncode == 0, result.stderr[-3000:]
    return last_json(result.stdout)


def test_forecasts_count_the_work_of_each_stage_and_write_nothing(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run", train={"ims_per_batch": 2})
    augment = forecast_stage("augment", config)
    assert (augment.to_json()["sources"], augment.to_json()["parts_kept"]) == (12, 0)
    assert forecast_stage("predict", config).to_json() == {"images": 10, "members": 1, "trained": 0}
    for verb in ("train", "tune"):
        with pytest.raises(StoreError, match="run augment first"):
            forecast_stage(verb, config)
    assert not Path(config.run_dir).exists()
    write_small_store(tmp_path / "run" / "store")
    original_times = file_times(*tmp_path.rglob("*"))
    train, tune = forecast_stage("train", config).to_json(), forecast_stage("tune", config).to_json()
    assert (train["iterations"], train["finished"], train["train"], train["val"]) == (4, 0, 6, 3)
    assert (tune["trials"], tune["train"], tune["val"]) == (2, 6, 3)
    assert all(forecast_stage(verb, config).lines() for verb in ("augment", "train", "tune", "predict"))
    assert file_times(*tmp_path.rglob("*")) == original_times


def test_a_forecast_refuses_an_invalid_config_as_the_stage_does(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config({**sample_data, "images": str(tmp_path / "none")}, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data\.images"):
        forecast_stage("augment", config)


def test_a_dry_run_prints_the_forecast_and_neither_joins_a_cluster_nor_writes(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(tiny_config(sample_data, tmp_path / "run").to_yaml())
    environment = {**os.environ, "COLUMNS": "200", "RAY_ADDRESS": "127.0.0.1:1"}  # no cluster runs there
    result = run_kp_ray("augment", "config.yaml", "--dry-run", "--json", cwd=tmp_path, env=environment)
    forecast = read_json_output(result)
    assert {"sources", "variants", "parts", "bytes", "seconds"} <= set(forecast)
    assert f"{forecast['sources']} sources, {forecast['variants']} variants of 2 recipes" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_tune_comes_before_train_and_train_prints_the_tuned_settings(tmp_path: Path) -> None:
    verbs = ["check", "augment", "tune", "train", "crossval", "predict", "evaluate", "report", "suspects"]
    assert list(STAGES) == verbs
    write_small_store(tmp_path / "store")
    config = tiny_config({}, tmp_path)
    record_search(config)
    search_result = SearchResult("trial-001", "rmse", 2, 43.2, 47.5, {"base_lr": 0.002})
    write_result(config, search_result)
    tuned_config, _ = apply_search(config)
    record_settings(tuned_config, tuned_config.train.members[0], asdict(search_result))
    (tmp_path / "members" / "a" / "model_final.pth").touch()
    lines: list[str] = []
    with Runner(config, lambda verb: contextlib.nullcontext(no_progress), lines.append) as runner:
        summary = runner.run(make_stage("train"), dashboard=False)
    assert lines == [search_result.describe()]
    assert summary.lines() == [f"member a: finished before, in {config.member_dir('a')}"]


def test_the_verb_after_augment_is_tune_if_train_would_use_a_search(tmp_path: Path) -> None:
    write_small_store(tmp_path / "store")
    for sections, verb in (
        ({}, "tune"),
        ({"tune": {"num_trials": 0}}, "train"),
        ({"train": {"tuned": False}}, "train"),
    ):
        config = tiny_config({}, tmp_path, **{"tune": {"num_trials": 2}, **sections})
        assert find_next_verb("augment", config) == verb


def test_augment_ends_with_its_summary_although_training_is_not_installed(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(sample_data, tmp_path / "run")
    write_planned_store(make_plan(config))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    code = (
        "import sys\nfor name in ('torch', 'detectron2', 'optuna'): sys.modules[name] = None\n"
        "from kp_ray.cli.main import main\nmain(['augment', 'config.yaml', '--json'])"
    )
    result = run_command(sys.executable, "-c", code, cwd=tmp_path, env={**os.environ, "COLUMNS": "200"})
    assert read_json_output(result)["parts_written"] == 0
    assert "next: kp-ray tune config.yaml" in result.stderr


@pytest.mark.slow
def test_a_second_run_repeats_nothing(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run", tune={"num_trials": 1})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    first_run = run_verb("run", "config.yaml", "--json", cwd=tmp_path)
    run = tmp_path / "run"
    assert read_json_output(first_run)["report"] == str(run / "report.html")
    assert "ensemble" in first_run.stdout
    assert "Traceback" not in first_run.stderr
    assert "12 labelled images" in first_run.stdout + first_run.stderr
    assert read_json_output(first_run)["search"]["trial"] == "trial-000"
    assert "settings: the config's own; the search found none clearly better" in first_run.stdout
    write_times = [(run / name).stat().st_mtime for name in ("tune/result.json", "members/a/settings.json")]
    assert write_times == sorted(write_times)  # the search ends before training begins
    finished_files = [
        *run.glob("members/*/model_final.pth"),
        *run.glob("tune/trials/*/*"),
        run / "store" / "_manifest.json",
    ]
    original_times = file_times(*finished_files)
    second_run = run_verb("run", "config.yaml", "--json", cwd=tmp_path)
    second_json = read_json_output(second_run)
    assert second_json["augment"]["parts_written"] == second_json["predict"]["predicted"] == 0
    assert "12 labelled images" not in second_run.stdout + second_run.stderr, "unchanged labels are not checked again"
    assert file_times(*finished_files) == original_times


def check_run(config: Config) -> None:
    """Start `kp-ray run`, which a test expects to be refused before a stage runs."""
    run_pipeline(config, lambda verb: contextlib.nullcontext(no_progress), pytest.fail, pytest.fail)


@pytest.fixture
def begun_config(sample_data: dict[str, Any], tmp_path: Path) -> Config:
    """Write a store and the settings of a member that began with it; return the config."""
    config = tiny_config(copy_images(sample_data, tmp_path / "images"), tmp_path / "run", tune={"num_trials": 0})
    write_planned_store(make_plan(config))
    record_settings(config, config.train.members[0])
    return config


def change_augment(config: Config, **fields: Any) -> Config:
    """Return a config with changed fields of the section `augment`."""
    values = config.to_dict()
    return build_config({**values, "augment": {**values["augment"], **fields}})


@pytest.mark.parametrize("fields", [{"jpeg_quality": 50}, {"recipes": ["Original"]}])
def test_run_refuses_a_new_store_for_a_begun_member_before_it_writes_anything(
    begun_config: Config, fields: dict[str, Any]
) -> None:
    times = file_times(*Path(begun_config.run_dir).rglob("*"))
    with pytest.raises(RunStateError, match="members/a: began with the present store, and"):
        check_run(change_augment(begun_config, **fields))
    assert file_times(*Path(begun_config.run_dir).rglob("*")) == times


@pytest.mark.parametrize("fields", [{"jpeg_quality": 50}, {"recipes": ["Original"]}])
def test_run_may_restore_the_store_with_which_a_member_began(begun_config: Config, fields: dict[str, Any]) -> None:
    config = change_augment(begun_config, **fields)
    write_planned_store(make_plan(config))
    with pytest.raises(pytest.fail.Exception):  # the first stage ends, so nothing was refused
        check_run(begun_config)


def test_run_names_a_missing_image_although_its_variants_would_be_replaced(begun_config: Config) -> None:
    min(Path(begun_config.require_input("images")).iterdir()).unlink()
    with pytest.raises(StoreError, match="this image is missing, and the store holds its variants"):
        check_run(begun_config)


def test_verbs_print_their_result_and_the_next_command(sample_data: dict[str, Any], tmp_path: Path) -> None:
    sample_json = read_json_output(
        run_verb("sample", "data", "--images", "8", "--width", "320", "--height", "180", "--json", cwd=tmp_path)
    )
    values = yaml.safe_load(Path(sample_json["config"]).read_text())
    values["model"] = {"preset": "r18", "cfg": TINY_NET}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    check_run = run_verb("check", "c.yaml", "--json", cwd=tmp_path)
    assert read_json_output(check_run)["images"] == 8
    assert "next: kp-ray augment c.yaml" in check_run.stderr
    options = ("--set", "augment.recipes=[Original,Rotate45]")
    augment_json = read_json_output(run_verb("augment", "c.yaml", *options, "--json", cwd=tmp_path))
    assert {"sources", "variants", "seconds", "sources_per_s", "start_up_s"} <= set(augment_json)
    assert run_verb("verify", "c.yaml", *options, cwd=tmp_path).returncode == 0
    export_json = read_json_output(
        run_verb("export", "c.yaml", *options, "--recipe", "Rotate45", "--json", cwd=tmp_path)
    )
    assert export_json["images"] > 0


@pytest.mark.skipif(not (SHARED / "dacon").is_dir(), reason="the competition's labels are not in shared/data")
def test_the_competitions_labels_are_read_and_their_errors_reported(tmp_path: Path) -> None:
    data = {
        "annotations": str(SHARED / "dacon" / "train_df.csv"),
        "sample_submission": str(SHARED / "dacon" / "sample_submission.csv"),
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"run_dir": str(tmp_path / "run"), "data": data}))
    check_json = read_json_output(run_verb("check", "c.yaml", "--json", cwd=tmp_path))
    assert check_json["images"] == 4195
    assert check_json["findings"]["repeated"] == 202
    assert check_json["findings"]["jump"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "lsp").is_dir(), reason="the photographs are not in shared/data")
def test_photographs_of_many_sizes_pass_the_whole_pipeline(tmp_path: Path) -> None:
    """Train on 40 images and predict 10. The images differ in size, and some keypoints are unlabelled."""
    table = pd.read_csv(SHARED / "lsp" / "train_df.csv", dtype=str, keep_default_na=False)
    table.iloc[:40].to_csv(tmp_path / "train.csv", index=False)
    table.iloc[40:50].to_csv(tmp_path / "truth.csv", index=False)
    sample_submission = table.iloc[40:50].copy()
    sample_submission[sample_submission.columns[1:]] = "0"
    sample_submission.to_csv(tmp_path / "sample_submission.csv", index=False)
    images = str(SHARED / "lsp" / "images")
    data = {
        "annotations": str(tmp_path / "train.csv"),
        "images": images,
        "test_images": images,
        "sample_submission": str(tmp_path / "sample_submission.csv"),
        "truth": str(tmp_path / "truth.csv"),
    }
    config = tiny_config(data, tmp_path / "run", tune={"num_trials": 0})
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    result = read_json_output(run_verb("run", "c.yaml", "--json", cwd=tmp_path))
    assert result["augment"]["quarantined"] == 0
    assert result["augment"]["sources"] == 40
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["num_images"] == 10
    assert evaluation["rmse"] > 0
