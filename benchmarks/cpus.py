"""`kp-ray augment` on one CPU and on all of them, in turn.

    python benchmarks/cpus.py --sources 400 --turns 3

Within a turn both write the same store of the same pictures, one after the other. Results: in benchmarks/results,
cpus.{md,json}.
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import cv2
import ray
from measure import hardware, make_sources, median_and_range, write_results
from scaling import augment_watched


def main() -> None:
    """Take the turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, default=400)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    every = os.cpu_count() or 1
    runs: dict[int, list[dict[str, float]]] = {1: [], every: []}
    with tempfile.TemporaryDirectory() as name:
        config = make_sources(Path(name), options.sources)
        for _ in range(options.turns):
            for cpus, made in runs.items():
                made.append(augment_watched(config, Path(name), f"cluster.num_cpus={cpus}"))
                print(cpus, made[-1], flush=True)
    rates = {cpus: [run["sources_per_s"] for run in made] for cpus, made in runs.items()}
    ratios = [after / before for before, after in zip(rates[1], rates[every], strict=True)]
    stolen = statistics.mean(run["stolen"] for made in runs.values() for run in made)
    text = (
        f"# Augmentation on 1 and on {every} CPUs\n\n{hardware(cv2, ray)}. {options.sources} sources of 1920x1080, 18 "
        f"variants each, start-up apart; {options.turns} turns; {stolen:.0%} of the CPU time was stolen.\n\n"
        "| CPUs | sources/s, median (range) |\n|---|---|\n"
    )
    for cpus, values in rates.items():
        text += f"| {cpus} | {median_and_range(values, 2)} |\n"
    text += f"\nTimes as fast, of the turns: {median_and_range(ratios, 2)}.\n"
    write_results(
        "cpus", text, {"hardware": hardware(cv2, ray), "runs": {str(cpus): made for cpus, made in runs.items()}}
    )


if __name__ == "__main__":
    main()
