"""The preflight: what it finds, and the fix that it names for what is missing."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from kp_ray import doctor
from kp_ray.config.schema import Config
from kp_ray.doctor import NodeProbe, check_cluster, check_machine, check_node
from kp_ray.store.plan import plan
from tests.helpers.data import tiny_config


def test_a_healthy_machine_passes_and_the_disk_is_compared_with_the_store(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(sample_data, tmp_path / "run")
    checks = {check.name: check for check in check_machine(config)}
    assert all(check.ok for check in checks.values()), checks
    assert "12 images" in checks["disk"].found
    assert f"{len(list(plan(config).parts()))} parts" in checks["store"].found
    assert checks["data.annotations"].found == sample_data["annotations"]
    assert not (tmp_path / "run").exists()


def test_a_missing_input_and_an_unwritable_run_folder_are_red_with_the_fix(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    config = tiny_config({**sample_data, "truth": str(tmp_path / "none.csv")}, tmp_path / "file" / "run")
    bad = {check.name: check for check in check_machine(config) if not check.ok}
    assert {"data.truth", "run_dir"} <= set(bad)
    assert all(check.fix for check in bad.values())


def test_a_store_too_large_for_the_disk_and_invalid_labels_are_red(
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


def test_a_working_directory_above_the_upload_limit_is_red_with_a_remote_cluster(
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
    monkeypatch.setattr(doctor, "UPLOAD_LIMIT_BYTES", 1999)
    assert not upload(joins).ok
    assert "excludes" in upload(joins).fix
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert upload(tiny).ok


def test_the_probe_of_a_gpu_node_runs() -> None:
    pytest.importorskip("detectron2")
    done = subprocess.run([sys.executable, "-c", doctor.GPU_PROBE], capture_output=True, text=True, check=True)
    torch, _, devices, detectron = json.loads(done.stdout)
    assert isinstance(devices, int)
    assert torch
    assert detectron


@pytest.mark.usefixtures("ray_cluster")
def test_every_node_of_a_running_cluster_is_checked(sample_data: dict[str, Any], tmp_path: Path) -> None:
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


RESOURCES = {"CPU": 8.0, "GPU": 2.0, "memory": 64e9}
HEALTHY = NodeProbe(
    host="b", ray_version=ray.__version__, shm_bytes=8e9, disk_bytes=90e9, sees_run_dir=True,
    gpu_software=("2.14.1+cu130", "13.0", 2, "0.6"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "name", "fix"),
    [
        ({"ray_version": "2.59.0"}, "ray on b", "install ray=="),
        ({"shm_bytes": 64e6}, "node b", "--shm-size"),
        ({"sees_run_dir": False, "storage_error": "AWS Error ACCESS_DENIED"}, "run_dir on b", "s3://"),
        ({"missing_paths": ("/data/imgs",)}, "data on b", "s3://"),
        ({"gpu_software": ("2.14.1+cpu", None, 0, "0.6")}, "gpu software on b", "CUDA"),
        ({"gpu_software": ("ModuleNotFoundError: No module named 'detectron2'",)}, "gpu software on b", "install.md"),
    ],
)
def test_a_fault_of_a_node_is_red_with_its_fix(tiny: Config, fault: dict[str, Any], name: str, fix: str) -> None:
    assert all(check.ok for check in check_node(HEALTHY, RESOURCES, tiny, several_nodes=True))
    checks = check_node(replace(HEALTHY, **fault), RESOURCES, tiny, several_nodes=True)
    bad = [check for check in checks if not check.ok]
    assert [check.name for check in bad] == [name]
    assert fix in bad[0].fix
    assert all(value in bad[0].found for value in fault.values() if isinstance(value, str))
