"""The preflight says what is there and what to do about what is not; a forecast says what a verb would do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kp_ray import doctor
from kp_ray.config.schema import Config
from kp_ray.doctor import check_cluster, check_machine, forecast
from kp_ray.errors import KpRayError
from kp_ray.store.estimate import estimate_store
from kp_ray.store.manifest import read_manifest
from kp_ray.store.plan import plan
from kp_ray.store.write import write_store
from tests.helpers.data import tiny_config


def test_a_sound_machine_passes_and_the_disk_is_compared_with_the_store(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(sample_data, tmp_path / "run")
    checks = {check.name: check for check in check_machine(config)}
    assert all(check.ok for check in checks.values()), checks
    assert "12 images" in checks["disk"].found
    assert f"{len(list(plan(config).parts()))} parts" in checks["store"].found
    assert checks["data.annotations"].found == sample_data["annotations"]
    assert not (tmp_path / "run").exists()


def test_a_missing_input_and_a_run_folder_that_cannot_be_made_are_named_with_the_fix(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    config = tiny_config({**sample_data, "truth": str(tmp_path / "none.csv")}, tmp_path / "file" / "run")
    bad = {check.name: check for check in check_machine(config) if not check.ok}
    assert {"data.truth", "run_dir"} <= set(bad)
    assert all(check.fix for check in bad.values())


def test_a_store_that_does_not_fit_the_disk_and_labels_that_do_not_do_are_red(
    sample_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(sample_data, tmp_path / "run")
    usage = doctor.shutil.disk_usage(str(tmp_path))._replace(free=1000)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    bad = [check for check in check_machine(config) if not check.ok]
    assert [check.name for check in bad] == ["disk"]
    (tmp_path / "labels.csv").write_text("image,nose_x\na.jpg,1\n")
    wrong = tiny_config({**sample_data, "annotations": str(tmp_path / "labels.csv")}, tmp_path / "run")
    bad = [check for check in check_machine(wrong) if not check.ok]
    assert [check.name for check in bad] == ["store"]
    assert "labels.csv" in bad[0].found


def test_a_working_directory_too_large_to_send_is_red_where_it_would_be_sent(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (".git", "runs", "kp_ray"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_bytes(bytes(2000))
    joins = tiny.model_copy(update={"cluster": tiny.cluster.model_copy(update={"address": "10.0.0.1:6379"})})

    def upload(config: Config) -> doctor.Check:
        return next(check for check in check_machine(config) if check.name == "upload")

    assert upload(joins).ok
    assert "2 kB" in upload(joins).found
    monkeypatch.setattr(doctor, "UPLOAD_LIMIT", 1999)
    assert not upload(joins).ok
    assert "excludes" in upload(joins).fix
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert upload(tiny).ok


def test_a_forecast_is_what_the_store_becomes(ray_cluster: None, sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run")
    foreseen = forecast("augment", config)
    assert not (tmp_path / "run").exists()
    planned = plan(config)
    write_store(planned)
    manifest = read_manifest(planned.store)
    assert (foreseen["sources"], foreseen["variants"]) == (manifest.num_sources, manifest.num_variants)
    assert foreseen["parts"] == len(manifest.parts)
    assert foreseen["parts_kept"] == 0
    assert foreseen["bytes"] == pytest.approx(sum(part.num_bytes for part in manifest.parts), rel=0.2)
    assert forecast("augment", config)["parts_kept"] == len(manifest.parts)
    assert estimate_store(planned, 2).seconds > estimate_store(planned, 1e9).seconds


def test_forecasts_of_the_other_stages_count_what_they_would_do(
    ray_cluster: None, sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(sample_data, tmp_path / "run")
    for verb in ("train", "tune"):
        with pytest.raises(KpRayError, match="run augment first"):
            forecast(verb, config)
    write_store(plan(config))
    assert forecast("train", config)["iterations"] == 4
    assert forecast("train", config)["finished"] == 0
    assert forecast("tune", config)["trials"] == 2
    predicted = forecast("predict", config)
    assert (predicted["images"], predicted["members"], predicted["trained"]) == (10, 1, 0)
    assert all(forecast(verb, config)["lines"] for verb in ("augment", "train", "tune", "predict"))


def test_a_dry_run_prints_the_plan_and_neither_starts_nor_writes(sample_data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(tiny_config(sample_data, tmp_path / "run").to_yaml())
    command = [KP_RAY, "augment", "config.yaml", "--dry-run", "--json"]
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}  # nobody there: joining would fail
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert {"sources", "variants", "parts", "bytes", "seconds"} <= set(told)
    assert f"{told['sources']} sources, {told['variants']} variants of 2 recipes" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_the_probe_of_a_gpu_node_runs() -> None:
    pytest.importorskip("detectron2")
    done = subprocess.run([sys.executable, "-c", doctor._GPU_PROBE], capture_output=True, text=True, check=True)
    torch, _, devices, detectron = json.loads(done.stdout)
    assert isinstance(devices, int)
    assert torch
    assert detectron


@pytest.mark.usefixtures("ray_cluster")
def test_the_cluster_is_asked_node_by_node(sample_data: dict[str, Any], tmp_path: Path) -> None:
    checks = {check.name: check for check in check_cluster(tiny_config(sample_data, tmp_path / "run"))}
    assert all(check.ok for check in checks.values()), checks
    assert checks["cpus"].found == "4"
    assert "this machine only" in checks["dashboard"].found
    assert "not asked for" in checks["tokens"].found
    greedy = tiny_config(sample_data, tmp_path / "run", train={"use_gpu": True, "num_workers": 8})
    bad = [check for check in check_cluster(greedy) if not check.ok]
    assert [check.name for check in bad] == ["gpus"]
    grows = greedy.model_copy(update={"cluster": greedy.cluster.model_copy(update={"num_gpus": 8})})
    assert all(check.ok for check in check_cluster(grows))
    assert not (tmp_path / "run").exists()


KP_RAY = str(Path(sys.executable).with_name("kp-ray"))
NODE = {"Resources": {"CPU": 8.0, "GPU": 2.0, "memory": 64e9}}
SAID: dict[str, Any] = {
    "host": "b", "ray": doctor.ray.__version__, "shm": 8e9, "disk": 90e9, "shared": True, "unseen": [],
    "gpu": ["2.14.1+cu130", "13.0", 2, "0.6"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "name", "fix"),
    [
        ({"ray": "2.59.0"}, "ray on b", "install ray=="),
        ({"shm": 64e6}, "node b", "--shm-size"),
        ({"shared": False, "why": "AWS Error ACCESS_DENIED"}, "run_dir on b", "s3://"),
        ({"unseen": ["/data/imgs"]}, "data on b", "s3://"),
        ({"gpu": ["2.14.1+cpu", None, 0, "0.6"]}, "gpu software on b", "CUDA"),
        ({"gpu": ["ModuleNotFoundError: No module named 'detectron2'"]}, "gpu software on b", "docs/install.md"),
    ],
)
def test_what_a_node_lacks_is_red_with_the_fix(tiny: Config, said: dict[str, Any], name: str, fix: str) -> None:
    assert all(check.ok for check in doctor._of_node(SAID, NODE, tiny, several=True))
    bad = [check for check in doctor._of_node({**SAID, **said}, NODE, tiny, several=True) if not check.ok]
    assert [check.name for check in bad] == [name]
    assert fix in bad[0].fix
    assert all(str(value) in bad[0].found for value in said.values() if isinstance(value, str))
