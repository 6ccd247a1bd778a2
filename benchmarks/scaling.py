"""Measure the time and memory of `kp-ray augment` at growing numbers of sources.

    python benchmarks/scaling.py --sources 400 800 1600 3250

Sources are generated, with 18 variants each. The largest run has 3250 sources, the count on the progress bar of the
published notebook.
Memory is sampled ten times per second: the resident set sizes of the driver and of each Ray worker (with shared
libraries), and the growth of /dev/shm, which holds Ray's object store.

Results: benchmarks/results/scaling.{md,json}.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import psutil
import ray
from measure import cpu_time, hardware, kp_ray_command, make_sources, run_kp_ray, stolen_since, write_results

from kp_ray.config.load import load_config

SAMPLE_EVERY_S = 0.1
MIB = 2**20


def augment_twice(config: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    """Augment twice; return the first run's JSON object and memory peaks, and the second run's seconds.

    Deletes the store afterwards.
    """
    run_dir = folder / "run"
    shm_bytes = shutil.disk_usage("/dev/shm").used
    peaks = {"driver_mib": 0.0, "worker_mib": 0.0, "object_store_mib": 0.0}
    began, ticks = time.monotonic(), cpu_time()
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        command = kp_ray_command("augment", config, f"run_dir={run_dir}", *overrides)
        driver = psutil.Popen(command, stdout=out, stderr=err)
        while driver.poll() is None:
            for kind, value in _measure_memory(driver).items():
                peaks[kind] = max(peaks[kind], value)
            peaks["object_store_mib"] = max(
                peaks["object_store_mib"], (shutil.disk_usage("/dev/shm").used - shm_bytes) / MIB
            )
            time.sleep(SAMPLE_EVERY_S)
    wall_s, stolen = time.monotonic() - began, stolen_since(ticks)
    if driver.returncode:
        raise SystemExit(f"kp-ray augment: failed: {(folder / 'err').read_text()[-2000:]}")
    summary = json.loads((folder / "out").read_text().splitlines()[-1])
    began = time.monotonic()
    second_run = run_kp_ray("augment", config, f"run_dir={run_dir}", *overrides)
    if second_run["parts_written"]:
        raise SystemExit(
            f"kp-ray augment: a second run over a finished store wrote parts (got {second_run['parts_written']}): run "
            "kp-ray sample, and kp-ray augment twice, by hand"
        )
    again_s = time.monotonic() - began
    store_bytes = sum(path.stat().st_size for path in run_dir.rglob("*.parquet"))
    shutil.rmtree(run_dir)
    return {**summary, **peaks, "wall_s": wall_s, "stolen": stolen, "again_s": again_s, "store_gb": store_bytes / 1e9}


def _measure_memory(driver: psutil.Popen) -> dict[str, float]:
    """Return the resident MiB of the driver and of its largest worker."""
    driver_bytes = worker_bytes = 0
    try:
        driver_bytes = driver.memory_info().rss
        for process in driver.children(recursive=True):
            if process.name().startswith("ray::"):
                worker_bytes = max(worker_bytes, process.memory_info().rss)
    except psutil.Error:  # a process has just ended
        pass
    return {"driver_mib": driver_bytes / MIB, "worker_mib": worker_bytes / MIB}


def main() -> None:
    """Run every number of sources and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, nargs="+", default=[400, 800, 1600, 3250])
    options = parser.parse_args()
    smallest, largest = min(options.sources), max(options.sources)
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_sources(folder, largest)
        label_lines = Path(str(load_config(str(config)).data.annotations)).read_text().splitlines()
        for number in sorted(options.sources):
            labels = folder / f"{number}.csv"
            labels.write_text("\n".join(label_lines[: number + 1]) + "\n")
            runs.append(augment_twice(config, folder, f"data.annotations={labels}"))
            print(runs[-1], flush=True)
    machine = hardware(cv2, ray)
    text = (
        f"# Augmentation at growing sizes\n\n{machine}. Generated 1920x1080 sources (400 distinct images, repeated "
        "under other names beyond that), 18 variants each; one run each.\n\n| sources | seconds, start-up included | "
        "start-up s | sources/s without start-up | stolen | second run s | store GB | driver MiB | "
        "largest worker MiB | object store MiB |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
    )
    for run in runs:
        text += (
            f"| {run['sources']} | {run['wall_s']:.0f} | {run['start_up_s']:.1f} | "
            f"{run['sources_per_s']:.2f} | {run['stolen']:.0%} | {run['again_s']:.1f} | {run['store_gb']:.2f} | "
            f"{run['driver_mib']:.0f} | {run['worker_mib']:.0f} | "
            f"{run['object_store_mib']:.0f} |\n"
        )
    rate = {run["sources"]: run["sources_per_s"] for run in runs}
    seconds = {number: number / rate[number] for number in options.sources}
    seconds_per_source = sum(seconds.values()) / sum(options.sources)
    deviations = ", ".join(f"{seconds[number] / (number * seconds_per_source) - 1:+.0%}" for number in sorted(seconds))
    text += (
        f"\nRatio of the rates at {largest} and {smallest} sources: {rate[largest] / rate[smallest]:.2f}. "
        f"Measured times compared with a constant {1 / seconds_per_source:.2f} sources/s: {deviations}.\n"
    )
    write_results("scaling", text, {"hardware": machine, "cpus": os.cpu_count(), "runs": runs})


if __name__ == "__main__":
    main()
