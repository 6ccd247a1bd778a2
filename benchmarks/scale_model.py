"""Estimate time, cores and memory for stores of 10^4, 10^6 and 10^8 sources from costs measured on this machine.

    python benchmarks/scale_model.py            # after benchmarks/scaling.py, whose rates it uses

The script measures the driver's cost per task, and the cost of planning and of resuming a finished store of 10^4, 10^5
and 10^6 sources, each in its own process. Images and parts are empty files: planning reads only names and sizes. The
model is a driver that starts tasks one after another on cores that work at the measured rate. 10^8 sources are
extrapolated.
Results: benchmarks/results/scale_model.{md,json}.
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

import pyarrow as pa
import ray
from measure import RESULTS, hardware, write_results

from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.store.manifest import PartRecord, write_manifest
from kp_ray.store.plan import make_plan
from kp_ray.store.write import build_manifest, is_finished

MEASURED_SIZES = (10_000, 100_000, 1_000_000)
MODELLED_SIZES = (10_000, 1_000_000, 100_000_000)
CORES = (2, 64, 1024)
SOURCES_PER_PART = 256
"""A multiple of the default, 32, so that a large store has fewer tasks and files."""
NUM_TASKS = 2000
"""Number of empty tasks in the measurement of the overhead per task."""
MIB = 2**20


def write_empty_images(folder: Path, num_sources: int) -> Config:
    """Write `num_sources` empty image files (scenes of 5 cameras x 16 frames) and their labels; return a config."""
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


def write_empty_store(config: Config) -> None:
    """Write the manifest and the parts of a planned store; the parts are empty files."""
    plan = make_plan(config)
    parts = list(plan.parts())
    records = {
        part.path: PartRecord(
            path=part.path,
            recipe=part.recipe.name,
            split=part.split,
            num_rows=SOURCES_PER_PART * part.copies,
            num_bytes=0,
            sha256="0" * 64,
        )
        for part in parts
    }
    store = Path(plan.store)
    for recipe, _ in plan.recipes:
        (store / f"recipe-{recipe.name}").mkdir(parents=True)
    for part in parts:
        os.close(os.open(store / part.path, os.O_CREAT))
    write_manifest(plan.store, build_manifest(plan, records, []))


def plan_and_resume(config: Config) -> dict[str, float]:
    """Measure planning a store, and checking that the store is finished (resuming)."""
    began = time.monotonic()
    plan = make_plan(config)
    plan_s = time.monotonic() - began
    parts = list(plan.parts())
    assert is_finished(plan)
    return {
        "plan_s": plan_s,
        "resume_s": time.monotonic() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parts": len(parts),
        "tasks": len(plan.chunks),
        "manifest_mib": (Path(plan.store) / "_manifest.json").stat().st_size / MIB,
    }


def measure_plan(num_sources: int) -> dict[str, float]:
    """Measure planning and resuming a store in a new process, after another process has written the store."""
    with tempfile.TemporaryDirectory() as name:
        config = Path(name, "config.json")
        config.write_text(write_empty_images(Path(name), num_sources).model_dump_json())
        for mode in ("--make", "--resume"):
            stdout = subprocess.run(
                [sys.executable, __file__, mode, str(config)], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
    costs: dict[str, float] = json.loads(stdout)
    print(num_sources, costs, flush=True)
    return costs


def empty_task(table: pa.Table) -> pa.Table:
    """Return one row, so that a task costs almost nothing but Ray's overhead."""
    return table.slice(0, 1)


def measure_task() -> dict[str, float]:
    """Measure the overhead per task of a Ray dataset like that of `augment`: seconds, and CPU seconds of the driver."""
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, logging_level="error")
    with ray_data_settings():
        chunk = pa.table({"source": pa.array([bytes(390)] * SOURCES_PER_PART)})
        tasks = ray.data.from_arrow([chunk] * NUM_TASKS)
        results = tasks.map_batches(empty_task, batch_size=None, batch_format="pyarrow", num_cpus=1)
        rows = iter(results.iter_rows())
        next(rows)  # the first row comes after the workers have started
        began, cpu_began = time.monotonic(), time.process_time()
        num_tasks = sum(1 for _ in rows)
        costs = {
            "task_s": (time.monotonic() - began) / num_tasks,
            "driver_cpu_s": (time.process_time() - cpu_began) / num_tasks,
        }
    ray.shutdown()
    return costs


def simulate(num_tasks: int, cores: int, task_s: float, dispatch_s: float) -> float:
    """Simulate tasks of `task_s` seconds on cores, at most one start every `dispatch_s`; return the total seconds."""
    if num_tasks > 400_000:  # the rate is constant long before this many tasks have ended
        return simulate(200_000, cores, task_s, dispatch_s) * num_tasks / 200_000
    free_at = [0.0] * cores  # a heap: the time at which each core is free
    dispatched_at = last_end = 0.0
    for _ in range(num_tasks):
        dispatched_at = max(dispatched_at, free_at[0]) + dispatch_s
        end = dispatched_at + task_s
        heapq.heapreplace(free_at, end)
        last_end = max(last_end, end)
    return last_end


def main() -> None:
    """Measure and model, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        write_empty_store(build_config(json.loads(options.make.read_text())))
        return
    if options.resume:
        print(json.dumps(plan_and_resume(build_config(json.loads(options.resume.read_text())))))
        return
    scaling = json.loads((RESULTS / "scaling.json").read_text())
    largest_run = max(scaling["runs"], key=lambda run: run["sources"])
    core_s_per_source = scaling["cpus"] / largest_run["sources_per_s"]
    gb_per_source = largest_run["store_gb"] / largest_run["sources"]
    costs_by_size = {number: measure_plan(number) for number in MEASURED_SIZES}
    task = measure_task()
    dispatch_s, task_s = task["driver_cpu_s"], core_s_per_source * SOURCES_PER_PART
    largest_costs = costs_by_size[MEASURED_SIZES[-1]]
    machine = hardware(ray)
    text = (
        f"# Cost of a store by its size\n\n{machine}.\n\n## Measured\n\nPlanning a store of 18 recipes with "
        f"{SOURCES_PER_PART} sources per part, and checking that a finished one is complete (`resume`, which includes "
        "planning), each in a fresh process.\n\n"
        "| sources | parts | plan s | resume s | peak MiB | manifest MiB |\n|---|---|---|---|---|---|\n"
    )
    for number, costs in costs_by_size.items():
        text += (
            f"| {number} | {costs['parts']} | {costs['plan_s']:.1f} | {costs['resume_s']:.1f} | "
            f"{costs['peak_mib']:.0f} | {costs['manifest_mib']:.1f} |\n"
        )
    text += (
        f"\nA source costs {core_s_per_source * 1000:.0f} ms of one core and {gb_per_source * 1000:.1f} MB "
        "(benchmarks/results/scaling.md). "
        f"An empty task with a payload of 100 kB takes {task['task_s'] * 1000:.1f} ms on these {os.cpu_count()} cores, "
        f"{dispatch_s * 1000:.1f} ms of them in the driver. A task of {SOURCES_PER_PART} sources takes {task_s:.0f} s, "
        f"so one driver keeps {task_s / dispatch_s:.0f} cores busy.\n\n## Modelled\n\n"
        "The planning of the last row is extrapolated in proportion from 10^6 sources.\n\n"
        f"| sources | core hours | cores for an hour | {' | '.join(f'hours on {cores} cores' for cores in CORES)} | "
        "store TB | parts | manifest MiB | plan s | driver MiB |\n" + "|---" * (8 + len(CORES)) + "|\n"
    )
    rows = []
    for number in MODELLED_SIZES:
        factor = number / MEASURED_SIZES[-1]
        costs = costs_by_size.get(number) or {key: value * factor for key, value in largest_costs.items()}
        tasks = round(costs["tasks"])
        hours = [simulate(tasks, cores, task_s, dispatch_s) / 3600 for cores in CORES]
        rows.append({"sources": number, **costs, "core_hours": number * core_s_per_source / 3600, "hours": hours})
        text += (
            f"| {number:.0e} | {number * core_s_per_source / 3600:.1f} | {number * core_s_per_source / 3600:.0f} | "
            f"{' | '.join(f'{value:.1f}' for value in hours)} | {number * gb_per_source / 1000:.3g} | "
            f"{costs['parts']:.0f} | {costs['manifest_mib']:.0f} | {costs['plan_s']:.0f} | "
            f"{costs['peak_mib']:.0f} |\n"
        )
    write_results("scale_model", text, {"hardware": machine, "planned": costs_by_size, "task": task, "modelled": rows})


if __name__ == "__main__":
    main()
