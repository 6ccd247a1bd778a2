"""Many small sources, several concurrent jobs, and half an hour of runs and kills on one cluster."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from kp_ray.config.load import load_config
from kp_ray.config.schema import AugmentConfig
from kp_ray.data.load import load_annotations
from kp_ray.keypoints import DACON24
from kp_ray.store.plan import make_plan, plan_store
from kp_ray.store.verify import verify_store
from tests.helpers.augment_runs import StartAugment, list_parts, read_contents, write_augment_config
from tests.helpers.processes import finish, start_kp_ray

pytestmark = pytest.mark.slow

SOAK_S = 60 * float(os.environ.get("SOAK_MINUTES", "30"))
"""Duration of the soak test in seconds."""


def write_frames_and_labels(folder: Path, num_frames: int) -> dict[str, Any]:
    """Write frames of 160x90 pixels, which are links to ten images, and their labels; return the `data` section."""
    images = folder / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(10):
        Image.fromarray(rng.integers(0, 255, (90, 160, 3), dtype=np.uint8)).save(folder / f"{number}.jpg", quality=95)
    lines = [",".join(["image", *DACON24.columns])]
    for number in range(num_frames):
        name = f"{number // 100:04d}_A-{number:07d}.jpg"
        (images / name).symlink_to(folder / f"{number % 10}.jpg")
        lines.append(",".join([name, *(f"{value:.1f}" for value in rng.uniform(2, 34, 48))]))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return {"annotations": str(folder / "labels.csv"), "images": str(images)}


@pytest.fixture
def cluster_address() -> Iterator[str]:
    """Start a cluster that runs longer than its jobs; return its address."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def test_ten_thousand_small_sources_are_stored_by_a_driver_that_holds_no_pixels(
    start_augment: StartAugment, cluster_address: str, tmp_path: Path
) -> None:
    config = write_augment_config(
        write_frames_and_labels(tmp_path / "data", 10_000), tmp_path, recipes=["Original", "Rotate45"]
    )
    run = start_augment(config, f"cluster.address={cluster_address}")
    driver, peak_bytes = psutil.Process(run.pid), 0
    while run.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak_bytes = max(peak_bytes, driver.memory_info().rss)
        time.sleep(0.2)
    summary = finish(run)
    assert (summary["sources"], summary["quarantined"]) == (10_000, 0)
    parts = read_contents(config)["manifest"]["parts"]
    assert summary["variants"] == sum(part["num_rows"] for part in parts)
    assert sum(part["num_bytes"] for part in parts) > 300 << 20
    assert peak_bytes < 450 << 20, "the driver holds pixels (an idle driver has 280 MiB)"
    began = time.monotonic()
    assert finish(start_augment(config))["parts_written"] == 0
    assert time.monotonic() - began < 30
    assert verify_store(make_plan(load_config(str(config)))) == []


def test_planning_a_hundred_thousand_sources_takes_less_than_a_gibibyte(tmp_path: Path) -> None:
    data = write_frames_and_labels(tmp_path / "data", 100)
    labels = load_annotations(data["annotations"]).select(np.arange(100_000) % 100)
    names = [f"{number // 100:05d}_A-{number:07d}.jpg" for number in range(100_000)]
    annotations = replace(labels, images=tuple(names), scenes=tuple(name[:5] for name in names), rows=())
    tracemalloc.start()
    plan = plan_store(
        str(tmp_path / "store"), data["images"], annotations, ["train"] * 100_000, "scene", AugmentConfig(), 0
    )
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(chunk.sources) for chunk in plan.chunks) == 100_000
    paths = [part.path for part in plan.parts()]
    assert len(set(paths)) == len(paths)
    assert peak_bytes < 1 << 30


def test_eight_concurrent_jobs_write_eight_equal_stores(
    sample_data: dict[str, Any], start_augment: StartAugment, cluster_address: str, tmp_path: Path
) -> None:
    configs = []
    for job in range(8):
        (tmp_path / str(job)).mkdir()
        configs.append(write_augment_config(sample_data, tmp_path / str(job)))
    runs = [start_augment(config, f"cluster.address={cluster_address}") for config in configs]
    for run in runs:
        finish(run)
    contents = [read_contents(config) for config in configs]
    assert contents == [contents[0]] * 8


def list_descendants(cluster_processes: list[psutil.Process], name_part: str) -> list[psutil.Process]:
    """List those descendants of the cluster's processes that have `name_part` in their own names."""
    descendants = []
    for process in [child for parent in cluster_processes for child in parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if name_part in process.name():
                descendants.append(process)
    return descendants


def count_leftovers(folder: Path, temp_folder: Path, cluster_processes: list[psutil.Process]) -> dict[str, int]:
    """Count the resources that must not grow: processes, open files, shared memory, temporary files."""
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    return {
        "workers": len(list_descendants(cluster_processes, "ray::")),
        "open files of the cluster": sum(process.num_fds() for process in cluster_processes),
        "shared memory MiB": sum(f.stat().st_size for f in Path("/dev/shm").rglob("*") if f.is_file()) >> 20,
        "temporary files": len([path for path in temp_folder.iterdir() if path.name != "ray"]),
        "partial files": len(list(folder.rglob("*.partial"))),
        "kp-ray processes": sum("bin/kp-ray augment" in command and str(folder) in command for command in commands),
    }


def kill_a_process(
    run: subprocess.Popen[str], cluster_processes: list[psutil.Process], rng: np.random.Generator
) -> list[str]:
    """Kill the driver of a run, or one of its workers, at a random moment.

    Returns:
        ["driver"] or ["worker"]; an empty list if the run or the worker had ended before.
    """
    if rng.uniform() < 0.4:
        time.sleep(rng.uniform(3, 12))
        if run.poll() is not None:
            return []
        run.kill()
        return ["driver"]
    time.sleep(3)
    workers: list[psutil.Process] = []
    while not workers and run.poll() is None:
        workers = list_descendants(cluster_processes, "write_chunk")
        time.sleep(0.05)
    if workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            workers[int(rng.integers(len(workers)))].kill()
            return ["worker"]
    return []


@pytest.mark.timeout(2 * SOAK_S + 1200)
def test_half_an_hour_of_kills_leaves_nothing_behind(
    sample_data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    temp_folder = Path(tempfile.mkdtemp(prefix="soak"))  # a short path, because this folder holds Ray's sockets
    monkeypatch.setenv("TMPDIR", str(temp_folder))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        cluster_processes = [
            psutil.Process(info.process.pid)
            for kind in ("gcs_server", "raylet")
            for info in cluster.head_node.all_processes[kind]
        ]
        config = write_augment_config(sample_data, tmp_path, sources_per_part=1)

        def start() -> subprocess.Popen[str]:
            return start_kp_ray("augment", str(config), "--json", "--set", f"cluster.address={cluster.address}")

        began, num_rounds, num_kills = time.monotonic(), 0, Counter(driver=0, worker=0)
        expected: Any = None
        early_counts: dict[str, int] = {}
        open_files: list[int] = []
        while time.monotonic() - began < SOAK_S:
            run = start()
            if expected is not None:
                num_kills.update(kill_a_process(run, cluster_processes, rng))
            _, err = run.communicate(timeout=600)
            if run.returncode != 0:
                run = start()
                _, err = run.communicate(timeout=600)
            assert run.returncode == 0, err
            expected = expected or read_contents(config)
            assert read_contents(config) == expected
            assert verify_store(make_plan(load_config(str(config)))) == []
            parts = list_parts(config)
            for index in rng.choice(len(parts), len(parts) // 2, replace=False):
                parts[index].unlink()
            num_rounds += 1
            open_files.append(count_leftovers(tmp_path, temp_folder, cluster_processes)["open files of the cluster"])
            if num_rounds == 4:
                early_counts = count_leftovers(tmp_path, temp_folder, cluster_processes)
        for _ in range(60):
            final_counts = count_leftovers(tmp_path, temp_folder, cluster_processes)
            if final_counts["kp-ray processes"] == 0 and final_counts["workers"] <= early_counts["workers"]:
                break
            time.sleep(1)
        with capsys.disabled():
            print(f"\n{num_rounds} rounds, killed {num_kills}, after round 4 {early_counts}, at the end {final_counts}")
            print(f"open files of the cluster by round: {open_files}")
        assert num_rounds >= 6
        assert min(num_kills.values()) > 0
        assert final_counts["partial files"] == final_counts["kp-ray processes"] == 0
        assert final_counts["workers"] <= early_counts["workers"] + 1
        # Ray's GCS closes the three sockets of a finished job only after some minutes. So the number of open files may
        # grow at first, but no longer in the last third of the rounds.
        third = num_rounds // 3
        assert max(open_files[-third:]) <= max(open_files[:-third]) + 20
        assert final_counts["shared memory MiB"] <= early_counts["shared memory MiB"] + 16
        assert final_counts["temporary files"] <= early_counts["temporary files"]
    finally:
        cluster.shutdown()
        shutil.rmtree(tmp_path, ignore_errors=True)
        shutil.rmtree(temp_folder, ignore_errors=True)
