"""Search from poor training settings; measure how much the search improves them and how many iterations ASHA saves.

    python benchmarks/tune.py

`kp-ray tune` searches from a learning rate that is far too small and decays too early. Then `kp-ray train` trains
the poor setting and `best.yaml` in full with each seed. The search uses only the first seed, so the other seeds show
whether its result holds. Results: benchmarks/results/tune.{md,json}.
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
from measure import hardware, median_and_range, run_kp_ray, write_results

from kp_ray.config.tuning import TuneConfig
from kp_ray.synthetic.dataset import make_sample

RECIPES = ["Original", "CenterCrop_1", "Rescale_CenterCrop", "Rescale_RandomCrop_3", "Rotate45_CenterCrop"]
POOR_SETTING = {"base_lr": 1.5e-4, "schedule": "multistep", "gamma": 0.1, "recipes": RECIPES}
STEP_SHARES = (0.2, 0.4)
"""Positions of the poor setting's learning rate steps, as shares of the iterations."""
NUM_EVALUATIONS = 4
"""Evaluations of a trial, at which it may be stopped; until iteration 20 or so the error rises and falls by chance."""


def write_config(folder: Path, options: argparse.Namespace) -> Path:
    """Generate images of people, write a config with the poor setting for them, and return its path."""
    sample = make_sample(str(folder / "data"), num_images=options.images, num_test=10, width=960, height=540)
    total = options.iterations
    values = {
        "preset": "demo",
        "run_dir": str(folder / "run"),
        "data": {"annotations": sample.annotations, "images": sample.images},
        "split": {"fraction": 0.15},
        "augment": {"recipes": RECIPES},
        "train": {
            **POOR_SETTING,
            "members": [{"name": f"seed{seed}", "seed": seed} for seed in range(1, options.seeds + 1)],
            "steps": [round(total * share) for share in STEP_SHARES],
            "warmup_iters": total // 10,
            "max_iter": total,
            "eval_period": total,
            "checkpoint_period": total,
        },
        "tune": TuneConfig().model_dump(mode="json")  # the preset's search space is narrower
        | {"num_trials": options.trials, "max_iter": total, "eval_period": max(1, round(total / NUM_EVALUATIONS))},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    return config


def run_timed(verb: str, config: Path, *overrides: str) -> tuple[dict[str, Any], float]:
    """Run a verb; return its JSON object and its duration in seconds, which includes the start of the cluster."""
    began = time.monotonic()
    summary = run_kp_ray(verb, config, *overrides)
    print(verb, summary, flush=True)
    return summary, time.monotonic() - began


def build_page(trials: pd.DataFrame, runs: dict[str, list[float]], results: dict[str, Any]) -> str:
    """Compose the result page in Markdown: the outcome first, then every trial."""
    search = results["search"]
    first_rmse = runs["best.yaml"][0]
    text = (
        f"# Search from a poor setting\n\n{results['hardware']}. {results['options']}. R-18 from scratch, 960x540 "
        f"frames of generated people; RMSE in pixels of these frames, on held-out scenes. The search space is the "
        "default of `tune`.\n\n"
        "| setting, trained in full with each seed | RMSE px, median (range) | RMSE px per seed |\n|---|---|---|\n"
    )
    for name, values in runs.items():
        text += f"| {name} | {median_and_range(values, 1)} | {', '.join(f'{value:.1f}' for value in values)} |\n"
    share = search["iterations"] / search["iterations_without_stops"]
    text += (
        f"\nThe search trained {search['iterations']} of the {search['iterations_without_stops']} iterations that it "
        f"would take without early stopping: {share:.0%}. Its best trial had RMSE {search['best']:.1f} px; retrained "
        f"from best.yaml with the same seed {first_rmse:.1f} px. Seconds: search {results['seconds']['tune']:.0f}, all "
        f"{sum(results['seconds'].values()):.0f}.\n\n"
        "| trial | status | iterations | RMSE px | base LR | schedule | warm-up | decay | flip | recipes | s |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|\n"
    )
    for number, trial in enumerate(trials.itertuples(), 1):
        schedule = "cosine" if trial.schedule == "cosine" else f"x{trial.gamma:.2f} at {trial.steps}"
        rmse = "-" if pd.isna(trial.rmse) else f"{trial.rmse:.1f}"
        text += (
            f"| {number} | {trial.status} | {trial.iterations} | {rmse} | {trial.base_lr:.2g} | {schedule} | "
            f"{trial.warmup_iters} | {trial.weight_decay:.1g} | {'yes' if trial.flip else 'no'} | {trial.recipes} | "
            f"{trial.seconds:.0f} |\n"
        )
    return text + "\nThe first trial is the poor setting, the second the published schedule.\n"


def main() -> None:
    """Search, train both settings with every seed, and write the result page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=120)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        config = write_config(Path(name), options)
        seconds = {}
        _, seconds["augment"] = run_timed("augment", config)
        search, seconds["tune"] = run_timed("tune", config)
        poor_run_dir = Path(name, "poor")
        poor_run_dir.mkdir()
        (poor_run_dir / "store").symlink_to(Path(name, "run", "store"))
        poor_members, seconds["train poor"] = run_timed("train", config, f"run_dir={poor_run_dir}", "train.tuned=false")
        best_members, seconds["train best"] = run_timed("train", Path(search.pop("config")))
        trials = pd.read_parquet(Path(name, "run", "tune", "trials.parquet"))
    runs = {
        "poor": [member["rmse"] for member in poor_members.values()],
        "best.yaml": [member["rmse"] for member in best_members.values()],
    }
    results = {
        "hardware": hardware(ray, torch, optuna),
        "options": ", ".join(f"{key} {value}" for key, value in vars(options).items()),
        "seconds": seconds,
        "search": search,
        "runs": runs,
    }
    data = {**results, "trials": trials.drop(columns="evaluations").to_dict("records")}
    write_results("tune", build_page(trials, runs, results), data)


if __name__ == "__main__":
    main()
