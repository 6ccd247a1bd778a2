"""The whole pipeline from labels to a submission by the command line, on generated and on real data."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.helpers.data import SHARED, TINY_NET, tiny_config
from tests.helpers.processes import file_times, last_json, run_kp_ray


def kp_ray(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command with a terminal wide enough that no line is wrapped."""
    return run_kp_ray(*arguments, cwd=cwd, env={**os.environ, "COLUMNS": "200"})


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON object of a command that must have succeeded."""
    assert done.returncode == 0, done.stderr[-3000:]
    return last_json(done.stdout)


@pytest.mark.slow
def test_a_second_run_repeats_nothing(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run", tune={"num_trials": 1})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    first = kp_ray("run", "config.yaml", "--json", cwd=tmp_path)
    run = tmp_path / "run"
    assert result_of(first)["report"] == str(run / "report.html")
    assert "ensemble" in first.stdout
    assert "Traceback" not in first.stderr
    kept = [*run.glob("members/*/model_final.pth"), *run.glob("tune/trials/*/*"), run / "store" / "manifest.json"]
    before = file_times(*kept)
    second = result_of(kp_ray("run", "config.yaml", "--json", cwd=tmp_path))
    assert second["augment"]["parts_written"] == second["predict"]["predicted"] == 0
    assert file_times(*kept) == before


def test_verbs_report_their_result_and_the_next_command(sample_data: dict[str, Any], tmp_path: Path) -> None:
    sample = result_of(
        kp_ray("sample", "data", "--images", "8", "--width", "320", "--height", "180", "--json", cwd=tmp_path)
    )
    values = yaml.safe_load(Path(sample["config"]).read_text())
    values["model"] = {"preset": "r18", "cfg": TINY_NET}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    checked = kp_ray("check", "c.yaml", "--json", cwd=tmp_path)
    assert result_of(checked)["images"] == 8
    assert "next: kp-ray augment c.yaml" in checked.stderr
    stored = result_of(
        kp_ray("augment", "c.yaml", "--set", "augment.recipes=[Original,Rotate45]", "--json", cwd=tmp_path)
    )
    assert {"sources", "variants", "seconds", "sources_per_s", "start_up_s"} <= set(stored)
    options = ("--set", "augment.recipes=[Original,Rotate45]")
    assert kp_ray("verify", "c.yaml", *options, cwd=tmp_path).returncode == 0
    exported = result_of(kp_ray("export", "c.yaml", *options, "--recipe", "Rotate45", "--json", cwd=tmp_path))
    assert exported["images"] > 0


@pytest.mark.skipif(not (SHARED / "dacon").is_dir(), reason="the competition's labels are not in shared/data")
def test_the_competitions_labels_are_read_and_their_errors_reported(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"run_dir": str(tmp_path / "run"), "data": {
        "annotations": str(SHARED / "dacon" / "train_df.csv"),
        "sample_submission": str(SHARED / "dacon" / "sample_submission.csv"),
    }}))  # fmt: skip
    found = result_of(kp_ray("check", "c.yaml", "--json", cwd=tmp_path))
    assert found["images"] == 4195
    assert found["findings"]["repeated"] == 202
    assert found["findings"]["jump"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "lsp").is_dir(), reason="the photographs are not in shared/data")
def test_photographs_of_many_sizes_pass_the_whole_pipeline(tmp_path: Path) -> None:
    """40 images to train on, 10 to predict; they differ in size, some points are unlabelled, each has its own scene."""
    table = pd.read_csv(SHARED / "lsp" / "train_df.csv", dtype=str, keep_default_na=False)
    table.iloc[:40].to_csv(tmp_path / "train.csv", index=False)
    table.iloc[40:50].to_csv(tmp_path / "truth.csv", index=False)
    form = table.iloc[40:50].copy()
    form[form.columns[1:]] = "0"
    form.to_csv(tmp_path / "form.csv", index=False)
    images = str(SHARED / "lsp" / "images")
    data = {
        "annotations": str(tmp_path / "train.csv"), "images": images, "test_images": images,
        "sample_submission": str(tmp_path / "form.csv"), "truth": str(tmp_path / "truth.csv"),
    }  # fmt: skip
    config = tiny_config(data, tmp_path / "run", tune={"num_trials": 0})
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    result = result_of(kp_ray("run", "c.yaml", "--json", cwd=tmp_path))
    assert result["augment"]["quarantined"] == 0
    assert result["augment"]["sources"] == 40
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["num_images"] == 10
    assert evaluation["rmse"] > 0
