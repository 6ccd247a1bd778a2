"""Train the demo's members with 32-bit and with 16-bit backbones: do they learn the same, and how fast?

    python benchmarks/precision.py --seeds 1 2 3

Each seed has its own people, split and weights. A member of the preset `demo` is trained alone, with every precision
from the same store, and scored on the validation scenes. Results: benchmarks/results/precision.{md,json}.
"""

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
import yaml
from measure import (
    DEMO_CONFIG,
    add_override_option,
    add_seed_option,
    describe_options,
    describe_training,
    hardware,
    measure_seeds,
    median_and_range,
    run_kp_ray,
)

from kp_ray.synthetic.dataset import make_sample
from kp_ray.training.logs import read_training_log

PRECISIONS = ("fp32", "bf16")


def measure_seed(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the seed, and the validation metrics and the seconds per iteration by precision."""
    sample = make_sample(str(folder / "data"), num_images=options.images, num_test=1, seed=seed)
    values = {
        "preset": "demo",
        "run_dir": str(folder / "run"),
        "seed": seed,
        "data": {"annotations": sample.annotations, "images": sample.images},
        "split": {"fraction": 0.2},
        "augment": {"recipes": list(DEMO_CONFIG.train.recipes or ())},
        "train": {"members": [{"name": "a", "seed": seed}], "cpus_per_worker": 1, "threads_per_worker": 2},
        "tune": {"num_trials": 0},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    run_kp_ray("augment", config)
    result: dict[str, Any] = {"seed": seed}
    for precision in PRECISIONS:
        run_dir = folder / precision
        run_dir.mkdir()
        (run_dir / "store").symlink_to(folder / "run" / "store")
        run_kp_ray("train", config, f"run_dir={run_dir}", f"train.precision={precision}", *options.overrides)
        entries = list(read_training_log(str(run_dir / "members" / "a")))
        seconds = statistics.median(entry.values["time"] for entry in entries)
        last = {key.removeprefix("val/"): value for key, value in entries[-1].values.items()}
        result[precision] = {**last, "seconds_per_iteration": seconds}
        print(seed, precision, result[precision], flush=True)
    return result


def describe(results: list[dict[str, Any]], conditions: dict[str, str]) -> str:
    """Compose the result page in Markdown."""
    text = (
        f"# Training with 16-bit numbers\n\n{conditions['hardware']}. {conditions['options']}. A member of the preset "
        f"`demo` for each of the seeds {', '.join(str(result['seed']) for result in results)} "
        f"({conditions['members']}), trained alone; metrics on the validation scenes: median (smallest-largest) over "
        "the seeds.\n\n"
        "| precision | RMSE px | RMSE px per seed | median px | PCK@0.05 | last loss | s per iteration |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    for precision in PRECISIONS:
        rows = [result[precision] for result in results]
        names = ("rmse", "median_px", "pck_0.05", "total_loss", "seconds_per_iteration")
        rmse, median_px, pck, loss, seconds = ([row[name] for row in rows] for name in names)
        per_seed = ", ".join(f"{value:.1f}" for value in rmse)
        text += (
            f"| {precision} | {median_and_range(rmse, 1)} | {per_seed} | {median_and_range(median_px, 1)} | "
            f"{median_and_range(pck, 3)} | {median_and_range(loss, 2)} | {median_and_range(seconds, 2)} |\n"
        )
    return text


def main() -> None:
    """Measure the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_seed_option(parser)
    parser.add_argument("--images", type=int, default=200)
    add_override_option(parser)
    options = parser.parse_args()
    conditions = {
        "hardware": hardware(ray, torch),
        "options": describe_options(options),
        "members": describe_training(DEMO_CONFIG),
    }
    measure_seeds("precision", options.seeds, conditions, partial(measure_seed, options=options), describe)


if __name__ == "__main__":
    main()
