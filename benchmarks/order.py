"""Train the demo's members with the preset's own settings and with those that a search finds; compare the ensembles.

    python benchmarks/order.py --seeds 1 2 3

Each seed has its own people, split and member seeds. `kp-ray tune` searches with the settings of the preset `demo`. The
members are trained twice, in two run folders: with `train.tuned: false`, and with the result of the search. Both
ensembles predict the same test images. If the search keeps the config's own settings, both trainings would be the
same, so the members are trained once. Results: benchmarks/results/order.{md,json}.
"""

import argparse
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import ray
import torch
import yaml
from measure import (
    DEMO_CONFIG,
    TimedRuns,
    add_override_option,
    add_seed_option,
    describe_members,
    describe_options,
    hardware,
    measure_seeds,
    median_and_range,
)

from kp_ray.synthetic.dataset import make_sample
from kp_ray.tuning.records import OWN_TRIAL

METRICS = ("num_images", "num_missing", "rmse", "rmse_interval", "median_px", "p95_px", "pck", "ap", "ap50", "ap75")
"""Metrics of an evaluation that the results hold."""


def write_config(folder: Path, seed: int, options: argparse.Namespace) -> Path:
    """Generate images of people, write a config of the preset `demo` for them, and return its path."""
    sample = make_sample(str(folder / "data"), num_images=options.images, num_test=options.test_images, seed=seed)
    values: dict[str, Any] = {
        "preset": "demo",
        "run_dir": str(folder / "untuned"),
        "seed": seed,
        "data": sample.data,
        "split": {"fraction": options.fraction},
        "train": {"members": [{"name": name, "seed": 100 * seed + i} for i, name in enumerate("ab", 1)]},
    }
    if options.recipes:
        values["augment"] = {"recipes": options.recipes}
    if options.iterations:
        total, trial_iterations = options.iterations, max(4, options.iterations // 5)
        values["train"] |= {"max_iter": total, "warmup_iters": total // 17, "eval_period": total // 2}
        values["tune"] = {"max_iter": trial_iterations, "eval_period": trial_iterations // 4}
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    return config


def measure_seed(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Search, and train untuned and tuned members, with one seed; return metrics, trials and seconds."""
    config = write_config(folder, seed, options)
    runs = TimedRuns(seed, config, options.overrides)
    runs.run("augment", "augment")
    shutil.copytree(folder / "untuned", folder / "tuned")
    tuned_run_dir = f"run_dir={folder / 'tuned'}"
    result: dict[str, Any] = {"seed": seed, "search": runs.run("tune", "tune", tuned_run_dir)}
    del result["search"]["config"]  # a path in the temporary folder
    trainings = {"untuned": ["train.tuned=false"], "tuned": [tuned_run_dir]}
    if result["search"]["trial"] == OWN_TRIAL:
        del trainings["tuned"]
    for name, overrides in trainings.items():
        result[f"{name} members"] = runs.run(f"train {name}", "train", *overrides)
        runs.run(f"predict {name}", "predict", *overrides)
        evaluation = runs.run(f"evaluate {name}", "evaluate", *overrides)
        result[name] = {key: evaluation[key] for key in METRICS}
    result.setdefault("tuned", result["untuned"])
    trials = pd.read_csv(folder / "tuned" / "tune" / "trials.csv")
    return {**result, "trials": trials.to_dict("records"), "seconds": runs.seconds}


def describe(results: list[dict[str, Any]], conditions: dict[str, str]) -> str:
    """Compose the result page in Markdown: the outcome first, then each search."""
    text = (
        f"# Members trained with the preset's own setting and with what its search found\n\n{conditions['hardware']}. "
        f"{conditions['options']}. Preset `demo` ({conditions['members']}) on generated people; RMSE of the ensemble "
        "on the test images.\n\n"
        "| setting | RMSE px, median (range) | RMSE px per seed |\n|---|---|---|\n"
    )
    for label, name in {"the preset's own": "untuned", "found by the search": "tuned"}.items():
        values = [result[name]["rmse"] for result in results]
        text += f"| {label} | {median_and_range(values, 1)} | {', '.join(f'{value:.1f}' for value in values)} |\n"
    text += (
        "\n| seed | chosen trial | its validation RMSE px | first trial's validation RMSE px | base LR | warm-up | "
        "validation RMSE px of the finished trials | statuses | iterations |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    for result in results:
        search = result["search"]
        first_rmse = "-" if search["own"] is None else f"{search['own']:.1f}"
        iterations = f"{search['iterations']} of {search['iterations_without_stops']}"
        statuses = ", ".join(str(trial["status"]) for trial in result["trials"])
        finished = ", ".join(f"{trial['rmse']:.1f}" for trial in result["trials"] if trial["status"] == "finished")
        text += (
            f"| {result['seed']} | {search['trial']} | {search['best']:.1f} | {first_rmse} | "
            f"{search['params']['base_lr']:.2g} | {search['params']['warmup_iters']} | {finished} | {statuses} | "
            f"{iterations} |\n"
        )
    num_own = sum(result["search"]["trial"] == OWN_TRIAL for result in results)
    return text + (
        "\nThe first trial has the config's own settings and is never stopped. Another trial is chosen if its error is "
        f"lower by `tune.min_gain`. With {num_own} of {len(results)} seeds the first trial was chosen: there the "
        "members were trained once, because both settings are the same.\n"
    )


def main() -> None:
    """Measure the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_seed_option(parser)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--test-images", type=int, default=40)
    parser.add_argument("--fraction", type=float, default=0.1, help="share of the scenes for validation")
    parser.add_argument(
        "--iterations", type=int, help="iterations per member (default: the preset's); scales the schedule"
    )
    parser.add_argument("--recipes", nargs="+", help="recipes to store, including the preset's four (default: all)")
    add_override_option(parser)
    options = parser.parse_args()
    conditions = {
        "hardware": hardware(ray, torch, optuna),
        "options": describe_options(options),
        "members": describe_members(DEMO_CONFIG),
    }
    measure_seeds("order", options.seeds, conditions, partial(measure_seed, options=options), describe)


if __name__ == "__main__":
    main()
