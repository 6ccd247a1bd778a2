"""Preflight: what this machine or cluster has, against what kp_ray needs."""

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray

from kp_ray.config import Config, InputError, exists, file_sizes, filesystem

STORE_RATIO = 12
"""Bytes of a store of the 18 default recipes over those of its JPEG sources: measured on `make demo`'s 200 frames."""


@dataclass(frozen=True)
class Check:
    """One line of the preflight; `fix` says what to do when it is not ok."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def check_machine(config: Config) -> list[Check]:
    """What can be told without a cluster: versions, inputs, the run folder and its disk."""
    checks = [
        Check("python", sys.version_info >= (3, 11), sys.version.split()[0], "use Python 3.11 or newer"),
        _package("ray", "pip install kp_ray"),
        _package("albumentations", "pip install kp_ray"),
        _package("torch", "pip install 'kp_ray[train]' (not needed to augment)"),
        Check(
            "detectron2",
            importlib.util.find_spec("detectron2") is not None,
            "found" if importlib.util.find_spec("detectron2") else "missing",
            "make setup, or build it from source: docs/install.md (not needed to augment)",
        ),
    ]
    for key in ("annotations", "images", "test_images", "sample_submission", "truth", "corrections"):
        path = getattr(config.data, key)
        if path is not None:
            checks.append(Check(f"data.{key}", exists(path), path, "correct the path in the config"))
    checks.append(_run_dir(config.run_dir))
    fs, inner = filesystem(config.run_dir)
    if checks[-1].ok and isinstance(fs, pafs.LocalFileSystem):
        checks.append(_disk(config, inner))
    return checks


def check_cluster(config: Config) -> list[Check]:
    """What the running cluster says: equal Ray versions, resources, and a run folder that every node can write."""
    resources = ray.cluster_resources()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    checks = [
        Check("nodes", True, str(len(nodes))),
        Check("cpus", cpus >= 1, f"{cpus:g}", "a cluster without CPUs can run nothing"),
        Check(
            "gpus",
            not config.train.use_gpu or gpus >= config.train.num_workers,
            f"{gpus:g}",
            f"train.num_workers asks for {config.train.num_workers} GPUs: lower it or add GPU nodes",
        ),
    ]
    shared = Path(config.run_dir) if "://" not in config.run_dir else None
    tasks = []
    for node in nodes:
        here = {f"node:{node['NodeManagerAddress']}": 0.001}
        tasks.append(ray.remote(num_cpus=0, resources=here)(_look_from_node).remote(str(shared) if shared else None))
    for said in ray.get(tasks, timeout=60):
        same = said["ray"] == ray.__version__
        fix = f"install ray=={ray.__version__} on {said['host']}"
        checks.append(Check(f"ray on {said['host']}", same, said["ray"], fix))
        if len(nodes) > 1:
            fix = "put run_dir on storage that every node shares, or on s3://"
            checks.append(Check(f"run_dir on {said['host']}", said["writable"], str(config.run_dir), fix))
    return checks


def _look_from_node(run_dir: str | None) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "ray": importlib.metadata.version("ray"),
        "writable": run_dir is None or os.access(run_dir, os.W_OK),
    }


def _package(name: str, fix: str) -> Check:
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "missing", fix)


def _run_dir(run_dir: str) -> Check:
    fs, inner = filesystem(run_dir)
    try:
        if isinstance(fs, pafs.LocalFileSystem):
            Path(inner).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=inner):
                pass
        else:
            fs.get_file_info(inner)
    except (OSError, InputError) as error:
        return Check("run_dir", False, f"{run_dir}: {' '.join(str(error).split())}", "choose a run_dir you can write")
    return Check("run_dir", True, run_dir)


def _disk(config: Config, inner: str) -> Check:
    free = shutil.disk_usage(inner).free
    images = config.data.images
    if images is None or not exists(images):
        return Check("disk", True, f"{free / 1e9:.0f} GB free")
    sizes = file_sizes(images)
    needed = sum(sizes.values()) * STORE_RATIO * len(config.augment.recipes) / 18
    found = f"{free / 1e9:.1f} GB free, the store of {len(sizes)} images takes about {needed / 1e9:.1f} GB"
    return Check("disk", free > needed, found, "free some space or choose another run_dir")
