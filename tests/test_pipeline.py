"""From labels to a submission by the command line, on the sample and on real data where it is there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.helpers.data import SHARED, TINY_NET, tiny_config

KP_RAY = str(Path(sys.executable).with_name("kp-ray"))


def kp_ray(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command as a user does."""
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        [KP_RAY, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, timeout=1000, check=False
    )


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_a_second_run_repeats_nothing(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run", tune={"num_trials": 1})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    first = kp_ray("run", "config.yaml", "--json", cwd=tmp_path)
    run = tmp_path / "run"
    assert last_json(first)["report"] == str(run / "report.html")
    assert "ensemble" in first.stdout
    assert "Traceback" not in first.stderr
    kept = [*run.glob("members/*/model_final.pth"), *run.glob("tune/trials/*/*"), run / "store" / "manifest.json"]
    before = {path: path.stat().st_mtime_ns for path in kept}
    second = last_json(kp_ray("run", "config.yaml", "--json", cwd=tmp_path))
    assert second["augment"]["parts_written"] == second["predict"]["predicted"] == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_every_verb_says_what_it_did_and_what_comes_next(sample_data: dict[str, Any], tmp_path: Path) -> None:
    made = last_json(
        kp_ray("sample", "data", "--images", "8", "--width", "320", "--height", "180", "--json", cwd=tmp_path)
    )
    values = yaml.safe_load(Path(made["config"]).read_text())
    values["model"] = {"preset": "r18", "cfg": TINY_NET}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    checked = kp_ray("check", "c.yaml", "--json", cwd=tmp_path)
    assert last_json(checked)["images"] == 8
    assert "next: kp-ray augment c.yaml" in checked.stderr
    stored = last_json(
        kp_ray("augment", "c.yaml", "--set", "augment.recipes=[Original,Rotate45]", "--json", cwd=tmp_path)
    )
    assert {"sources", "variants", "seconds", "sources_per_s", "start_up_s"} <= set(stored)
    options = ("--set", "augment.recipes=[Original,Rotate45]")
    assert kp_ray("verify", "c.yaml", *options, cwd=tmp_path).returncode == 0
    exported = last_json(kp_ray("export", "c.yaml", *options, "--recipe", "Rotate45", "--json", cwd=tmp_path))
    assert exported["images"] > 0


@pytest.mark.skipif(not (SHARED / "dacon").is_dir(), reason="the competition's labels are not beside the project")
def test_the_competitions_labels_load_and_their_mistakes_are_reported(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"run_dir": str(tmp_path / "run"), "data": {
        "annotations": str(SHARED / "dacon" / "train_df.csv"),
        "sample_submission": str(SHARED / "dacon" / "sample_submission.csv"),
    }}))  # fmt: skip
    found = last_json(kp_ray("check", "c.yaml", "--json", cwd=tmp_path))
    assert found["images"] == 4195
    assert found["findings"]["repeated"] == 202
    assert found["findings"]["jump"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "lsp").is_dir(), reason="the photographs are not beside the project")
def test_real_photographs_of_many_sizes_go_the_whole_way(tmp_path: Path) -> None:
    """Frames of other sizes, empty cells, every image its own scene; 40 for training, 10 of the others to predict."""
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
    result = last_json(kp_ray("run", "c.yaml", "--json", cwd=tmp_path))
    assert result["augment"]["quarantined"] == 0
    assert result["augment"]["sources"] == 40
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["num_images"] == 10
    assert evaluation["rmse"] > 0
