"""The evaluation that training workers share."""

import numpy as np
import pytest

from kp_ray.ensemble.temporal import fill_missing
from kp_ray.keypoints import DACON24
from kp_ray.metrics import evaluate_keypoints
from kp_ray.models.decoding import detect_people
from kp_ray.models.weights import load_member
from kp_ray.store.read import iter_rows
from tests.helpers.training import TrainedMember


def test_two_workers_evaluate_the_saved_model_on_all_validation_rows(trained: TrainedMember) -> None:
    config, metrics = trained.config, trained.result.metrics
    model, cfg = load_member(config.member_dir("a"), "cpu")
    rows = list(iter_rows(config.path("store"), split="val"))
    assert metrics["num_images"] == len(rows) > 2
    detections = [detect_people(model, cfg, DACON24, [row])[0] for row in rows]
    nobody = np.full((len(DACON24), 3), np.nan)
    filled, _ = fill_missing(
        np.stack([found[0].keypoints if found else nobody for found in detections]),
        np.array([bool(found) for found in detections]),
        [row["scene"] for row in rows],
        [row["camera"] for row in rows],
        [row["frame"] for row in rows],
        mean_pose=np.zeros((len(DACON24), 2)),
    )
    truth = np.stack([np.array(row["keypoints"], dtype=float).reshape(-1, 3) for row in rows])
    expected = evaluate_keypoints(filled, truth, DACON24)
    assert metrics["rmse"] == pytest.approx(expected.rmse, rel=1e-4)
    assert metrics["median_px"] == pytest.approx(expected.median_px, rel=1e-4)
    assert metrics["p95_px"] == pytest.approx(expected.p95_px, rel=1e-4)
