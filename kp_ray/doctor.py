"""`kp-ray doctor`: check this machine, the inputs and the cluster against the needs of a config."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kp_ray import __version__
from kp_ray.cluster.errors import describe_ray_error, root_cause
from kp_ray.cluster.ray_internals import dashboard_url, is_head, upload_limit_bytes, upload_size_bytes
from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError, StorageError
from kp_ray.storage import delete_file, exists, filesystem, is_local, join, read_bytes, write_bytes
from kp_ray.store.estimate import format_size
from kp_ray.store.stage import AugmentStage

SHM, MIN_SHM_BYTES = "/dev/shm", 1e9  # noqa: S108  (Linux's shared memory, not a temporary file)
"""Folder of the shared memory, and the size below which Ray's object store moves to disk or fills up."""
NODE_TIMEOUT_S = 120
"""Seconds within which a node must answer."""
UPLOAD_EXCLUDES = (".git", ".venv", "runs")
"""Folders that the `ray job submit` command in docs/cluster.md excludes from the upload."""
SAME_VERSION_FIX = f"install kp_ray {__version__}, this machine's version, on the node"
_LOOPBACK = ("127.", "localhost", "[::1]", "::1")
GPU_PROBE = """
import json, torch, detectron2
print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.device_count(), detectron2.__version__]))
"""
"""Code that a fresh interpreter runs on each GPU node: it prints the values of `GpuSoftware` as a JSON list."""


@dataclass(frozen=True)
class Check:
    """The result of one check, printed as one line.

    Attributes:
        name: the checked property, e.g. "disk" or "data.images".
        ok: whether the check passed.
        value: the measured values, as text.
        fix: what the user should do if the check failed.
    """

    name: str
    ok: bool
    value: str
    fix: str = ""


@dataclass(frozen=True)
class GpuSoftware:
    """The torch and Detectron2 of a GPU node.

    Attributes:
        torch, detectron2: installed versions.
        cuda: CUDA version for which torch was built; None for a torch without CUDA.
        num_devices: number of GPUs that torch sees.
    """

    torch: str
    cuda: str | None
    num_devices: int
    detectron2: str


@dataclass(frozen=True)
class NodeProbe:
    """Properties of a node, measured by a task that ran on it.

    Attributes:
        host: name of the node's host.
        ray_version: version of the installed Ray.
        shm_bytes: size of the shared memory; None on macOS, which has no folder for it.
        disk_bytes: free space in the temporary folder.
        shares_run_dir: whether the node can read the driver's file in the run folder, and write its own file there.
        storage_error: message of the error that the storage raised; "" without an error.
        missing_paths: data paths that the node cannot reach.
        gpu_software: the node's GPU software; None without GPUs, or if torch or Detectron2 cannot be imported.
        gpu_error: the last line of the import's error; "" without an error.
    """

    host: str
    ray_version: str
    shm_bytes: float | None
    disk_bytes: float
    shares_run_dir: bool
    storage_error: str = ""
    missing_paths: tuple[str, ...] = ()
    gpu_software: GpuSoftware | None = None
    gpu_error: str = ""


def check_machine(config: Config) -> list[Check]:
    """Check everything that needs no cluster: versions, inputs, run folder, free disk, the size of an upload."""
    has_detectron = importlib.util.find_spec("detectron2") is not None
    detectron_fix = "run make setup, or build Detectron2 from source: docs/install.md (not needed to augment)"
    checks = [
        Check("python", sys.version_info >= (3, 11), sys.version.split()[0], "use Python 3.11 or newer"),
        _check_package("ray", "pip install kp_ray"),
        _check_package("albumentations", "pip install kp_ray"),
        _check_package("torch", "pip install 'kp_ray[train]' (not needed to augment)"),
        Check("detectron2", has_detectron, "found" if has_detectron else "missing", detectron_fix),
    ]
    for key in ("annotations", "images", "test_images", "sample_submission", "truth", "corrections"):
        path = getattr(config.data, key)
        if path is not None:
            checks.append(Check(f"data.{key}", _is_reachable(path), path, "correct the path in the config"))
    checks.append(_check_run_dir(config.run_dir))
    if all(check.ok for check in checks if check.name.startswith(("data.", "run_dir"))):
        checks += _check_store(config)
    return [*checks, _check_upload(config)]


def check_cluster(config: Config) -> list[Check]:
    """Check the running cluster: resources, tokens, the dashboard, and the software and storage of every node."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    checks = [Check("nodes", True, str(len(nodes))), *_check_resources(config, nodes), *_check_dashboard(nodes)]
    probe_file, created_folders = join(config.run_dir, f".doctor-{uuid4().hex}"), _missing_folders(config.run_dir)
    try:
        write_bytes(probe_file, b"seen")
    except StorageError as error:
        fix = "make run_dir writable for this machine, then check again; the nodes were not checked"
        return [*checks, Check("run_dir", False, str(error), fix)]
    try:
        checks += _check_nodes(config, nodes, probe_file)
    finally:
        _remove(probe_file, created_folders)
    return checks


def _check_nodes(config: Config, nodes: Sequence[Mapping[str, Any]], probe_file: str) -> list[Check]:
    """Check the software of every node, and whether the node sees `probe_file` and the folders of images."""
    paths = [path for path in (config.data.images, config.data.test_images) if path is not None]
    tasks = {_run_on_node(_probe_node, node["NodeID"], probe_file, paths, node["Resources"]): node for node in nodes}
    ready, not_ready = ray.wait(list(tasks), num_returns=len(tasks), timeout=NODE_TIMEOUT_S)
    checks: list[Check] = []
    for task in ready:
        node = tasks[task]
        try:
            checks += check_node(ray.get(task), node["Resources"], config, is_multi_node=len(nodes) > 1)
        except ray.exceptions.RayError as error:
            checks.append(_failed_task(f"node {node['NodeManagerHostname']}", error))
    names = [tasks[task]["NodeManagerHostname"] for task in not_ready]
    fix = "see `ray status` and the node's logs"
    return checks + [Check(f"node {name}", False, "does not answer", fix) for name in names]


def _failed_task(name: str, error: ray.exceptions.RayError) -> Check:
    """Return the failed check of a task that ended with an error of Ray."""
    is_other_version = isinstance(root_cause(error), ImportError | AttributeError)
    fix = SAME_VERSION_FIX if is_other_version else "see `ray status` and the node's logs"
    return Check(name, False, describe_ray_error(error), fix)


def check_node(probe: NodeProbe, resources: Mapping[str, float], config: Config, *, is_multi_node: bool) -> list[Check]:
    """Check one node.

    Args:
        probe: properties that a task measured on the node.
        resources: the node's resources as Ray reports them, e.g. {"CPU": 8.0, "memory": 64e9}.
        config: the run's configuration.
        is_multi_node: whether the cluster has several nodes, which must share the run folder.
    """
    amounts = [f"{resources.get('CPU', 0):g} CPUs", f"{resources.get('GPU', 0):g} GPUs"]
    amounts.append(f"{format_size(resources.get('memory', 0))} memory")
    if probe.shm_bytes is not None:
        amounts.append(f"{format_size(probe.shm_bytes)} shm")
    value = f"{', '.join(amounts)}, {format_size(probe.disk_bytes)} disk free"
    has_shm = probe.shm_bytes is None or probe.shm_bytes >= MIN_SHM_BYTES
    fix = f"give the container at least {format_size(MIN_SHM_BYTES)}, e.g. docker run --shm-size=4g"
    has_same_ray = probe.ray_version == ray.__version__
    ray_fix = f"install ray=={ray.__version__} on {probe.host}"
    checks = [
        Check(f"node {probe.host}", has_shm, value, fix),
        Check(f"ray on {probe.host}", has_same_ray, probe.ray_version, ray_fix),
    ]
    if is_multi_node or not probe.shares_run_dir:
        reason = f" ({probe.storage_error})" if probe.storage_error else ""
        fix = "put run_dir on s3:// or in a folder that every node shares and may write to"
        checks.append(Check(f"run_dir on {probe.host}", probe.shares_run_dir, f"{config.run_dir}{reason}", fix))
    fix = "put the data on s3:// or in a folder that every node shares"
    checks += [Check(f"data on {probe.host}", False, f"{path} does not exist", fix) for path in probe.missing_paths]
    if probe.gpu_error:
        fix = "install kp_ray[train] and Detectron2 on that node: docs/install.md"
        checks.append(Check(f"gpu software on {probe.host}", False, probe.gpu_error, fix))
    if probe.gpu_software is not None:
        checks.append(_check_gpu_software(probe.host, probe.gpu_software, int(resources["GPU"])))
    return checks


def _check_gpu_software(host: str, software: GpuSoftware, num_gpus: int) -> Check:
    value = (
        f"torch {software.torch}, CUDA {software.cuda or 'none'}, {software.num_devices} of {num_gpus} GPUs, "
        f"Detectron2 {software.detectron2}"
    )
    fix = "install a torch built for the CUDA of the node's driver, and start the container with all its GPUs"
    return Check(f"gpu software on {host}", software.num_devices >= num_gpus, value, fix)


def _check_resources(config: Config, nodes: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Check that the cluster, grown to its full size, has a CPU and the GPUs that training needs."""
    current_size = {name: sum(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    configured_size = {"CPU": config.cluster.num_cpus or 0, "GPU": config.cluster.num_gpus or 0}
    full_size = {name: max(current_size[name], configured_size[name]) for name in current_size}
    amounts = {
        name: f"{size:g}" + (f", grows to {full_size[name]:g}" if full_size[name] > size else "")
        for name, size in current_size.items()
    }
    num_gpus = config.train.min_workers if config.train.use_gpu else 0
    cpus_fix = "add nodes with CPUs, or set cluster.num_cpus to the size to which the cluster grows"
    gpus_fix = f"train.num_workers needs {num_gpus} GPUs: lower it, add GPU nodes, or set cluster.num_gpus "
    gpus_fix += "to the number to which the cluster grows"
    return [
        Check("cpus", full_size["CPU"] >= 1, amounts["CPU"], cpus_fix),
        Check("gpus", full_size["GPU"] >= num_gpus, amounts["GPU"], gpus_fix),
    ]


def _check_store(config: Config) -> list[Check]:
    """Compare the bytes still to be written to the store with the free disk; return [] without input data."""
    if config.data.annotations is None or config.data.images is None:
        return []
    try:
        forecast = AugmentStage().forecast(config)
    except KpRayError as error:
        return [Check("store", False, str(error), "correct the data or the config; `kp-ray check` lists every mistake")]
    missing_bytes = forecast.bytes * (1 - forecast.parts_kept / max(forecast.parts, 1))
    need = f"about {format_size(missing_bytes)} of the store of {forecast.sources} images is still to be written"
    checks = [Check("store", True, " ".join(forecast.lines()))]
    if is_local(config.run_dir):
        free_bytes = shutil.disk_usage(
            next(folder for folder in _with_parents(config.run_dir) if os.path.exists(folder))
        ).free
        fix = "free some space or choose another run_dir"
        checks.append(Check("disk", free_bytes > missing_bytes, f"{format_size(free_bytes)} free; {need}", fix))
    return checks


def _check_upload(config: Config) -> Check:
    """Check the size of the files that `ray job submit --working-dir .` would upload.

    The check always passes if neither the config nor RAY_ADDRESS names a cluster, because a local run uploads nothing.
    """
    limit = upload_limit_bytes()
    has_cluster_address = bool(config.cluster.address or os.environ.get("RAY_ADDRESS"))
    try:
        size = upload_size_bytes(".", UPLOAD_EXCLUDES, limit)
    except OSError as error:  # Ray's upload fails in the same way
        fix = "submit from a folder that you may read, or name this one in .rayignore"
        return Check("upload", not has_cluster_address, f"{error.filename}: {error.strerror}", fix)
    amount = format_size(size) if size < limit else f"{format_size(limit)} or more"
    value = f"{os.getcwd()}: {amount} without {' '.join(UPLOAD_EXCLUDES)} and ignored files"
    fix = (
        f"Ray's job server refuses {format_size(limit)} or more: submit from the project's folder, or name large files "
        "in .rayignore or in the excludes of --runtime-env-json"
    )
    return Check("upload", size < limit or not has_cluster_address, value, fix)


def _check_dashboard(nodes: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Check whether the dashboard is open to the network, and whether it requires a token."""
    url = dashboard_url()
    head = next((node for node in nodes if is_head(node)), None)
    if not url or head is None:
        return [Check("dashboard", True, "none")]
    try:
        status = ray.get(_run_on_node(_request_without_token, head["NodeID"], url), timeout=NODE_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        return [_failed_task("dashboard", error)]
    if status is None:
        return [Check("dashboard", False, f"{url} does not answer", "see dashboard.log in Ray's logs on the head")]
    requires_token, is_loopback = status in (401, 403), url.startswith(_LOOPBACK)
    access = "this machine only" if is_loopback else "open to the network"
    dashboard_fix = "start the head with --dashboard-host=127.0.0.1, or require tokens (RAY_AUTH_MODE=token)"
    tokens_fix = "start every node with RAY_AUTH_MODE=token and the same ~/.ray/auth_token: docs/cluster.md"
    is_private = is_loopback and len(nodes) == 1
    tokens = "required" if requires_token else "not required"
    if is_private and not requires_token:
        tokens += ", but only this machine reaches the cluster"
    return [
        Check("dashboard", is_loopback or requires_token, f"{url}, {access}", dashboard_fix),
        Check("tokens", requires_token or is_private, tokens, tokens_fix),
    ]


def _request_without_token(url: str) -> int | None:
    """Request the list of jobs without a token, in a Ray task; return the HTTP status, or None without a response."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy's refusal would look like Ray's
    try:
        with opener.open(f"http://{url}/api/jobs/", timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def _run_on_node(function: Any, node_id: str, *arguments: Any) -> Any:
    """Start a Ray task on one node and return its reference."""
    strategy = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=strategy)(function).remote(*arguments)


def _probe_node(probe_file: str, paths: list[str], resources: Mapping[str, float]) -> NodeProbe:
    """Probe the node on which this Ray task runs."""
    storage_error = ""
    try:
        shares_run_dir = exists(probe_file) and read_bytes(probe_file) == b"seen"
        node_file = f"{probe_file}-{uuid4().hex}"
        write_bytes(node_file, b"seen")
        _remove(node_file)
    except StorageError as error:
        shares_run_dir, storage_error = False, str(error)
    gpu_software, gpu_error = _probe_gpu_software() if resources.get("GPU") else (None, "")
    return NodeProbe(
        host=socket.gethostname(),
        ray_version=importlib.metadata.version("ray"),
        shm_bytes=shutil.disk_usage(SHM).total if os.path.isdir(SHM) else None if sys.platform == "darwin" else 0,
        disk_bytes=shutil.disk_usage(tempfile.gettempdir()).free,
        shares_run_dir=shares_run_dir,
        storage_error=storage_error,
        missing_paths=tuple(path for path in paths if not _is_reachable(path)),
        gpu_software=gpu_software,
        gpu_error=gpu_error,
    )


def _probe_gpu_software() -> tuple[GpuSoftware | None, str]:
    """Return the software of this GPU node, or None and the last line of the error if it cannot be imported."""
    # Ray sets CUDA_VISIBLE_DEVICES to hide the GPUs from a task that requests none. A process without this variable
    # sees all GPUs.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", GPU_PROBE]
    probe = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if probe.returncode:
        return None, probe.stderr.strip().rpartition("\n")[2] or f"python ended with exit status {probe.returncode}"
    return GpuSoftware(*json.loads(probe.stdout)), ""


def _check_package(name: str, fix: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "missing", fix)


def _is_reachable(path: str) -> bool:
    try:
        return exists(path)
    except StorageError:
        return False


def _check_run_dir(run_dir: str) -> Check:
    probe_file, created_folders = join(run_dir, f".doctor-{uuid4().hex}"), _missing_folders(run_dir)
    try:
        write_bytes(probe_file, b"seen")
        _remove(probe_file, created_folders)
    except StorageError as error:
        return Check("run_dir", False, str(error), "choose a run_dir that you can write to")
    return Check("run_dir", True, run_dir)


def _with_parents(path: str) -> tuple[Path, ...]:
    """Return a local path and its parent folders, innermost first."""
    _, local_path = filesystem(path)
    return (Path(local_path), *Path(local_path).parents)


def _missing_folders(path: str) -> list[Path]:
    """Return the local folders, innermost first, that a write into a folder would create."""
    return [folder for folder in _with_parents(path) if not os.path.exists(folder)] if is_local(path) else []


def _remove(path: str, created_folders: Sequence[Path] = ()) -> None:
    """Delete a file, then the created folders if they are empty."""
    delete_file(path)
    with contextlib.suppress(OSError):  # another process may have written into the folders
        for folder in created_folders:
            folder.rmdir()
