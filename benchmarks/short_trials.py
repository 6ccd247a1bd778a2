"""Compare learning rates in short and in full trials: does a short search choose the rate that is best at full length?

    python benchmarks/short_trials.py --seeds 1 2 3

For every seed `kp-ray tune`, without early stopping, trains one trial for each of four learning rates of the preset
`demo`: first for a quarter of the preset's iterations, then for all of them, on the same store.
Results: benchmarks/results/short_trials.{md,json}.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import ray
import torch
import yaml
from measure import (
    DEMO_CONFIG,
    add_seed_option,
    describe_options,
    describe_training,
    hardware,
    measure_seeds,
    run_kp_ray,
)

from kp_ray.synthetic.dataset import make_sample

FULL_LENGTH = DEMO_CONFIG.train.max_iter
LENGTHS = (FULL_LENGTH // 4, FULL_LENGTH)
BASE_LRS = (0.001, 0.0015, 0.003, 0.006)
"""The published rate, which every search tries, and rates around the own rate of the preset `demo`."""


def measure_seed(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the seed, and the validation RMSE in pixels by trial length and learning rate."""
    sample = make_sample(str(folder / "data"), num_images=options.images, num_test=1, seed=seed)
    warmup = DEMO_CONFIG.train.warmup_iters / FULL_LENGTH
    values = {
        "preset": "demo",
        "run_dir": str(folder / "run"),
        "seed": seed,
        "data": {"annotations": sample.annotations, "images": sample.images},
        "split": {"fraction": 0.2},
        "augment": {"recipes": list(DEMO_CONFIG.train.recipes or ())},
        "train": {"members": [{"name": "a", "seed": seed}]},
        "tune": {
            "num_trials": len(BASE_LRS),
            "scheduler": "none",
            "base_lr": [min(BASE_LRS), max(BASE_LRS)],
            "warmup": [warmup, warmup],
            "points": [{"base_lr": base_lr} for base_lr in BASE_LRS[1:] if base_lr != DEMO_CONFIG.train.base_lr],
        },
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    print(run_kp_ray("augment", config), flush=True)
    rmse: dict[str, dict[str, float]] = {}
    for length in LENGTHS:
        run_dir = folder / f"length{length}"
        run_dir.mkdir()
        (run_dir / "store").symlink_to(folder / "run" / "store")
        run_kp_ray("tune", config, f"run_dir={run_dir}", f"tune.max_iter={length}", f"tune.eval_period={length}")
        trials = pd.read_csv(run_dir / "tune" / "trials.csv")
        if len(trials) != len(BASE_LRS) or trials.rmse.isna().any():
            raise SystemExit(f"a trial failed: {trials}")
        rmse[str(length)] = {f"{base_lr:g}": value for base_lr, value in zip(trials.base_lr, trials.rmse, strict=True)}
        print(seed, length, rmse[str(length)], flush=True)
    return {"seed": seed, "rmse": rmse}


def describe(results: list[dict[str, Any]], conditions: dict[str, str]) -> str:
    """Compose the result page in Markdown."""
    text = (
        f"# Learning rates in short and in full trials\n\n{conditions['hardware']}. {conditions['options']}. Preset "
        f"`demo` ({conditions['members']}) on generated people; RMSE px on the validation scenes, the lowest of a row "
        "in bold.\n\n"
        f"| seed | iterations | {' | '.join(f'base LR {base_lr:g}' for base_lr in BASE_LRS)} |\n"
        f"|---|---|{'---|' * len(BASE_LRS)}\n"
    )
    for result in results:
        for length in LENGTHS:
            rmse = result["rmse"][str(length)]
            lowest = min(rmse.values())
            cells = [rmse[f"{base_lr:g}"] for base_lr in BASE_LRS]
            bold_cells = [f"**{value:.1f}**" if value == lowest else f"{value:.1f}" for value in cells]
            text += f"| {result['seed']} | {length} | {' | '.join(bold_cells)} |\n"
    return text


def main() -> None:
    """Measure the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_seed_option(parser)
    parser.add_argument("--images", type=int, default=400)
    options = parser.parse_args()
    conditions = {
        "hardware": hardware(ray, torch),
        "options": describe_options(options),
        "members": describe_training(DEMO_CONFIG),
    }
    measure_seeds("short_trials", options.seeds, conditions, partial(measure_seed, options=options), describe)


if __name__ == "__main__":
    main()
