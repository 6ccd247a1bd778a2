"""Fusion: what the ensemble gains on unseen scenes when one member misses 5 % of the images.

    python benchmarks/ensemble.py RUN_DIR --images 200

RUN_DIR holds three trained members or more, a store with validation scenes and a config.yaml. New people, rooms and
cameras are generated, predicted by `kp-ray predict`, and scored: each member alone (its misses filled), the published
plain average, in which a member that found nobody counts as zeros, and the ways of kp_ray. Each member in turn loses
5 % of its images, drawn by a seed. Results: benchmarks/results/ensemble.{md,json}.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from measure import hardware, kp_ray_command, median_and_range, write_results

from kp_ray.config.load import load_config
from kp_ray.config.schema import Config
from kp_ray.data.annotations import parse_name
from kp_ray.data.load import load_annotations
from kp_ray.ensemble.fitted import FittedWeights, fit_weights
from kp_ray.ensemble.fusion import fuse_clips, select_detections
from kp_ray.keypoints import DACON24, FloatArray
from kp_ray.metrics import point_errors, rmse
from kp_ray.store.read import read_table
from kp_ray.synthetic.dataset import make_sample

MISSING = 0.05


class Answers:
    """A file of predictions as arrays: keypoints (M, N, K, 3), scores (M, N), and the place of each image."""

    def __init__(self, path: str) -> None:
        table: pd.DataFrame = pq.read_table(path).to_pandas()
        self.members = list(dict.fromkeys(table["member"]))
        self.images = list(dict.fromkeys(table["image"]))
        shape = (len(self.images), len(self.members))
        self.keypoints = np.stack(table["keypoints"]).reshape(*shape, -1, 3).swapaxes(0, 1)
        self.scores = table["score"].to_numpy().reshape(shape).T
        self.place = tuple(zip(*map(parse_name, self.images), strict=True))


def predict(run_dir: Path, folder: Path, num_images: int) -> tuple[Config, Answers, Answers, FloatArray]:
    """Members' answers for new images and for the store's validation images, and the truth of the new ones."""
    made = make_sample(str(folder / "data"), num_images=8, num_test=num_images, seed=77)
    work = folder / "run"
    work.mkdir()
    for name in ("members", "store"):
        (work / name).symlink_to((run_dir / name).resolve())
    sets = [
        f"run_dir={work}", f"data.test_images={made['test_images']}", f"data.truth={made['truth']}",
        f"data.sample_submission={made['sample_submission']}", "predict.weights=fitted",
    ]  # fmt: skip
    subprocess.run(kp_ray_command("predict", run_dir / "config.yaml", *sets), check=True, stdout=subprocess.DEVNULL)
    config = load_config(str(run_dir / "config.yaml"), sets)
    test, val = (Answers(config.path(f"{name}predictions.parquet")) for name in ("", "val_"))
    truth = load_annotations(config.require_input("truth"))
    rows = [truth.images.index(image) for image in test.images]
    return config, test, val, truth.keypoints[rows]


def fit(config: Config, val: Answers) -> FittedWeights:
    """Weights from the validation scenes."""
    table = read_table(config.path("store"), split="val", columns=["source", "keypoints"]).to_pandas()
    points = dict(zip(table["source"], table["keypoints"], strict=True))
    truth = np.stack([np.reshape(points[image], (-1, 3)) for image in val.images]).astype(float)
    truth[truth[..., 2] == 0] = np.nan
    found, _ = select_detections(val.scores, thresholds(config))
    return fit_weights(val.keypoints, found, truth, val.place[0], person_scores=val.scores)


def thresholds(config: Config) -> tuple[float, float]:
    """Of the person's score: sure, and unsure."""
    return config.predict.score_threshold, config.predict.fallback_threshold


def plain_average(keypoints: FloatArray, scores: FloatArray, threshold: float) -> FloatArray:
    """The published way: the mean over all members, zeros for one that found nobody."""
    found = scores >= threshold
    return np.asarray(np.where(found[..., None, None], keypoints, 0.0).mean(axis=0))


def score(
    config: Config, test: Answers, scores: FloatArray, truth: FloatArray, weights: FloatArray
) -> dict[str, float]:
    """RMSE of each member, the plain average and each way of fusing."""

    def of(points: FloatArray) -> float:
        return float(rmse(point_errors(points, truth)) or 0.0)

    def fused(members: list[int], **some: Any) -> float:
        answer = fuse_clips(
            test.keypoints[members], scores[members], *test.place, thresholds=thresholds(config), **some
        )
        return of(answer.keypoints)

    everyone = list(range(len(test.members)))
    single = {f"member {name}": fused([i]) for i, name in enumerate(test.members)}
    return {
        **single,
        "plain average with zeros": of(plain_average(test.keypoints, scores, thresholds(config)[0])),
        "mean": fused(everyone),
        "mean, points beyond 3 robust sigmas rejected": fused(everyone, reject_sigmas=3.0),
        "median": fused(everyone, method="median"),
        "score": fused(everyone, method="score"),
        "mean, fitted weights": fused(everyone, weights=weights),
    }


def main() -> None:
    """Predict, take images away, score, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        config, test, val, truth = predict(options.run_dir, Path(name), options.images)
        fitted = fit(config, val)
    assert len(test.members) >= 3, "three members or more are compared"
    assert truth.shape[1] == len(DACON24)
    whole = score(config, test, test.scores, truth, fitted.weights)
    trials = []
    for member in range(len(test.members)):
        for seed in range(options.seeds):
            rng = np.random.default_rng([member, seed])
            scores = test.scores.copy()
            scores[member, rng.choice(len(test.images), round(MISSING * len(test.images)), replace=False)] = 0
            trials.append(score(config, test, scores, truth, fitted.weights))
    lost = {way: [trial[way] for trial in trials] for way in whole}
    best = [min(trial[f"member {one}"] for one in test.members) for trial in trials]
    held = {
        "fused below the best single member": sum(t["mean"] < b for t, b in zip(trials, best, strict=True)),
        "fused below the plain average": sum(t["mean"] < t["plain average with zeros"] for t in trials),
        "fitted no worse than equal": sum(t["mean, fitted weights"] <= t["mean"] for t in trials),
    }
    rows = "".join(f"| {way} | {whole[way]:.2f} | {median_and_range(lost[way])} |\n" for way in whole)
    machine = hardware(np)
    scenes = len(set(test.place[0]))
    text = (
        f"# Fusion on unseen scenes\n\n{machine}. {len(test.members)} members ({config.model.preset}, "
        f"{config.train.max_iter} iterations), {len(test.images)} images of {scenes} scenes that no member saw; "
        f"RMSE in px. In the last column one member misses {MISSING:.0%} of the images: median (smallest-largest) of "
        f"{len(trials)} draws, {options.seeds} a member.\n\n"
        f"| | all found as they were | {MISSING:.0%} missed |\n|---|---|---|\n{rows}\n"
        f"Weights fitted on {fitted.num_images} images of {fitted.num_scenes} validation scenes: {fitted.chosen}; "
        f"on scenes held out RMSE {fitted.rmse_equal:.2f} px with equal weights, {fitted.rmse_fitted:.2f} px with "
        "these.\n\n" + "".join(f"- {claim}: in {count} of {len(trials)} draws\n" for claim, count in held.items())
    )
    data = {"whole": whole, "trials": trials, "held": held, "weights": fitted.weights.tolist(), "fit": fitted.chosen}
    write_results("ensemble", text, {"hardware": machine, **data})


if __name__ == "__main__":
    main()
