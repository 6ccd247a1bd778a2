"""A search that starts from a poor setting, on generated people: what it finds, and what ASHA saves.

    python benchmarks/tune.py

`kp-ray tune` searches from a learning rate ten times too small that falls too early; then `kp-ray train` trains the
poor setting and `best.yaml` in full with each of the seeds. The search trains with the first seed, so the others say
whether what it found holds. Results: benchmarks/results/tune.{md,json}.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import ray
import torch
import yaml
from measure import hardware, kp_ray, median_and_range, write_results

from kp_ray.synthetic.dataset import make_sample

RECIPES = ["Original", "CenterCrop_1", "Rescale_CenterCrop", "Rescale_RandomCrop_3", "Rotate45_CenterCrop"]
POOR = {"base_lr": 1.5e-4, "schedule": "multistep", "gamma": 0.1, "recipes": RECIPES}
STEPS_AT = (0.2, 0.4)


def write_config(folder: Path, options: argparse.Namespace) -> Path:
    """A config over new generated people, its setting the poor one."""
    made = make_sample(str(folder / "data"), num_images=options.images, num_test=10, width=960, height=540)
    total = options.iterations
    values = {
        "preset": "demo",
        "run_dir": str(folder / "run"),
        "data": {"annotations": made["annotations"], "images": made["images"]},
        "split": {"fraction": 0.15},
        "augment": {"recipes": RECIPES},
        "train": {
            **POOR,
            "members": [{"name": f"seed{seed}", "seed": seed} for seed in range(1, options.seeds + 1)],
            "steps": [round(total * share) for share in STEPS_AT],
            "warmup_iters": total // 10,
            "max_iter": total,
            "eval_period": total,
            "checkpoint_period": total,
        },
        "tune": {"num_trials": options.trials, "max_iter": total, "eval_period": max(1, round(total / 8))},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    return config


def timed(verb: str, config: Path) -> tuple[dict[str, Any], float]:
    """The figures of a verb, and the seconds it took with starting a cluster."""
    began = time.monotonic()
    figures = kp_ray(verb, config)
    print(verb, figures, flush=True)
    return figures, time.monotonic() - began


def describe(trials: pd.DataFrame, runs: dict[str, list[float]], figures: dict[str, Any]) -> str:
    """The page: the verdict first, then every trial."""
    found = figures["search"]
    first_seed = runs["best.yaml"][0]
    text = (
        f"# A search from a poor setting\n\n{figures['hardware']}. {figures['options']}. R-18 from scratch, 960x540 "
        f"frames of generated people; RMSE in their pixels on scenes held out.\n\n"
        "| setting, trained in full with each seed | RMSE px, median (range) | of each seed |\n|---|---|---|\n"
    )
    for name, values in runs.items():
        text += f"| {name} | {median_and_range(values, 1)} | {', '.join(f'{value:.1f}' for value in values)} |\n"
    share = found["iterations"] / found["iterations_without_stops"]
    text += (
        f"\nThe search spent {found['iterations']} iterations of {found['iterations_without_stops']} without stops: "
        f"{share:.0%}. Its best trial had RMSE {found['best']:.1f} px; retrained from best.yaml with the same seed "
        f"{first_seed:.1f} px. Seconds: search {figures['seconds']['tune']:.0f}, all "
        f"{sum(figures['seconds'].values()):.0f}.\n\n"
        "| trial | status | iterations | RMSE px | base LR | schedule | warm-up | decay | flip | recipes | s |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    for number, one in enumerate(trials.itertuples(), 1):
        schedule = "cosine" if one.schedule == "cosine" else f"x{one.gamma:.2f} at {one.steps}"
        rmse = "-" if pd.isna(one.rmse) else f"{one.rmse:.1f}"
        text += (
            f"| {number} | {one.status} | {one.iterations} | {rmse} | {one.base_lr:.2g} | {schedule} | "
            f"{one.warmup_iters} | {one.weight_decay:.1g} | {'yes' if one.flip else 'no'} | {one.recipes} | "
            f"{one.seconds:.0f} |\n"
        )
    return text + "\nThe first trial is the poor setting, the second the published schedule.\n"


def main() -> None:
    """Search, train both settings with every seed, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        config = write_config(Path(name), options)
        seconds = {}
        _, seconds["augment"] = timed("augment", config)
        search, seconds["tune"] = timed("tune", config)
        poor, seconds["train poor"] = timed("train", config)
        best, seconds["train best"] = timed("train", Path(search["config"]))
        trials = pd.read_parquet(Path(name, "run", "tune", "trials.parquet"))
    runs = {
        "poor": [member["rmse"] for member in poor.values()],
        "best.yaml": [member["rmse"] for member in best.values()],
    }
    figures = {
        "hardware": hardware(ray, torch, optuna),
        "options": ", ".join(f"{key} {value}" for key, value in vars(options).items()),
        "seconds": seconds,
        "search": search,
        "runs": runs,
    }
    data = {**figures, "trials": trials.drop(columns="evaluations").to_dict("records")}
    write_results("tune", describe(trials, runs, figures), data)


if __name__ == "__main__":
    main()
