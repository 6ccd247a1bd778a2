"""Measure how decoding, test-time scales and fusion change the error of the same members on unseen people.

    python benchmarks/accuracy.py FOLDER --seeds 1 2 3 --images 80

For every seed, the script makes the demo's data and trains its two members with `kp-ray` in FOLDER. Data and members
are kept, so that a later run only predicts. Then images of new people, rooms and cameras are predicted with
every setting in `SETTINGS`, by kp_ray's functions in this process, without a Ray cluster.
Results: benchmarks/results/accuracy.{md,json}.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch
from measure import DEMO_CONFIG, describe_training, hardware, median_and_range, run_kp_ray, write_results

from kp_ray.config.load import load_config
from kp_ray.prediction.decode import decode_batch, refs_table
from kp_ray.prediction.evaluate import evaluate_run
from kp_ray.prediction.predictor import Predictor
from kp_ray.prediction.task import PredictionTask
from kp_ray.synthetic.dataset import SampleSummary, make_sample

SETTINGS: dict[str, dict[str, Any]] = {
    "argmax": {"decode": "argmax", "tta": []},
    "expectation": {"tta": []},
    "argmax, scale 1.25": {"decode": "argmax", "tta": [1.25]},
    "expectation, scale 0.8": {"tta": [0.8]},
    "expectation, scale 1.25": {"tta": [1.25]},
    "expectation, scale 1.25, fused by score": {"tta": [1.25], "fusion": "score"},
    "expectation, scales 0.8 and 1.25": {"tta": [0.8, 1.25]},
}
"""Name of a row of the table -> settings of the section `predict`. The first row is the baseline."""
COLUMNS = {
    "rmse": "RMSE px",
    "median_px": "median px",
    "pck_0.02": "PCK@0.02",
    "pck_0.05": "PCK@0.05",
    "member_rmse": "a member's RMSE px",
    "member_pck_0.02": "a member's PCK@0.02",
    "cpu_s": "CPU s per image",
}
"""Measured values of a row and their titles: the ensemble's metrics, the means of the members' own metrics
(`member_...`), and CPU seconds per image."""

NUM_IMAGES = 400
"""Number of labelled images, as in `make demo`."""


def make_store(folder: Path, seed: int) -> Path:
    """Make the demo's data and store, unless they exist; return the path of the config."""
    run_dir = folder / f"images{NUM_IMAGES}-seed{seed}"
    config = run_dir / "data" / "config.yaml"
    if not config.exists():
        make_sample(str(run_dir / "data"), num_images=NUM_IMAGES, num_test=40, seed=seed, run_dir=str(run_dir))
    run_kp_ray("augment", config)
    return config


def train_members(config: Path, seed: int, *overrides: str, names: str = "ab") -> None:
    """Train the demo's members without a search; members that have ended stay as they are."""
    members = [{"name": name, "seed": 10 * seed + number} for number, name in enumerate(names, 1)]
    run_kp_ray("train", config, "tune.num_trials=0", f"train.members={json.dumps(members)}", *overrides)


def measure_setting(
    config_path: Path, sample: SampleSummary, folder: Path, section: dict[str, Any]
) -> dict[str, float]:
    """Predict and evaluate the sample's images with one setting; return the values of `COLUMNS`.

    The predictor runs on the GPU if there is one.

    Args:
        config_path: config of the trained members.
        sample: the images and their ground truth.
        folder: empty folder for the predictions.
        section: settings of the section `predict`.
    """
    run_dir = Path(load_config(str(config_path)).run_dir)
    for name in ("members", "store"):
        (folder / name).symlink_to(run_dir / name)
    data = {key: getattr(sample, key) for key in ("test_images", "truth", "sample_submission")}
    overrides = [
        f"run_dir={folder}",
        "train.members=[{name: a}, {name: b}]",
        *(f"data.{key}={value}" for key, value in data.items()),
        *(f"predict.{key}={json.dumps(value)}" for key, value in section.items()),
    ]
    config = load_config(str(config_path), overrides)
    task = PredictionTask(config)
    predictor = Predictor(**task.predictor_arguments(has_gpu=torch.cuda.is_available()))
    began = time.process_time()
    size = config.predict.batch_size
    for start in range(0, len(task.images), size):
        predictor.write_part(decode_batch(refs_table(task.images[start : start + size]), task.input_sizes))
    cpu_s = (time.process_time() - began) / len(task.images)
    task.merge()
    evaluation = evaluate_run(config)
    members = list(evaluation.members.values())
    return {
        "rmse": float(evaluation.rmse or 0),
        "median_px": float(evaluation.median_px or 0),
        "pck_0.02": float(evaluation.pck["0.02"] or 0),
        "pck_0.05": float(evaluation.pck["0.05"] or 0),
        "member_rmse": statistics.mean(float(member.rmse or 0) for member in members),
        "member_pck_0.02": statistics.mean(float(member.pck["0.02"] or 0) for member in members),
        "cpu_s": cpu_s,
    }


def format_table(results: dict[str, list[dict[str, float]]], columns: dict[str, str]) -> str:
    """Format the measured values as a table of medians and ranges over the seeds.

    Args:
        results: name of a setting -> values of `COLUMNS` per seed; the first setting is the baseline.
        columns: those of `COLUMNS` that the table has.
    """
    digits = {"rmse": 1, "median_px": 1, "member_rmse": 1}
    baseline = next(iter(results.values()))
    rows = []
    for name, measurements in results.items():
        cells = [median_and_range([row[key] for row in measurements], digits.get(key, 3)) for key in columns]
        cells = cells if len(measurements) > 1 else [cell.partition(" ")[0] for cell in cells]
        pairs = list(zip(measurements, baseline, strict=True))
        num_lower_rmse = sum(row["rmse"] < baseline_row["rmse"] for row, baseline_row in pairs)
        num_higher_pck = sum(row["pck_0.02"] > baseline_row["pck_0.02"] for row, baseline_row in pairs)
        rows.append(f"| {name} | {' | '.join(cells)} | {num_lower_rmse}, {num_higher_pck} |")
    titles = ["", *columns.values(), "seeds with a lower RMSE, a higher PCK@0.02 than the first row"]
    return "\n".join([f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *rows]) + "\n"


def write_page(
    name: str,
    title: str,
    members: str,
    options: argparse.Namespace,
    results: dict[str, list[dict[str, float]]],
    columns: dict[str, str],
) -> None:
    """Write the result page `name`.

    Args:
        name: name of the page's files.
        title: the page's title.
        members: whose predictions they are; completes "on ... images".
        options: has the `seeds`, and the number of `images` that were predicted.
        results, columns: see `format_table`.
    """
    machine = hardware(ray, torch)
    text = (
        f"# {title}\n\n{machine}. Seeds {', '.join(map(str, options.seeds))}: {members} on {NUM_IMAGES} "
        f"images; {options.images} images of people that no member saw. The preset `demo`: "
        f"{describe_training(DEMO_CONFIG)}. Median (smallest-largest) over the seeds.\n\n"
        + format_table(results, columns)
    )
    write_results(name, text, {"hardware": machine, "seeds": options.seeds, "results": results})


def main() -> None:
    """Train the members that are missing, measure every setting, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--images", type=int, default=80)
    options = parser.parse_args()
    folder = options.folder.resolve()
    configs = [make_store(folder, seed) for seed in options.seeds]
    for config, seed in zip(configs, options.seeds, strict=True):
        train_members(config, seed)
    sample = make_sample(str(folder / f"test{options.images}"), num_images=8, num_test=options.images, seed=77)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in SETTINGS}
    for config in configs:
        for name, section in SETTINGS.items():
            with tempfile.TemporaryDirectory() as temporary:
                results[name].append(measure_setting(config, sample, Path(temporary), section))
            print(config.parent.parent.name, name, results[name][-1], flush=True)
    write_page(
        "accuracy",
        "Accuracy by decoding, test-time scales and fusion",
        "the ensemble of the demo's two members per seed, trained once",
        options,
        results,
        COLUMNS,
    )


if __name__ == "__main__":
    main()
