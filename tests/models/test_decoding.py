"""Detections: their order and coordinates, mirroring, and merging over the views of an image."""

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from kp_ray.keypoints import DACON24
from kp_ray.models.decoding import (
    EXPECTATION_RADIUS,
    Detection,
    expected_points,
    merge_views,
    mirror_detection,
    read_instances,
)
from kp_ray.models.presets import build_model
from tests.helpers.detections import detect_people
from tests.helpers.rows import random_row

K = len(DACON24)
"""Number of keypoints."""


def make_detection(x: float, score: float, side: float = 50) -> Detection:
    """Make a detection whose box is `side` pixels wide from `x` on."""
    keypoints = np.column_stack([np.linspace(x, x + side, K), np.linspace(10, 90, K), np.full(K, score)])
    return Detection(score, np.array([x, 10, x + side, 90.0]), keypoints)


def test_detections_come_best_first_in_pixels_of_the_stored_image(cfg: Any) -> None:
    torch.manual_seed(0)
    cfg = cfg.clone()
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    sizes = [(320, 180), (200, 300)]
    rows = [random_row(*size, seed) for seed, size in enumerate(sizes)]
    detections_by_row = detect_people(build_model(cfg).eval(), cfg, DACON24, rows)
    assert len(detections_by_row) == 2
    for detections, size in zip(detections_by_row, sizes, strict=True):
        scores = [detection.score for detection in detections]
        assert scores
        assert scores == sorted(scores, reverse=True)
        for detection in detections:
            assert (detection.bbox_xyxy >= -0.5).all()
            assert (detection.bbox_xyxy[2:] <= size).all()
            assert detection.keypoints.shape == (24, 3)


def test_detections_are_half_a_pixel_below_detectron2s_continuous_coordinates() -> None:
    """The centre of the top-left pixel is (0.5, 0.5) for Detectron2, and (0, 0) as an index."""
    points = torch.tensor([[[0.5, 0.5, 0.9], [10.5, 20.5, 0.8]], [[1.5, 2.5, 0.7], [3.0, 4.0, 0.6]]])
    boxes = Boxes(torch.tensor([[0.5, 0.5, 10.5, 20.5], [1.0, 2.0, 3.0, 4.0]]))
    instances = Instances((30, 40), pred_boxes=boxes, pred_keypoints=points, scores=torch.tensor([0.3, 0.6]))
    best, second = read_instances(instances)
    assert (best.score, second.score) == pytest.approx((0.6, 0.3))
    np.testing.assert_allclose(best.keypoints, [[1, 2, 0.7], [2.5, 3.5, 0.6]])
    np.testing.assert_allclose(second.keypoints, [[0, 0, 0.9], [10, 20, 0.8]])
    assert (best.bbox_xyxy.tolist(), second.bbox_xyxy.tolist()) == ([0.5, 1.5, 2.5, 3.5], [0, 0, 10, 20])


def test_mirroring_twice_changes_nothing() -> None:
    original = make_detection(100, 0.9)
    mirrored = mirror_detection(original, 320, DACON24)
    assert mirrored.bbox_xyxy.tolist() == [169, 10, 219, 90]
    assert mirrored.keypoints[1, 0] == 319 - original.keypoints[2, 0], "the left eye is where the right one was"
    restored = mirror_detection(mirrored, 320, DACON24)
    assert restored.score == original.score
    np.testing.assert_allclose(restored.bbox_xyxy, original.bbox_xyxy)
    np.testing.assert_allclose(restored.keypoints, original.keypoints)


def test_views_merge_the_same_person_and_keep_other_people_apart() -> None:
    first_view = [make_detection(100, 0.9), make_detection(300, 0.5)]
    second_view = [make_detection(304, 0.7), make_detection(102, 0.7)]
    merged = merge_views([first_view, second_view, []])
    assert [round(detection.score, 6) for detection in merged] == [0.8, 0.6]
    assert [detection.bbox_xyxy[0] for detection in merged] == [101, 302]
    people = merge_views([[make_detection(100, 0.9)], [make_detection(300, 0.8)]])
    assert [(detection.score, detection.bbox_xyxy[0]) for detection in people] == [(0.9, 100), (0.8, 300)]


def test_a_keypoint_is_weighted_by_its_score_in_each_view() -> None:
    first, second = make_detection(100, 0.9), make_detection(104, 0.7)
    first.keypoints[:, 2], second.keypoints[:, 2] = 0.9, 0.3
    first.keypoints[5, 2] = second.keypoints[5, 2] = 0
    [merged] = merge_views([[first], [second]])
    is_weighted = np.arange(len(merged.keypoints)) != 5
    offsets = merged.keypoints - first.keypoints
    np.testing.assert_allclose(offsets[is_weighted, 0], 1)
    assert offsets[5].tolist() == [2, 0, 0], "without scores the views have equal weights"
    assert merged.bbox_xyxy[0] == 102


@pytest.mark.parametrize("score", [0.1, 0.7, 1e-300])
def test_equal_views_stay_as_they_are(score: float) -> None:
    detection = make_detection(100 / 3, 0.9)
    detection.keypoints[:, 2] = score
    [merged] = merge_views([[detection]] * 3)
    assert merged.keypoints.tolist() == detection.keypoints.tolist()


def test_a_box_without_an_area_is_merged_only_with_an_equal_box() -> None:
    flat = make_detection(100, 0.9, side=0)
    merged = merge_views([[flat], [flat, make_detection(100, 0.5)]])
    assert [detection.score for detection in merged] == [0.9, 0.5]


def test_the_expectation_equals_that_of_a_loop_over_the_bins_near_the_peak() -> None:
    num_people, num_keypoints, side = 3, 5, 12
    rng = np.random.default_rng(0)
    heatmaps = rng.normal(0, 3, (num_people, num_keypoints, side, side))
    heatmaps[0, 0, 0, 0] = heatmaps[1, 1, side - 1, 4] = 20  # peaks at the edge: there is no bin beyond it
    boxes = np.array([[10, 20, 110, 320], [0, 0, 7.5, 3.25], [5, 5, 6, 6]])
    points = expected_points(torch.tensor(heatmaps), torch.tensor(boxes)).numpy()
    for person, keypoint in np.ndindex(num_people, num_keypoints):
        logits = heatmaps[person, keypoint]
        peak_y, peak_x = np.unravel_index(logits.argmax(), logits.shape)
        total, mean = 0.0, np.zeros(2)
        for y, x in np.ndindex(side, side):
            if max(abs(x - peak_x), abs(y - peak_y)) <= EXPECTATION_RADIUS:
                weight = np.exp(logits[y, x])
                total, mean = total + weight, mean + weight * np.array([x + 0.5, y + 0.5])
        low, high = boxes[person, :2], boxes[person, 2:]
        np.testing.assert_allclose(points[person, keypoint], low + mean / total / side * (high - low), rtol=1e-9)


def test_the_expectation_finds_a_peak_between_bins_and_ignores_another_person() -> None:
    side, x, y = 56, 20.3, 31.85  # in bins
    rows, columns = np.mgrid[:side, :side] + 0.5
    logits = -((columns - x) ** 2 + (rows - y) ** 2) / 2
    other_person = 9 - ((columns - 50) ** 2 + (rows - 10) ** 2) / 2
    heatmaps = torch.tensor(np.maximum(logits + 10, other_person))[None, None]
    points = expected_points(heatmaps, torch.tensor([[0.0, 0.0, side, side]], dtype=torch.float64))
    np.testing.assert_allclose(points[0, 0], [x, y], atol=0.02)


def test_the_two_decodings_differ_only_in_the_points(cfg: Any) -> None:
    torch.manual_seed(0)
    cfg = cfg.clone()
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model, row = build_model(cfg).eval(), random_row(320, 180, 0)
    (peaks,) = detect_people(model, cfg, DACON24, [row])
    (means,) = detect_people(model, cfg, DACON24, [row], "expectation")
    assert len(peaks) == len(means) > 0
    for peak, mean in zip(peaks, means, strict=True):
        assert (peak.score, peak.bbox_xyxy.tolist()) == (mean.score, mean.bbox_xyxy.tolist())
        assert peak.keypoints[:, 2].tolist() == mean.keypoints[:, 2].tolist()
        assert (peak.keypoints[:, :2] != mean.keypoints[:, :2]).any()
