"""Model what stores of 10^4, 10^6 and 10^8 sources need, from costs measured on this machine.

    python benchmarks/scale_model.py            # after benchmarks/scaling.py, whose rates it takes

Measured: planning, and resuming a finished store, at 10^4, 10^5 and 10^6 sources, each in a process of its own (images
and parts are empty files, because planning looks only at names and sizes); and the driver's cost per task.
Modelled: a driver that hands out tasks one after another to cores that work at the measured rate. 10^8 sources are
extrapolated, not run. Results: benchmarks/results/scale_model.{md,json}.
"""

import argparse
import heapq
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from measure import RESULTS, hardware, write_results

from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.store.manifest import PartRecord, write_manifest
from kp_ray.store.plan import plan
from kp_ray.store.write import build_manifest, is_finished

MEASURED = (10_000, 100_000, 1_000_000)
WANTED = (10_000, 1_000_000, 100_000_000)
CORES = (2, 64, 1024)
SOURCES_PER_PART = 256
"""Chosen for stores beyond 10^5 sources: the default, 32, makes more tasks and files than they need."""
NUM_TASKS = 2000
MIB = 2**20


def prepare(folder: Path, num_sources: int) -> Config:
    """Write labels of `num_sources` empty image files, in scenes of 16 frames and 5 cameras; return a config."""
    images = folder / "images"
    images.mkdir()
    points = [f"p{number}" for number in range(24)]
    cells = ",".join(f"{100 + 31.37 * number:.2f},{50 + 40.11 * number:.2f}" for number in range(24))
    with open(folder / "labels.csv", "w") as labels:
        labels.write(f"image,{','.join(f'{name}_{axis}' for name in points for axis in 'xy')}\n")
        for number in range(num_sources):
            scene, frame = divmod(number, 80)
            name = f"{scene:07d}-1-1-01-Z17_{'ABCDE'[frame // 16]}-{frame % 16:07d}.jpg"
            labels.write(f"{name},{cells}\n")
            os.close(os.open(images / name, os.O_CREAT))
    return build_config(
        {
            "run_dir": str(folder / "run"),
            "data": {"annotations": str(folder / "labels.csv"), "images": str(images)},
            "skeleton": {"flip_pairs": [], "sigmas": [0.05] * 24},
            "augment": {"sources_per_part": SOURCES_PER_PART},
        }
    )


def plan_and_resume(config: Config, *, resume: bool) -> dict[str, float]:
    """Plan a store and write its empty parts and manifest; with `resume`, measure planning and resuming it instead."""
    began = time.monotonic()
    planned = plan(config)
    seconds = time.monotonic() - began
    parts = list(planned.parts())
    if not resume:
        records = {
            part.path: PartRecord(
                path=part.path, recipe=part.recipe.name, split=part.split, num_rows=SOURCES_PER_PART * part.copies,
                num_bytes=0, sha256="0" * 64,
            )
            for part in parts
        }  # fmt: skip
        store = Path(planned.store)
        for recipe, _ in planned.recipes:
            (store / f"recipe={recipe.name}").mkdir(parents=True)
        for part in parts:
            os.close(os.open(store / part.path, os.O_CREAT))
        write_manifest(planned.store, build_manifest(planned, records, []))
        return {}
    assert is_finished(planned)
    return {
        "plan_s": seconds,
        "resume_s": time.monotonic() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parts": len(parts),
        "tasks": len(planned.chunks),
        "manifest_mib": (Path(planned.store) / "manifest.json").stat().st_size / MIB,
    }


def measure_plan(num_sources: int) -> dict[str, float]:
    """Measure planning and resuming in a fresh process, over a store that another process has made."""
    with tempfile.TemporaryDirectory() as name:
        config = Path(name, "config.json")
        config.write_text(prepare(Path(name), num_sources).model_dump_json())
        for mode in ("--make", "--resume"):
            stdout = subprocess.run(
                [sys.executable, __file__, mode, str(config)], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
    figures: dict[str, float] = json.loads(stdout)
    print(num_sources, figures, flush=True)
    return figures


def nothing(row: dict[str, Any]) -> dict[str, Any]:
    """Do nothing: the task whose overhead is measured."""
    return row


def measure_task() -> dict[str, float]:
    """Measure a task's overhead in a Ray dataset like that of `augment`: seconds, and the driver's CPU seconds."""
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, logging_level="error")
    with ray_data_settings():
        tasks = ray.data.from_items([{"run": bytes(100_000)}] * NUM_TASKS, override_num_blocks=NUM_TASKS)
        rows = iter(tasks.map(nothing, num_cpus=1).iter_rows())
        next(rows)  # the workers are up
        began, cpu = time.monotonic(), time.process_time()
        left = sum(1 for _ in rows)
        figures = {
            "task_s": (time.monotonic() - began) / left,
            "driver_cpu_s": (time.process_time() - cpu) / left,
        }
    ray.shutdown()
    return figures


def simulate(num_tasks: int, cores: int, task_s: float, dispatch_s: float) -> float:
    """Return the seconds until `cores` cores have done `num_tasks` tasks, handed out at most every `dispatch_s`."""
    if num_tasks > 400_000:  # the steady state is reached long before
        return simulate(200_000, cores, task_s, dispatch_s) * num_tasks / 200_000
    free = [0.0] * cores
    driver = last = 0.0
    for _ in range(num_tasks):
        driver = max(driver, free[0]) + dispatch_s
        end = driver + task_s
        heapq.heapreplace(free, end)
        last = max(last, end)
    return last


def main() -> None:
    """Measure, model, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if config_path := options.make or options.resume:
        figures = plan_and_resume(build_config(json.loads(config_path.read_text())), resume=bool(options.resume))
        print(json.dumps(figures))
        return
    runs = json.loads((RESULTS / "scaling.json").read_text())["runs"]
    largest = max(runs, key=lambda run: run["sources"])
    core_s, gb = largest["cpus"] / largest["sources_per_s"], largest["store_gb"] / largest["sources"]
    planned = {number: measure_plan(number) for number in MEASURED}
    task = measure_task()
    dispatch_s, task_s = task["driver_cpu_s"], core_s * SOURCES_PER_PART
    full = planned[MEASURED[-1]]
    machine = hardware(ray)
    text = (
        f"# Cost of a store by its size\n\n{machine}.\n\n## Measured\n\nPlanning a store of 18 recipes with "
        f"{SOURCES_PER_PART} sources per part, and checking that a finished one is complete (`resume`, which includes "
        "planning), each in a fresh process.\n\n"
        "| sources | parts | plan s | resume s | peak MiB | manifest MiB |\n|---|---|---|---|---|---|\n"
    )
    for number, figures in planned.items():
        text += (
            f"| {number} | {figures['parts']} | {figures['plan_s']:.1f} | {figures['resume_s']:.1f} | "
            f"{figures['peak_mib']:.0f} | {figures['manifest_mib']:.1f} |\n"
        )
    text += (
        f"\nA source costs {core_s * 1000:.0f} ms of one core and {gb * 1000:.1f} MB (benchmarks/results/scaling.md). "
        f"An empty task with a payload of 100 kB takes {task['task_s'] * 1000:.1f} ms on these {os.cpu_count()} cores, "
        f"{dispatch_s * 1000:.1f} ms of them in the driver. A task of {SOURCES_PER_PART} sources takes {task_s:.0f} s, "
        f"so one driver keeps {task_s / dispatch_s:.0f} cores busy.\n\n## Modelled\n\n"
        "The planning of the last row is extrapolated in proportion from 10^6 sources.\n\n"
        f"| sources | core hours | cores for an hour | {' | '.join(f'hours on {cores} cores' for cores in CORES)} | "
        "store TB | parts | manifest MiB | plan s | driver MiB |\n" + "|---" * (8 + len(CORES)) + "|\n"
    )
    rows = []
    for number in WANTED:
        figures = planned.get(number) or {key: value * number / MEASURED[-1] for key, value in full.items()}
        tasks = round(figures["tasks"])
        hours = [simulate(tasks, cores, task_s, dispatch_s) / 3600 for cores in CORES]
        rows.append({"sources": number, **figures, "core_hours": number * core_s / 3600, "hours": hours})
        text += (
            f"| {number:.0e} | {number * core_s / 3600:.1f} | {number * core_s / 3600:.0f} | "
            f"{' | '.join(f'{value:.1f}' for value in hours)} | {number * gb / 1000:.3g} | {figures['parts']:.0f} | "
            f"{figures['manifest_mib']:.0f} | {figures['plan_s']:.0f} | {figures['peak_mib']:.0f} |\n"
        )
    write_results("scale_model", text, {"hardware": machine, "planned": planned, "task": task, "modelled": rows})


if __name__ == "__main__":
    main()
