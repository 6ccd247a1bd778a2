"""Measure the error of fused predictions on unseen scenes, also when one member misses 5 % of the images.

    python benchmarks/ensemble.py RUN_DIR --images 200

RUN_DIR holds at least three trained members, a store and a config.yaml. The script generates images of new people,
rooms and cameras, and predicts them with `kp-ray predict`. It scores each member alone (with fallbacks where the
member found nobody), a plain average in which a member that found nobody counts as zeros, and kp_ray's fusion methods.
Then it removes one member's detections in a random 5 % of the images and scores all of these again, with `--seeds`
draws for each member.
Results: benchmarks/results/ensemble.{md,json}.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import describe_members, hardware, kp_ray_command, median_and_range, trained_config, write_results

from kp_ray.config.load import load_config
from kp_ray.config.schema import Config
from kp_ray.data.load import load_annotations
from kp_ray.ensemble.fusion import fuse_clips
from kp_ray.keypoints import DACON24, FloatArray
from kp_ray.metrics import point_errors, rmse
from kp_ray.prediction.predictions import Predictions, read_predictions
from kp_ray.synthetic.dataset import make_sample

MISSED_SHARE = 0.05


def predict(run_dir: Path, folder: Path, num_images: int) -> tuple[Config, Predictions, FloatArray]:
    """Predict new images; return the config, the members' predictions and the truth (N, K, 3)."""
    sample = make_sample(str(folder / "data"), num_images=8, num_test=num_images, seed=77)
    new_run = folder / "run"
    new_run.mkdir()
    for name in ("members", "store"):
        (new_run / name).symlink_to((run_dir / name).resolve())
    settings = [
        f"run_dir={new_run}",
        f"data.test_images={sample.test_images}",
        f"data.truth={sample.truth}",
        f"data.sample_submission={sample.sample_submission}",
        "predict.weights=equal",
    ]
    subprocess.run(kp_ray_command("predict", run_dir / "config.yaml", *settings), check=True, stdout=subprocess.DEVNULL)
    config = load_config(str(run_dir / "config.yaml"), settings)
    predictions = read_predictions(config.path("predictions.parquet"))
    truth = load_annotations(config.require_input("truth"))
    rows = [truth.images.index(image) for image in predictions.images]
    return config, predictions, truth.keypoints[rows]


def thresholds(config: Config) -> tuple[float, float]:
    """Return the upper and lower threshold of a detection's score."""
    return config.predict.score_threshold, config.predict.fallback_threshold


def plain_average(keypoints: FloatArray, scores: FloatArray, threshold: float) -> FloatArray:
    """Average all members' keypoints; a member that found nobody counts as zeros."""
    is_found = scores >= threshold
    return np.asarray(np.where(is_found[..., None, None], keypoints, 0.0).mean(axis=0))


def compute_rmses(config: Config, predictions: Predictions, scores: FloatArray, truth: FloatArray) -> dict[str, float]:
    """Compute the RMSE in pixels of each member, of the plain average and of each fusion method.

    Args:
        scores: (M, N) scores of the predictions; 0 where the member counts as having found nobody.
        truth: (N, K, 3) x, y, v of the labels.
    """
    keypoints = predictions.keypoints

    def compute_rmse(points: FloatArray) -> float:
        return float(rmse(point_errors(points, truth)) or 0.0)

    def compute_fused_rmse(members: list[int], **options: Any) -> float:
        fusion = fuse_clips(
            keypoints[members],
            scores[members],
            *predictions.scenes_cameras_frames,
            thresholds=thresholds(config),
            **options,
        )
        return compute_rmse(fusion.keypoints)

    all_members = list(range(len(predictions.members)))
    member_rmse = {f"member {name}": compute_fused_rmse([i]) for i, name in enumerate(predictions.members)}
    return {
        **member_rmse,
        "plain average with zeros": compute_rmse(plain_average(keypoints, scores, thresholds(config)[0])),
        "mean": compute_fused_rmse(all_members),
        "mean, points beyond 3 robust sigmas rejected": compute_fused_rmse(all_members, reject_sigmas=3.0),
        "median": compute_fused_rmse(all_members, method="median"),
        "score": compute_fused_rmse(all_members, method="score"),
    }


def main() -> None:
    """Predict, remove detections of one member at a time, score, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        config, predictions, truth = predict(options.run_dir, Path(name), options.images)
        settings = describe_members(trained_config(config))
    assert len(predictions.members) >= 3, f"{options.run_dir}: this benchmark needs at least three members"
    assert truth.shape[1] == len(DACON24)
    num_images = len(predictions.images)
    unchanged = compute_rmses(config, predictions, predictions.scores, truth)
    draws = []
    for member in range(len(predictions.members)):
        for seed in range(options.seeds):
            rng = np.random.default_rng([member, seed])
            scores = predictions.scores.copy()
            scores[member, rng.choice(num_images, round(MISSED_SHARE * num_images), replace=False)] = 0
            draws.append(compute_rmses(config, predictions, scores, truth))
    lowest_member_rmses = [min(draw[f"member {name}"] for name in predictions.members) for draw in draws]
    wins = {
        "the RMSE of `mean` is lower than the best single member's": sum(
            draw["mean"] < lowest for draw, lowest in zip(draws, lowest_member_rmses, strict=True)
        ),
        "the RMSE of `mean` is lower than the plain average's": sum(
            draw["mean"] < draw["plain average with zeros"] for draw in draws
        ),
    }
    rows = "".join(
        f"| {way} | {unchanged[way]:.2f} | {median_and_range([draw[way] for draw in draws])} |\n" for way in unchanged
    )
    machine = hardware(np)
    scenes = len(set(predictions.scenes_cameras_frames[0]))
    text = (
        f"# Fusion on unseen scenes\n\n{machine}. {len(predictions.members)} members ({config.model.preset}, "
        f"{settings}), {num_images} images of {scenes} scenes that no member saw; "
        f"RMSE in px. In the last column one member misses {MISSED_SHARE:.0%} of the images: median "
        f"(smallest-largest) of {len(draws)} draws, {options.seeds} per member.\n\n"
        f"| | as found | {MISSED_SHARE:.0%} missed |\n|---|---|---|\n{rows}\n"
        + "".join(f"- {claim}: in {count} of {len(draws)} draws\n" for claim, count in wins.items())
    )
    data = {"whole": unchanged, "trials": draws, "held": wins}
    write_results("ensemble", text, {"hardware": machine, **data})


if __name__ == "__main__":
    main()
