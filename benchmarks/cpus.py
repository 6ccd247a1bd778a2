"""`kp-ray augment` on one CPU and on all of them, in turn, beside what the machine itself gives.

    python benchmarks/cpus.py --sources 200 --turns 7

Within a turn both write the same store of the same pictures, one after the other. Each is followed by the control: as
many bare processes make the same rows in memory, without Ray and without a store. Where the control is not as many
times as fast as there are CPUs, the machine is the limit: its CPUs share a core, or others use them. Results: in
benchmarks/results, cpus.{md,json}.
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
from measure import cpu_time, hardware, kp_ray, make_rows, make_sources, median_and_range, stolen_since, write_results

from kp_ray.config.load import load_config
from kp_ray.data.load import load_annotations

WAYS = ("kp_ray", "control")


def control(config: Path, processes: int) -> float:
    """Sources a second of bare processes."""
    data = load_config(str(config)).data
    labels = load_annotations(str(data.annotations))
    jobs = [(f"{data.images}/{image}", k) for image, k in zip(labels.images, labels.keypoints, strict=True)]
    with multiprocessing.get_context("spawn").Pool(processes, cv2.setNumThreads, (1,)) as pool:
        pool.starmap(make_rows, jobs[: 2 * processes], chunksize=1)
        began = time.perf_counter()
        pool.starmap(make_rows, jobs[: len(jobs) // 2], chunksize=1)
        return len(jobs) // 2 / (time.perf_counter() - began)


def main() -> None:
    """Take the turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, default=200)
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    every = os.cpu_count() or 1
    turns: list[dict[str, dict[int, float]]] = []
    began = cpu_time()
    with tempfile.TemporaryDirectory() as name:
        config = make_sources(Path(name), options.sources)
        for turn in range(options.turns):
            turns.append({way: {} for way in WAYS})
            for cpus in (1, every):
                run_dir = f"run_dir={name}/{turn}-{cpus}"
                made = kp_ray("augment", config, run_dir, f"cluster.num_cpus={cpus}")
                turns[-1]["kp_ray"][cpus] = made["sources_per_s"]
                turns[-1]["control"][cpus] = control(config, cpus)
            print(turns[-1], flush=True)
    faster = {way: [turn[way][every] / turn[way][1] for turn in turns] for way in WAYS}
    text = (
        f"# Augmentation on 1 and on {every} CPUs\n\n{hardware(cv2, ray)}. {options.sources} sources of 1920x1080, 18 "
        f"variants each, start-up apart; {options.turns} turns; {stolen_since(began):.0%} of the CPU time was stolen. "
        "Control: the same rows made in memory by bare processes.\n\n"
        f"| | sources/s on 1 CPU, median (range) | on {every} | times as fast, of the turns |\n|---|---|---|---|\n"
    )
    for way in WAYS:
        one, all_of_them = (median_and_range([turn[way][cpus] for turn in turns]) for cpus in (1, every))
        text += f"| {way} | {one} | {all_of_them} | {median_and_range(faster[way])} |\n"
    share = [ours / bare for ours, bare in zip(faster["kp_ray"], faster["control"], strict=True)]
    taken = f"{statistics.median(share):.0%} ({min(share):.0%}-{max(share):.0%})"
    text += f"\nThe gain is {taken} of the control's within a turn.\n"
    write_results("cpus", text, {"hardware": hardware(cv2, ray), "turns": turns})


if __name__ == "__main__":
    main()
