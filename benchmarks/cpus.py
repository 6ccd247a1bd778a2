"""Measure how much faster `kp-ray augment` and plain processes are on all CPUs than on one.

    python benchmarks/cpus.py --sources 200 --turns 7

Each turn writes the same store from the same images, first on one CPU, then on all. After each run, a control makes
the rows of half the images in memory with one plain process per CPU of the run, without Ray and without a store. If N
of these processes are less than N times as fast as one, the machine is the limit: its CPUs share a core, or other
virtual machines use them.
Results: benchmarks/results/cpus.{md,json}.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import ray
from measure import (
    augment_and_discard,
    cpu_time,
    hardware,
    make_sources,
    median_and_range,
    run_kp_ray,
    stolen_since,
    write_results,
)

from kp_ray.config.load import load_config
from kp_ray.data.load import load_annotations

WAYS = ("kp_ray", "control")


def measure_control(config: Path, num_processes: int) -> float:
    """Measure the sources/s of plain processes that make the rows in memory."""
    data = load_config(str(config)).data
    labels = load_annotations(str(data.annotations))
    sources = [(f"{data.images}/{image}", xyv) for image, xyv in zip(labels.images, labels.keypoints, strict=True)]
    with multiprocessing.get_context("spawn").Pool(num_processes, cv2.setNumThreads, (1,)) as pool:
        pool.starmap(augment_and_discard, sources[: 2 * num_processes], chunksize=1)
        began = time.perf_counter()
        pool.starmap(augment_and_discard, sources[: len(sources) // 2], chunksize=1)
        return len(sources) // 2 / (time.perf_counter() - began)


def main() -> None:
    """Run the turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, default=200)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    num_cpus = os.cpu_count() or 1
    turns: list[dict[str, dict[int, float]]] = []
    ticks = cpu_time()
    with tempfile.TemporaryDirectory() as name:
        config = make_sources(Path(name), options.sources)
        for turn in range(options.turns):
            turns.append({way: {} for way in WAYS})
            for cpus in (1, num_cpus):
                run_dir = f"run_dir={name}/{turn}-{cpus}"
                summary = run_kp_ray("augment", config, run_dir, f"cluster.num_cpus={cpus}")
                turns[-1]["kp_ray"][cpus] = summary["sources_per_s"]
                turns[-1]["control"][cpus] = measure_control(config, cpus)
            print(turns[-1], flush=True)
    gains = {way: [turn[way][num_cpus] / turn[way][1] for turn in turns] for way in WAYS}
    text = (
        f"# Augmentation on 1 and on {num_cpus} CPUs\n\n{hardware(cv2, ray)}. {options.sources} sources of 1920x1080, "
        f"18 variants each, without start-up; {options.turns} turns. Other machines took {stolen_since(ticks):.0%} of "
        "the CPU time. Control: the same rows made in memory by plain processes.\n\n"
        f"| | sources/s on 1 CPU, median (range) | on {num_cpus} | gain within a turn |\n|---|---|---|---|\n"
    )
    for way in WAYS:
        on_one, on_all = (median_and_range([turn[way][cpus] for turn in turns]) for cpus in (1, num_cpus))
        text += f"| {way} | {on_one} | {on_all} | {median_and_range(gains[way])} |\n"
    shares = [gain / control_gain for gain, control_gain in zip(gains["kp_ray"], gains["control"], strict=True)]
    share = f"{statistics.median(shares):.0%} ({min(shares):.0%}-{max(shares):.0%})"
    text += f"\nWithin a turn kp_ray's gain is {share} of the control's.\n"
    write_results("cpus", text, {"hardware": hardware(cv2, ray), "turns": turns})


if __name__ == "__main__":
    main()
