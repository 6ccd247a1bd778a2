"""Run `kp-ray augment` as a process, read its store, and find its workers.

Tests compare the store of a disturbed run with the store of an undisturbed run.
"""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from kp_ray.config.presets import DEFAULT_RECIPES
from tests.helpers.data import tiny_config
from tests.helpers.processes import wait_until
from tests.helpers.stores import read_quarantine

StartAugment = Callable[..., subprocess.Popen[str]]
"""Starts `kp-ray augment CONFIG --json` with settings `a.b=value`: (config, *settings) -> process."""


def write_augment_config(data: dict[str, Any], folder: Path, run_dir: Path | None = None, **augment: Any) -> Path:
    """Write a config with all default recipes and 4 sources per part; return its path.

    Args:
        data: section `data` of the config.
        folder: receives `config.yaml`.
        run_dir: the run folder; None: `folder/run`.
        augment: further settings of section `augment`.
    """
    section = {"recipes": list(DEFAULT_RECIPES), "sources_per_part": 4, **augment}
    config = tiny_config(data, run_dir or folder / "run", split={"fraction": 0.1}, augment=section)
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    return path


def store_dir(config: Path) -> Path:
    """Return the path of the store in a config file's run folder."""
    return Path(yaml.safe_load(config.read_text())["run_dir"]) / "store"


def list_parts(config: Path) -> list[Path]:
    """List the finished parts of a store."""
    return sorted(store_dir(config).glob("recipe-*/*.parquet"))


def read_contents(config: Path) -> dict[str, Any]:
    """Read the contents of a finished store, and check that the manifest agrees with the files.

    Returns:
        `digests` (path of a part -> SHA-256), `manifest`, and `quarantine` (its rows).
    """
    store = store_dir(config)
    digests = {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in list_parts(config)}
    manifest = json.loads((store / "_manifest.json").read_text())
    assert {part["path"]: part["sha256"] for part in manifest["parts"]} == digests
    files = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}
    assert files == {*digests, "_manifest.json", "_quarantine.csv", ".lock"}
    return {"digests": digests, "manifest": manifest, "quarantine": read_quarantine(store)}


def find_writers(config: Path) -> dict[int, int]:
    """Find the Ray workers that have an unfinished part open; return pid -> pid of the raylet that started it."""
    writers, folder = {}, f"{store_dir(config)}/recipe-"
    for process in psutil.process_iter():
        try:
            if not process.name().startswith("ray::"):
                continue
            if any(file.path.startswith(folder) for file in process.open_files()):
                writers[process.pid] = process.ppid()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return writers


def wait_for_writers(process: subprocess.Popen[str], config: Path, raylet: int | None = None) -> dict[int, int]:
    """Wait until a worker writes a part; return the writers as `find_writers` does.

    Args:
        raylet: pid of a raylet, to count only the workers of its node; None: the workers of all nodes.
    """

    def find_node_writers() -> dict[int, int]:
        return {pid: parent for pid, parent in find_writers(config).items() if raylet in (None, parent)}

    return wait_until(find_node_writers, process, poll_s=0.01)


def finish_with_only_an_error(process: subprocess.Popen[str], timeout_s: float = 400) -> str:
    """Wait for a run whose stderr must hold only progress and one error message; return the message."""
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 2, err
    lines = [line for line in err.splitlines() if not line.startswith("augment ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("kp-ray: ")
    assert not any(line.startswith("{") for line in out.splitlines())  # no JSON result; Ray prints other lines
    return lines[0]
