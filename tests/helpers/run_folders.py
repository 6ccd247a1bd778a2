"""Fill a run folder with the files of every stage, without running the stages."""

import json
from pathlib import Path

import cv2
import numpy as np

from kp_ray.checks.findings import Finding, write_findings
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.keypoints import DACON24
from kp_ray.metrics import CameraMetrics, KeypointMetrics
from kp_ray.prediction.predictions import PersonChoices
from kp_ray.prediction.records import (
    FilledImage,
    FusionEvaluation,
    ImageRmse,
    PredictionCost,
    PredictionDetails,
    RunEvaluation,
    WeightsSource,
    write_details,
    write_evaluation,
)
from kp_ray.store.augment_record import AugmentRecord, write_augment_record
from kp_ray.store.manifest import Quarantined
from kp_ray.training.search_result import SearchResult, write_result
from kp_ray.tuning.trials import read_trials, write_tables
from kp_ray.visualization.plots import plot_scatter
from tests.helpers.predictions import write_prediction_arrays
from tests.helpers.searches import write_trial
from tests.helpers.stores import STORE_IMAGES, make_image, make_points, write_small_store

HOSTILE_NAME = "<script>alert('1')</script>&\"$x_1$.jpg"
"""An image name with markup of HTML and TeX, which the report must show as text."""
OUTSIDE_NAME = "../secret.jpg"
"""Name of an image that is outside the folder of the test images."""
SPREAD_PX = 60
"""Distance in x, and in y, between the points of the two members in the fifth image."""


def make_config(folder: Path, **sections: object) -> Config:
    """Make an empty run folder `folder/run` and its config."""
    (folder / "run").mkdir(parents=True, exist_ok=True)
    return build_config({"run_dir": str(folder / "run"), **sections})


def write_test_images(folder: Path) -> None:
    """Write the images `STORE_IMAGES` into a new folder, and the image OUTSIDE_NAME beside the folder."""
    folder.mkdir()
    for number, image in enumerate(STORE_IMAGES):
        cv2.imwrite(str(folder / image), make_image(number))
    cv2.imwrite(str(folder / OUTSIDE_NAME), make_image(99))


def write_labels(path: Path, seed: int) -> None:
    """Write keypoints of the images `STORE_IMAGES` as CSV, the format of labels and of submissions.

    Args:
        path: the file.
        seed: seed of the first image's points; each next image has the next seed.
    """
    lines = [",".join(["image", *DACON24.columns])]
    for number, image in enumerate(STORE_IMAGES):
        lines.append(",".join([image, *map(str, make_points(seed + number).ravel())]))
    path.write_text("\n".join(lines) + "\n")


def write_store_and_record(config: Config, *, parts_written: int = 3) -> None:
    """Write a small store with one quarantined source, and augment.json."""
    quarantined = (Quarantined(source=HOSTILE_NAME, stage="read", reason="truncated"),)
    write_small_store(Path(config.path("store")), quarantined)
    record = AugmentRecord(
        sources=2,
        variants=9,
        seconds=2.5,
        start_up_s=1.0,
        sources_per_s=17.5,
        parts_written=parts_written,
        parts_kept=0,
        quarantined=1,
    )
    write_augment_record(config, record)


def write_check_findings(config: Config) -> None:
    """Write check.csv with one error, and one warning per image of `STORE_IMAGES`."""
    findings = [Finding("warning", "swap", image, "left is right", "exchange the sides") for image in STORE_IMAGES]
    findings.append(Finding("error", "truncated", "<b>x.jpg", "ends early", "copy it again"))
    write_findings(config.path("check.csv"), findings)


def write_training_logs(config: Config, members: tuple[str, ...] = ("a", "_b$")) -> None:
    """Write the metrics.json of each member: 5 losses, an evaluation after 100 iterations, and a truncated line."""
    for name in members:
        lines = [
            json.dumps({"iteration": i, "total_loss": 3 / (i + 1), "lr": 0.001, "time": 0.5}) for i in range(0, 100, 20)
        ]
        lines += [json.dumps({"iteration": 99, "val/rmse": 12.25}), '{"iteration": 1']
        folder = Path(config.member_dir(name))
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text("\n".join(lines))


def write_search(config: Config) -> None:
    """Write the files of a finished search with a finished, a failed and two stopped trials, and two plots."""
    write_trial(config, "trial-000", 1, {8: 12.5}, end={})
    write_trial(config, "trial-001", 2, {}, end={"reason": "diverged"})
    write_trial(config, "trial-002", 3, {4: 9.5}, end={})
    write_trial(config, "trial-003", 4, {4: 10.5}, end={})
    write_tables(config, read_trials(config))
    for name in ("learning_rate", "curves"):
        path = Path(config.path("tune", f"{name}.svg"))
        path.write_bytes(plot_scatter([1e-4, 1e-3], [9, 12], "lr", "rmse", name))
    Path(config.path("tune", "best.yaml")).write_text("train:\n  base_lr: 0.002\n")
    write_result(config, SearchResult("trial-000", "rmse", 8, 12.5, 13.25, {"base_lr": 0.002}))


def write_run_predictions(config: Config) -> None:
    """Write predictions.parquet of the members a and b.

    Their points differ by 1 px in x and y, except in the fifth image, where they differ by SPREAD_PX. Member b finds
    nobody in the sixth image.
    """
    images = [*STORE_IMAGES, OUTSIDE_NAME]
    keypoints = np.full((2, len(images), len(DACON24), 3), 0.5)
    for number in range(len(images)):
        keypoints[:, number, :, :2] = make_points(50 + number)
        keypoints[1, number, :, :2] += SPREAD_PX if number == 4 else 1
    keypoints[1, 5] = np.nan
    write_prediction_arrays(config.path("predictions.parquet"), ["a", "b"], images, keypoints, DACON24.names)


def write_prediction_details(config: Config, filled: tuple[FilledImage, ...] = ()) -> None:
    """Write a predict.json: 7 images were predicted in 2 s."""
    details = PredictionDetails(
        images=7,
        members=("a",),
        by_member={},
        people=PersonChoices("score", several=0, other_than_best_score=0),
        weights=WeightsSource(chosen="equal"),
        fallbacks={},
        filled=filled,
        unusable=(),
        took=PredictionCost(predicted=7, seconds=2.0, start_up_s=1.0),
    )
    write_details(config.path("predict.json"), details)


def make_evaluation(**changes: object) -> FusionEvaluation:
    """Make the evaluation of one member, with `changes` in place of its default values."""
    values = {
        "num_images": 6,
        "num_missing": 1,
        "rmse": 7.5,
        "rmse_interval": (6.125, 9.5),
        "median_px": 4.0,
        "p95_px": 20.0,
        "pck": {"0.02": 0.6, "0.05": 0.9, "0.1": 0.95},
        "ap": None,
        "ap50": None,
        "ap75": None,
        "by_keypoint": {
            name: KeypointMetrics(
                rmse=None if name == "nose" else 5.0, rmse_interval=None, median_px=4.0, **{"pck_0.05": 0.9}
            )
            for name in DACON24.names
        },
        "by_camera": {
            "A": CameraMetrics(num_images=6, rmse=7.5, rmse_interval=(6.0, 9.0)),
            HOSTILE_NAME: CameraMetrics(num_images=0, rmse=None, rmse_interval=None),
        },
        "worst": (ImageRmse(image=STORE_IMAGES[0], rmse=31.25), ImageRmse(image=HOSTILE_NAME, rmse=3.0)),
        "filled": (
            FilledImage(image=STORE_IMAGES[1], how="frame 12"),
            FilledImage(image=OUTSIDE_NAME, how="mean pose"),
        ),
    }
    return FusionEvaluation(**{**values, **changes})


def write_run_evaluation(config: Config) -> None:
    """Write evaluation.json of the ensemble and the members a and b."""
    members = {
        "a": make_evaluation(rmse=7.25, num_missing=3),
        "b": make_evaluation(rmse=9.0, num_missing=2, pck=dict.fromkeys(("0.02", "0.05", "0.1")), rmse_interval=None),
    }
    write_evaluation(config.path("evaluation.json"), RunEvaluation(**dict(make_evaluation()), members=members))


def write_run_folder(folder: Path) -> Config:
    """Fill the run folder `folder/run` with the files of every stage, and return its config."""
    config = make_config(folder, data={"test_images": str(folder / "test"), "truth": str(folder / "truth.csv")})
    write_test_images(folder / "test")
    write_labels(folder / "truth.csv", 0)
    write_labels(Path(config.path("submission.csv")), 50)
    write_check_findings(config)
    write_store_and_record(config)
    write_search(config)
    write_training_logs(config)
    write_run_predictions(config)
    write_prediction_details(config)
    write_run_evaluation(config)
    Path(config.path("config.yaml")).write_text(config.to_yaml() + "# s3://KEY:SECRET@bucket/x\n")
    return config
