"""Preflight and forecasts: what a machine or cluster has against what a config needs, and what a verb would do."""

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

import pyarrow.fs as pafs
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kp_ray.config.schema import Config
from kp_ray.data.submission import read_sample_submission
from kp_ray.errors import KpRayError, one_line
from kp_ray.storage import exists, filesystem, join, read_bytes, write_bytes
from kp_ray.store.estimate import forecast_augment, format_size
from kp_ray.store.manifest import read_manifest
from kp_ray.store.plan import plan

UPLOAD_LIMIT = 500 * 1024**2
"""Bytes of a working directory; Ray refuses more."""
SHM, LEAST_SHM = "/dev/shm", 1e9  # noqa: S108  (not a file of ours)
"""Shared memory, and its bytes under which Ray's object store moves to disk or fills up."""
ANSWER_S = 120
NOT_UPLOADED = {".git", ".venv", "runs"}
"""The exclusions of the documented `ray job submit`."""
_LOOPBACK = ("127.", "localhost", "[::1]", "::1")
_GPU_PROBE = """
import json, torch, detectron2
print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.device_count(), detectron2.__version__]))
"""


@dataclass(frozen=True)
class Check:
    """One line of the preflight; `fix` says what to do when it is not ok."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def check_machine(config: Config) -> list[Check]:
    """What can be told without a cluster: versions, inputs, the run folder, its disk, the working directory."""
    has_detectron = importlib.util.find_spec("detectron2") is not None
    fix = "make setup, or build it from source: docs/install.md (not needed to augment)"
    checks = [
        Check("python", sys.version_info >= (3, 11), sys.version.split()[0], "use Python 3.11 or newer"),
        _package("ray", "pip install kp_ray"),
        _package("albumentations", "pip install kp_ray"),
        _package("torch", "pip install 'kp_ray[train]' (not needed to augment)"),
        Check("detectron2", has_detectron, "found" if has_detectron else "missing", fix),
    ]
    inputs = ("annotations", "images", "test_images", "sample_submission", "truth", "corrections")
    for key, path in ((key, getattr(config.data, key)) for key in inputs):
        if path is not None:
            checks.append(Check(f"data.{key}", _answers(path), path, "correct the path in the config"))
    checks.append(_run_dir(config.run_dir))
    if all(check.ok for check in checks if check.name.startswith(("data.", "run_dir"))):
        checks += _store(config)
    return [*checks, _upload(config)]


def check_cluster(config: Config) -> list[Check]:
    """What the running cluster says: resources, tokens, the dashboard, and every node's software and storage."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    have = {name: sum(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
    grows = {"CPU": config.cluster.num_cpus or 0, "GPU": config.cluster.num_gpus or 0}
    needed, _ = config.train.worker_range
    few = f"train.num_workers asks for {needed} GPUs: lower it, add GPU nodes, or set cluster.num_gpus if it grows"
    none = "a cluster without CPUs can run nothing: add nodes, or set cluster.num_cpus if it grows"
    enough = not config.train.use_gpu or max(have["GPU"], grows["GPU"]) >= needed
    checks = [
        Check("nodes", True, str(len(nodes))),
        Check("cpus", max(have["CPU"], grows["CPU"]) >= 1, _now_and_later("CPU", have, grows), none),
        Check("gpus", enough, _now_and_later("GPU", have, grows), few),
    ]
    checks += _dashboard(nodes)
    note, made = join(config.run_dir, f".doctor-{uuid4().hex}"), _missing_folders(config.run_dir)
    try:
        write_bytes(note, b"seen")
    except (KpRayError, OSError) as error:
        told = one_line(error)
        return [*checks, Check("nodes' storage", False, told, "make run_dir writable; the nodes were not asked")]
    paths = [path for path in (config.data.images, config.data.test_images) if path is not None]
    waiting = {_on_node(_look_from_node, node["NodeID"], note, paths, node["Resources"]): node for node in nodes}
    done, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=ANSWER_S)
    for reference in done:
        node = waiting[reference]
        try:
            checks += _of_node(ray.get(reference), node, config, several=len(nodes) > 1)
        except ray.exceptions.RayError as error:
            told = one_line(error)[-200:]
            checks.append(Check(f"node {node['NodeManagerHostname']}", False, told, "install the same kp_ray on it"))
    names = [waiting[reference]["NodeManagerHostname"] for reference in late]
    checks += [Check(f"node {name}", False, "does not answer", "see `ray status` and its logs") for name in names]
    _remove(note, made)
    return checks


def forecast(verb: str, config: Config) -> dict[str, Any]:
    """What `augment`, `train`, `tune` or `predict` would do, and `lines` that say so; starts and writes nothing.

    Raises:
        DataError: the inputs, the store or the form are not there or malformed. What was trained or searched with
            other settings is refused by the verb itself alone.
    """
    if verb == "augment":
        summary = forecast_augment(plan(config), config)
        return {**summary.to_json(), "lines": summary.lines()}
    if verb == "predict":
        return _forecast_predict(config)
    rows = read_manifest(config.path("store")).num_rows_by_split
    train, section = config.train, config.tune
    if verb == "tune":
        total = section.max_iter or train.max_iter
        line = f"{section.num_trials} trials of up to {total} iterations, {rows['val']} validation rows"
        lines = [f"{line}, compared by {section.metric}"]
        return {"trials": section.num_trials, "iterations": total, **rows, "lines": lines}
    least, most = train.worker_range
    iterations = round(train.max_iter / most)
    workers = str(most) if least == most else f"{least} to {most}"
    finished = [one.name for one in train.members if exists(config.path("members", one.name, "model_final.pth"))]
    lines = [
        f"{len(train.members)} members ({len(finished)} finished) of {iterations} iterations on {workers} "
        f"workers, {train.ims_per_batch} images a worker and iteration, {rows['train']} stored rows of all recipes, "
        f"{rows['val']} validation rows"
    ]
    members = {"members": len(train.members), "finished": len(finished)}
    return {**members, "iterations": iterations, **rows, "lines": lines}


def _forecast_predict(config: Config) -> dict[str, Any]:
    from kp_ray.prediction.images import list_image_refs

    form = config.data.sample_submission
    images = list_image_refs(config, read_sample_submission(form) if form else None)
    names = [member.name for member in config.train.members]
    trained = [name for name in names if exists(config.path("members", name, "model_final.pth"))]
    smallest, largest = config.predict.actors
    result = {"images": len(images), "members": len(names), "trained": len(trained)}
    each = f"{config.predict.cpus_per_actor:g} CPUs and {config.predict.gpus_per_actor:g} GPUs each"
    lines = [
        f"{len(images)} images by {len(names)} members ({len(trained)} trained), "
        f"{smallest} to {largest} actors of {each}"
    ]
    return {**result, "lines": lines}


def _store(config: Config) -> list[Check]:
    """The store's forecast against the disk; nothing without labels and images."""
    if config.data.annotations is None or config.data.images is None:
        return []
    try:
        planned = forecast_augment(plan(config), config)
    except KpRayError as error:
        return [Check("store", False, str(error), "correct the data or the config; `kp-ray check` says more")]
    todo = planned.bytes * (1 - planned.parts_kept / max(planned.parts, 1))
    needs = f"what is missing of the store of {planned.sources} images takes about {format_size(todo)}"
    times = Check("store", True, " ".join(planned.lines()))
    fs, inner = filesystem(config.run_dir)
    if not isinstance(fs, pafs.LocalFileSystem):
        return [times]
    free = shutil.disk_usage(next(folder for folder in _upwards(inner) if folder.exists())).free
    fix = "free some space or choose another run_dir"
    return [times, Check("disk", free > todo, f"{format_size(free)} free, {needs}", fix)]


def _upload(config: Config) -> Check:
    """The size of what `ray job submit --working-dir .` sends from here; matters for a cluster elsewhere."""
    size = 0
    for folder, inside, files in os.walk("."):
        inside[:] = [name for name in inside if name not in NOT_UPLOADED]
        size += sum(os.lstat(join(folder, name)).st_size for name in files if os.path.lexists(join(folder, name)))
        if size > UPLOAD_LIMIT:
            break
    joins = config.cluster.address or os.environ.get("RAY_ADDRESS")
    over = "over " if size > UPLOAD_LIMIT else ""
    found = f"{os.getcwd()}: {over}{format_size(size)} without {' '.join(sorted(NOT_UPLOADED))}"
    fix = "submit from the project's folder, or add to the excludes of --runtime-env-json"
    return Check("upload", size <= UPLOAD_LIMIT or not joins, found, fix)


def _dashboard(nodes: list[dict[str, Any]]) -> list[Check]:
    """Whether the dashboard is open to the network, and whether it asks for a token."""
    url = ray._private.worker.get_dashboard_url()
    head = next((node for node in nodes if "node:__internal_head__" in node["Resources"]), None)
    if not url or head is None:
        return [Check("dashboard", True, "none")]
    try:
        status = ray.get(_on_node(_ask_without_token, head["NodeID"], url), timeout=ANSWER_S)
    except ray.exceptions.RayError as error:
        return [Check("dashboard", False, one_line(error)[-200:], "install the same kp_ray on the head")]
    asks, inside = status in (401, 403), url.startswith(_LOOPBACK)
    reach = "this machine only" if inside else "open to the network"
    keep = "start the head with --dashboard-host=127.0.0.1, or with tokens"
    tokens = "start every node with RAY_AUTH_MODE=token and the same ~/.ray/auth_token: docs/cluster.md"
    alone = inside and len(nodes) == 1
    found = "asked for" if asks else "not asked for" + (", but nobody else reaches this cluster" if alone else "")
    return [
        Check("dashboard", inside or asks, f"{url}, {reach}", keep),
        Check("tokens", asks or alone, found, tokens),
    ]


def _ask_without_token(url: str) -> int:
    """The HTTP status of the jobs' list for a client without a token; 0: no answer."""
    try:
        with urllib.request.urlopen(f"http://{url}/api/jobs/", timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _on_node(function: Any, node_id: str, *arguments: Any) -> Any:
    pinned = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=pinned)(function).remote(*arguments)


def _look_from_node(note: str, paths: list[str], resources: Mapping[str, float]) -> dict[str, Any]:
    """A task on one node: what is installed, and whether it sees the driver's note and can write beside it."""
    said: dict[str, Any] = {"host": socket.gethostname(), "ray": importlib.metadata.version("ray")}
    said["shm"] = shutil.disk_usage(SHM).total if os.path.isdir(SHM) else 0
    said["disk"] = shutil.disk_usage(tempfile.gettempdir()).free
    try:
        own = f"{note}-{uuid4().hex}"
        said["shared"] = exists(note) and read_bytes(note) == b"seen"
        write_bytes(own, b"seen")
        _remove(own)
    except (OSError, KpRayError) as error:
        said["shared"], said["why"] = False, one_line(error)
    said["unseen"] = [path for path in paths if not _answers(path)]
    if resources.get("GPU"):
        # Ray hides the GPUs from a task that asks for none; another process may see them.
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        command = [sys.executable, "-c", _GPU_PROBE]
        probe = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603
        said["gpu"] = json.loads(probe.stdout) if probe.returncode == 0 else probe.stderr.strip().splitlines()[-1:]
    return said


def _of_node(said: dict[str, Any], node: dict[str, Any], config: Config, *, several: bool) -> list[Check]:
    host, has = said["host"], node["Resources"]
    parts = [
        f"{has.get('CPU', 0):g} CPUs",
        f"{has.get('GPU', 0):g} GPUs",
        f"{format_size(has.get('memory', 0))} memory",
    ]
    found = f"{', '.join(parts)}, {format_size(said['shm'])} shm, {format_size(said['disk'])} disk free"
    fix = f"give the container at least {format_size(LEAST_SHM)}, e.g. docker run --shm-size=4g"
    same = said["ray"] == ray.__version__
    checks = [
        Check(f"node {host}", said["shm"] >= LEAST_SHM, found, fix),
        Check(f"ray on {host}", same, said["ray"], f"install ray=={ray.__version__} on {host}"),
    ]
    shared = "put run_dir on storage that every node shares and may write, or on s3://"
    seen = "put the data on storage that every node shares, or on s3://"
    if several or not said["shared"]:
        why = f" ({said['why']})" if "why" in said else ""
        checks.append(Check(f"run_dir on {host}", said["shared"], f"{config.run_dir}{why}", shared))
    checks += [Check(f"data on {host}", False, f"{path} is not there", seen) for path in said["unseen"]]
    if "gpu" in said:
        checks.append(_gpu_software(host, said["gpu"], int(has["GPU"])))
    return checks


def _gpu_software(host: str, said: list[Any], wanted: int) -> Check:
    if len(said) < 4:
        fix = "install kp_ray[train] and Detectron2 there: docs/install.md"
        return Check(f"gpu software on {host}", False, " ".join(map(str, said)) or "does not run", fix)
    torch, cuda, devices, detectron = said
    found = f"torch {torch}, CUDA {cuda or 'none'}, {devices} of {wanted} GPUs, Detectron2 {detectron}"
    fix = "install a torch built for this driver's CUDA, and start the container with its GPUs"
    return Check(f"gpu software on {host}", devices >= wanted, found, fix)


def _package(name: str, fix: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "missing", fix)


def _answers(path: str) -> bool:
    try:
        return exists(path)
    except KpRayError:
        return False


def _run_dir(run_dir: str) -> Check:
    note, made = join(run_dir, f".doctor-{uuid4().hex}"), _missing_folders(run_dir)
    try:
        write_bytes(note, b"seen")
        _remove(note, made)
    except (OSError, KpRayError) as error:
        return Check("run_dir", False, f"{run_dir}: {one_line(error)}", "choose a run_dir you can write")
    return Check("run_dir", True, run_dir)


def _upwards(folder: str) -> tuple[Path, ...]:
    return (Path(folder), *Path(folder).parents)


def _missing_folders(path: str) -> list[Path]:
    """The local folders, innermost first, that writing below a path would make."""
    fs, inner = filesystem(path)
    folders = _upwards(inner) if isinstance(fs, pafs.LocalFileSystem) else ()
    return [folder for folder in folders if not folder.exists()]


def _remove(path: str, made: Sequence[Path] = ()) -> None:
    """Delete a file and the folders that were made for it."""
    fs, inner = filesystem(path)
    fs.delete_file(inner)
    with contextlib.suppress(OSError):  # somebody else may use them by now
        for folder in made:
            folder.rmdir()


def _now_and_later(name: str, have: Mapping[str, float], grows: Mapping[str, float]) -> str:
    return f"{have[name]:g}" + (f", grows to {grows[name]:g}" if grows[name] > have[name] else "")
