"""Spoil labels; measure how early `kp-ray suspects` lists them, and how much they raise the error of members.

    python benchmarks/suspects.py --seeds 1 2 3

Each seed generates people and spoils 3 % of the rows in five ways. `kp-ray suspects` ranks the images by predictions of
members that never saw their scene. The same images are also ranked by the number of `check`'s findings, by `suspects`
without predictions, and by the distance between label and prediction ("loss"). With --train, four ensembles are scored:
trained on the spoiled labels, on labels corrected as `corrections.csv` proposes for the first 5 % of the list, on the
clean labels, and on the clean labels with one hold-out instead of folds.
Results: benchmarks/results/suspects.{md,json}.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import yaml
from measure import (
    DEMO_CONFIG,
    TimedRuns,
    add_override_option,
    add_seed_option,
    describe_options,
    hardware,
    measure_seeds,
)

from kp_ray.checks.labels import check_labels
from kp_ray.config.load import load_config
from kp_ray.config.schema import Config
from kp_ray.data.annotations import Annotations
from kp_ray.data.csv_format import to_csv
from kp_ray.data.load import load_annotations
from kp_ray.keypoints import FloatArray
from kp_ray.suspects.files import read_suspects
from kp_ray.suspects.rank import rank_suspects
from kp_ray.suspects.residuals import body_sizes
from kp_ray.suspects.stage import read_predicted_points
from kp_ray.synthetic.dataset import SampleSummary, make_sample

KINDS = ("other frame", "other scene", "left_right", "one point", "shifted")
SPOILED_SHARE = 0.03
TOP_SHARES = (0.03, 0.05, 0.1)
CORRECTED_SHARE = 0.05
RECIPES = ("Original", "CenterCrop_1", "Rescale_CenterCrop", "Rescale_RandomCrop_3")


def spoil_labels(labels: Annotations, seed: int) -> tuple[FloatArray, dict[str, str]]:
    """Spoil the share SPOILED_SHARE of the rows, with each kind equally often.

    Returns:
        The keypoints (N, K, 3), and the kind of each spoiled row by its image.
    """
    rng = np.random.default_rng([seed, 23])
    keypoints = labels.keypoints.copy()
    rows = rng.choice(len(labels), round(SPOILED_SHARE * len(labels)), replace=False)
    spoiled: dict[str, str] = {}
    for number, row in enumerate(rows.tolist()):
        kind = KINDS[number % len(KINDS)]
        keypoints[row] = _spoil_row(labels, row, kind, rng)
        spoiled[labels.images[row]] = kind
    return keypoints, spoiled


def _spoil_row(labels: Annotations, row: int, kind: str, rng: np.random.Generator) -> FloatArray:
    """Return the points (K, 3) of a row, spoiled in the way `kind`."""
    points = labels.keypoints[row].copy()
    longer_side = float(np.ptp(points[:, :2], axis=0).max())
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    if kind in ("other frame", "other scene"):
        is_same_scene = np.array(labels.scenes) == labels.scenes[row]
        is_same_clip = is_same_scene & (np.array(labels.cameras) == labels.cameras[row])
        if kind == "other frame":  # the frame that differs most, because a person who stands still has equal labels
            clip_rows = np.flatnonzero(is_same_clip)
            distances = np.linalg.norm(labels.keypoints[clip_rows, :, :2] - points[:, :2], axis=2).mean(axis=1)
            points = labels.keypoints[clip_rows[distances.argmax()]].copy()
        else:
            points = labels.keypoints[rng.choice(np.flatnonzero(~is_same_scene))].copy()
    elif kind == "left_right":
        points = points[list(labels.skeleton.flip_indices)]
    elif kind == "one point":
        points[rng.integers(len(points)), :2] += direction * rng.uniform(0.2, 0.6) * longer_side
    else:
        points[:, :2] += direction * rng.uniform(0.15, 0.4) * longer_side
    return points


def write_config(folder: Path, sample: SampleSummary, seed: int, options: argparse.Namespace) -> Path:
    """Write a config of the preset `demo` with five folds and five members, and return its path."""
    total = options.iterations
    train = {"max_iter": total, "warmup_iters": total // 17, "eval_period": 0, "checkpoint_period": total}
    members = [{"name": name, "seed": 100 * seed + number} for number, name in enumerate("abcde")]
    values: dict[str, Any] = {
        "preset": "demo",
        "run_dir": str(folder / "spoiled"),
        "seed": seed,
        "data": {**sample.data, "annotations": str(folder / "spoiled.csv")},
        "split": {"folds": 5},
        "augment": {"recipes": list(RECIPES)},
        "train": {**train, "members": members},
        "tune": {"num_trials": 0},
        "predict": {"tta": []},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    return config


def share_in_top(ranked: Sequence[str], spoiled: dict[str, str], num_images: int) -> dict[str, Any]:
    """Return the share of the spoiled rows that are in the first 3, 5 and 10 % of a list.

    The item `kinds` counts those in the first 5 % by kind.
    """
    shares = {}
    for share in TOP_SHARES:
        top_images = set(ranked[: round(share * num_images)])
        shares[f"{share:.0%}"] = len(top_images & set(spoiled)) / len(spoiled)
    top_images = set(ranked[: round(CORRECTED_SHARE * num_images)])
    counts = Counter(kind for image, kind in spoiled.items() if image in top_images)
    return {**shares, "kinds": {kind: counts[kind] for kind in KINDS}}


def rank_all(config: Config, labels: Annotations, size: tuple[int, int]) -> dict[str, list[str]]:
    """Rank images of one size (width, height) in four ways; those without a finding follow in the labels' order."""
    num_findings = Counter(finding.image for finding in check_labels(labels, size))
    by_check = sorted(labels.images, key=lambda image: -num_findings[image])
    by_motion = [suspect.image for suspect in rank_suspects(labels, {}, {})]
    predictions, _ = read_predicted_points(config, labels.skeleton)
    losses = {image: float("inf") for image in labels.images}
    for image, points in zip(labels.images, labels.keypoints, strict=True):
        if image in predictions:
            distance = np.linalg.norm(points[:, :2] - predictions[image], axis=1).mean()
            losses[image] = float(distance / body_sizes(predictions[image][None])[0])
    return {
        "suspects": [row.image for row in read_suspects(config.path("suspects.csv"))],
        "suspects without predictions": [
            *by_motion,
            *(image for image in labels.images if image not in set(by_motion)),
        ],
        "check": by_check,
        "loss": sorted(labels.images, key=lambda image: -losses[image]),
    }


def apply_proposals(config: Config, num_images: int) -> str:
    """Uncomment the proposed corrections of the first 5 % of the list; return the path of the new file."""
    rows = read_suspects(config.path("suspects.csv"))[: round(CORRECTED_SHARE * num_images)]
    prefixes = tuple(f"# {row.image}," for row in rows)
    lines = Path(config.path("corrections.csv")).read_text().splitlines()
    target = Path(config.path("applied.csv"))
    target.write_text(
        "\n".join(line.removeprefix("# ") if line.startswith(prefixes) else line for line in lines) + "\n"
    )
    return str(target)


def measure_seed(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one seed; return the shares of each ranking and, with --train, the scores on the test images."""
    size = {"width": options.width, "height": options.width * 9 // 16}
    sample = make_sample(
        str(folder / "data"), num_images=options.images, num_test=options.test_images, seed=seed, **size
    )
    labels = load_annotations(sample.annotations)
    keypoints, spoiled = spoil_labels(labels, seed)
    spoiled_labels = replace(labels, keypoints=keypoints)
    (folder / "spoiled.csv").write_bytes(to_csv(spoiled_labels))
    config_path = write_config(folder, sample, seed, options)
    runs = TimedRuns(seed, config_path, options.overrides)
    for verb in ("augment", "train"):
        runs.run(verb, verb)
    suspects_summary = runs.run("suspects", "suspects")
    config = load_config(str(config_path))
    ways = {
        name: share_in_top(ranked, spoiled, len(labels))
        for name, ranked in rank_all(config, spoiled_labels, (size["width"], size["height"])).items()
    }
    counts = {key: suspects_summary[key] for key in ("images", "predicted", "kinds", "proposed")}
    result: dict[str, Any] = {"seed": seed, "num_spoiled": len(spoiled), "counts": counts, "ways": ways}
    if options.train:
        trainings = {
            "spoiled": [],
            "corrected": [
                f"run_dir={folder / 'corrected'}",
                f"data.corrections={apply_proposals(config, len(labels))}",
            ],
            "clean": [f"run_dir={folder / 'clean'}", f"data.annotations={sample.annotations}"],
            "clean, one hold-out": [
                f"run_dir={folder / 'held'}",
                f"data.annotations={sample.annotations}",
                "split.folds=null",
                "split.fraction=0.2",
            ],
        }
        for name, overrides in trainings.items():
            for verb in ("augment", "train", "predict"):
                runs.run(f"{verb} {name}", verb, *overrides)
            result[name] = runs.run(f"evaluate {name}", "evaluate", *overrides)["rmse"]
    return {**result, "seconds": runs.seconds}


def describe(results: list[dict[str, Any]], conditions: dict[str, str]) -> str:
    """Compose the result page in Markdown."""
    text = (
        f"# Spoiled labels among generated people\n\n{conditions['hardware']}. {conditions['options']}. "
        f"{SPOILED_SHARE:.0%} of the rows are spoiled in five kinds. Share of the spoiled rows in the first part of "
        f"the list, for the seeds {', '.join(str(result['seed']) for result in results)}:\n\n"
        "| ranked by | first 3 % | first 5 % | first 10 % |\n|---|---|---|---|\n"
    )
    for way in results[0]["ways"]:
        cells = [", ".join(f"{result['ways'][way][f'{share:.0%}']:.2f}" for result in results) for share in TOP_SHARES]
        text += f"| {way} | {' | '.join(cells)} |\n"
    text += f"\n| found in the first 5 %, all seeds | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}\n"
    for way in results[0]["ways"]:
        sums = [sum(result["ways"][way]["kinds"][kind] for result in results) for kind in KINDS]
        text += f"| {way} | {' | '.join(map(str, sums))} |\n"
    if "clean" in results[0]:
        text += "\n| members trained on | RMSE px of the ensemble on unseen scenes, per seed |\n|---|---|\n"
        for name in ("spoiled", "corrected", "clean", "clean, one hold-out"):
            text += f"| {name} | {', '.join(f'{result[name]:.1f}' for result in results)} |\n"
    return text


def main() -> None:
    """Measure the seeds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_seed_option(parser)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--test-images", type=int, default=100)
    parser.add_argument("--width", type=int, default=960, help="width of the images in pixels")
    parser.add_argument("--iterations", type=int, default=170, help="iterations of each of the five members")
    parser.add_argument("--train", action="store_true", help="also train on corrected and on clean labels")
    add_override_option(parser)
    options = parser.parse_args()
    conditions = {
        "hardware": hardware(ray, torch),
        "options": f"{describe_options(options)}, base_lr {DEMO_CONFIG.train.base_lr:g}",
    }
    measure_seeds("suspects", options.seeds, conditions, partial(measure_seed, options=options), describe)


if __name__ == "__main__":
    main()
