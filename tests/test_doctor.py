"""`kp-ray doctor`: the checks, and the fix that each failed check names."""

import http.server
import json
import socketserver
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from kp_ray import doctor
from kp_ray.config.schema import Config
from kp_ray.doctor import GpuSoftware, NodeProbe, check_cluster, check_machine, check_node
from kp_ray.store.plan import make_plan
from tests.helpers.data import tiny_config


def test_every_check_of_a_healthy_machine_passes(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run")
    checks = {check.name: check for check in check_machine(config)}
    assert all(check.ok for check in checks.values()), checks
    assert "12 images" in checks["disk"].value
    assert f"{len(list(make_plan(config).parts()))} parts" in checks["store"].value
    assert checks["data.annotations"].value == sample_data["annotations"]
    assert not (tmp_path / "run").exists()


def test_a_missing_input_and_an_unwritable_run_folder_fail_with_a_fix(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    config = tiny_config({**sample_data, "truth": str(tmp_path / "none.csv")}, tmp_path / "file" / "run")
    failures = {check.name: check for check in check_machine(config) if not check.ok}
    assert {"data.truth", "run_dir"} <= set(failures)
    assert all(check.fix for check in failures.values())


def test_a_store_too_large_for_the_disk_and_invalid_labels_fail(
    sample_data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(sample_data, tmp_path / "run")
    usage = doctor.shutil.disk_usage(str(tmp_path))._replace(free=1000)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    failures = [check for check in check_machine(config) if not check.ok]
    assert [check.name for check in failures] == ["disk"]
    (tmp_path / "labels.csv").write_text("image,nose_x\na.jpg,1\n")
    invalid_config = tiny_config({**sample_data, "annotations": str(tmp_path / "labels.csv")}, tmp_path / "run")
    failures = [check for check in check_machine(invalid_config) if not check.ok]
    assert [check.name for check in failures] == ["store"]
    assert "labels.csv" in failures[0].value


def test_a_working_directory_above_the_upload_limit_fails_if_a_cluster_is_named(
    sample_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for folder in (".git", "runs", "kp_ray"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_bytes(bytes(2000))
    remote_config = sample_config.model_copy(
        update={"cluster": sample_config.cluster.model_copy(update={"address": "10.0.0.1:6379"})}
    )

    def check_upload(config: Config) -> doctor.Check:
        return next(check for check in check_machine(config) if check.name == "upload")

    assert check_upload(remote_config).ok
    assert "2 kB" in check_upload(remote_config).value
    with open(tmp_path / "kp_ray" / "weights.pth", "wb") as file:
        file.truncate(100 << 20)  # the limit of Ray's job server
    assert not check_upload(remote_config).ok
    assert "excludes" in check_upload(remote_config).fix
    assert check_upload(sample_config).ok
    (tmp_path / ".rayignore").write_text("*.pth\n")
    assert check_upload(remote_config).ok


def test_a_working_directory_that_cannot_be_read_is_one_failed_check(
    sample_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(13, "Permission denied", "/data/lost+found")

    monkeypatch.setattr(doctor, "upload_size_bytes", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    (check,) = (check for check in check_machine(sample_config) if not check.ok)
    assert (check.name, check.value) == ("upload", "/data/lost+found: Permission denied")


def test_the_dashboard_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nothing listens there
        monkeypatch.delenv("no_proxy", raising=False)
        assert doctor._request_without_token(f"127.0.0.1:{server.server_address[1]}") == 404


def test_the_gpu_probe_prints_versions_and_the_number_of_gpus() -> None:
    pytest.importorskip("detectron2")
    result = subprocess.run([sys.executable, "-c", doctor.GPU_PROBE], capture_output=True, text=True, check=True)
    torch_version, _, num_gpus, detectron_version = json.loads(result.stdout)
    assert isinstance(num_gpus, int)
    assert torch_version
    assert detectron_version


@pytest.mark.usefixtures("ray_cluster")
def test_every_node_of_a_running_cluster_is_checked(sample_data: dict[str, Any], tmp_path: Path) -> None:
    checks = {check.name: check for check in check_cluster(tiny_config(sample_data, tmp_path / "run"))}
    assert all(check.ok for check in checks.values()), checks
    assert checks["cpus"].value == "4"
    assert "this machine only" in checks["dashboard"].value
    assert "not required" in checks["tokens"].value
    gpu_config = tiny_config(sample_data, tmp_path / "run", train={"use_gpu": True, "num_workers": 8})
    assert [check.name for check in check_cluster(gpu_config) if not check.ok] == ["gpus"]
    cluster = gpu_config.cluster.model_copy(update={"num_gpus": 8})
    assert all(check.ok for check in check_cluster(gpu_config.model_copy(update={"cluster": cluster})))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("url", "status", "num_nodes", "failed", "value"),
    [
        ("10.0.0.1:8265", 200, 1, ["dashboard", "tokens"], "10.0.0.1:8265, open to the network"),
        ("10.0.0.1:8265", 401, 2, [], "10.0.0.1:8265, open to the network"),
        ("10.0.0.1:8265", 403, 2, [], "10.0.0.1:8265, open to the network"),
        ("127.0.0.1:8265", 200, 1, [], "127.0.0.1:8265, this machine only"),
        ("127.0.0.1:8265", 200, 2, ["tokens"], "127.0.0.1:8265, this machine only"),
        ("10.0.0.1:8265", None, 1, ["dashboard"], "10.0.0.1:8265 does not answer"),
        ("", None, 1, [], "none"),
    ],
)
def test_a_dashboard_that_is_open_to_the_network_without_tokens_fails(
    monkeypatch: pytest.MonkeyPatch, url: str, status: int | None, num_nodes: int, failed: list[str], value: str
) -> None:
    monkeypatch.setattr(doctor, "dashboard_url", lambda: url)
    monkeypatch.setattr(doctor, "is_head", lambda node: node["NodeID"] == "0")
    requests = []

    def request(function: Any, node_id: str, *arguments: Any) -> int | None:
        requests.append((function, node_id, arguments))
        return status

    monkeypatch.setattr(doctor, "_run_on_node", request)
    monkeypatch.setattr(doctor.ray, "get", lambda reference, timeout: reference)
    checks = {check.name: check for check in doctor._check_dashboard([{"NodeID": str(i)} for i in range(num_nodes)])}
    assert requests == ([(doctor._request_without_token, "0", (url,))] if url else [])
    assert [name for name, check in checks.items() if not check.ok] == failed
    assert all(checks[name].fix for name in failed)
    assert checks["dashboard"].value == value
    if status is not None:
        assert checks["tokens"].value.startswith("required" if status in (401, 403) else "not required")
        assert "RAY_AUTH_MODE=token" in checks["tokens"].fix


RESOURCES = {"CPU": 8.0, "GPU": 2.0, "memory": 64e9}
HEALTHY_NODE = NodeProbe(
    host="b",
    ray_version=ray.__version__,
    shm_bytes=8e9,
    disk_bytes=90e9,
    shares_run_dir=True,
    gpu_software=GpuSoftware("2.14.1+cu130", "13.0", 2, "0.6"),
)


@pytest.mark.parametrize(
    ("fault", "name", "fix"),
    [
        ({"ray_version": "2.59.0"}, "ray on b", "install ray=="),
        ({"shm_bytes": 64e6}, "node b", "--shm-size"),
        ({"shares_run_dir": False, "storage_error": "AWS Error ACCESS_DENIED"}, "run_dir on b", "s3://"),
        ({"missing_paths": ("/data/imgs",)}, "data on b", "s3://"),
        ({"gpu_software": GpuSoftware("2.14.1+cpu", None, 0, "0.6")}, "gpu software on b", "CUDA"),
        ({"gpu_software": None, "gpu_error": "No module named 'detectron2'"}, "gpu software on b", "install.md"),
    ],
)
def test_a_fault_of_a_node_fails_one_check_that_names_the_fix(
    sample_config: Config, fault: dict[str, Any], name: str, fix: str
) -> None:
    assert all(check.ok for check in check_node(HEALTHY_NODE, RESOURCES, sample_config, is_multi_node=True))
    checks = check_node(replace(HEALTHY_NODE, **fault), RESOURCES, sample_config, is_multi_node=True)
    failures = [check for check in checks if not check.ok]
    assert [check.name for check in failures] == [name]
    assert fix in failures[0].fix
    assert all(value in failures[0].value for value in fault.values() if isinstance(value, str))


def test_only_a_node_with_a_folder_of_shared_memory_must_have_some(sample_config: Config) -> None:
    for shm_bytes, is_ok in ((None, True), (0, False), (2e9, True)):
        probe = replace(HEALTHY_NODE, shm_bytes=shm_bytes)
        check = check_node(probe, RESOURCES, sample_config, is_multi_node=False)[0]
        assert check.ok == is_ok
        assert ("shm" in check.value) == (shm_bytes is not None)
