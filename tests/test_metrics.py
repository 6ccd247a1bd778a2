"""Test the metrics against hand-made cases, plain formulas and pycocotools."""

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kp_ray.errors import DataError
from kp_ray.keypoints import DACON24, Skeleton
from kp_ray.metrics import (
    Evaluation,
    average_precision,
    evaluate_keypoints,
    oks,
    pck,
    point_errors,
    rmse,
    rmse_interval,
)

K = len(DACON24)
"""Number of keypoints."""


def make_case(seed: int, num_images: int = 60) -> dict[str, Any]:
    """Make random keyword arguments of `evaluate_keypoints`.

    The errors' standard deviation is 0 to 100 px. Some persons are not found, some scores are equal, and some points
    and some persons are unlabelled.
    """
    rng = np.random.default_rng(seed)
    truth = np.full((num_images, K, 3), 2.0)
    truth[..., :2] = rng.uniform([400, 100], [1500, 1000], (num_images, 1, 2)) + rng.normal(0, 120, (num_images, K, 2))
    truth[rng.random((num_images, K)) < 0.2] = np.nan
    truth[rng.random(num_images) < 0.05] = np.nan
    has_one_point = rng.random(num_images) < 0.05
    truth[has_one_point, 1:] = np.nan
    predictions = np.ones((num_images, K, 3))
    spread = rng.choice([0.0, 3.0, 10.0, 30.0, 100.0], (num_images, 1, 1))
    predictions[..., :2] = np.nan_to_num(truth[..., :2], nan=500.0) + spread * rng.normal(size=(num_images, K, 2))
    return {
        "predictions": predictions,
        "truth": truth,
        "found": rng.random(num_images) < rng.choice([0.6, 0.95]),
        "scores": rng.integers(0, 8, num_images) / 8,
        "cameras": [str(camera) for camera in rng.choice(list("ABC"), num_images)],
    }


def coco_precisions(case: dict[str, Any], skeleton: Skeleton) -> np.ndarray:
    """Compute the average precisions (10,) of a case with pycocotools."""
    coco_module = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    num_images = len(case["truth"])
    annotations, results = [], []
    for i in range(num_images):
        xyv = case["truth"][i].copy()
        labelled = np.isfinite(xyv[:, :2]).all(axis=1)
        xyv[~labelled] = 0
        points = xyv[labelled, :2] if labelled.any() else np.zeros((1, 2))
        low, high = points.min(axis=0), points.max(axis=0)
        # COCO ignores detections inside the box of a person without a labelled point: this box contains them all.
        bbox = [*low, *(high - low)] if labelled.any() else [-1e5, -1e5, 2e5, 2e5]
        annotations.append(
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 1,
                "iscrowd": 0,
                "area": float(np.prod(high - low)),
                "bbox": bbox,
                "keypoints": xyv.ravel().tolist(),
                "num_keypoints": int(labelled.sum()),
            }
        )
        if case["found"][i]:
            keypoints = case["predictions"][i].ravel().tolist()
            results.append({"image_id": i, "category_id": 1, "keypoints": keypoints, "score": float(case["scores"][i])})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_module.COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(num_images)],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person"}],
        }
        truth.createIndex()
        evaluation = cocoeval.COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(skeleton.sigmas)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, 0].mean(axis=1)


@pytest.mark.parametrize("seed", range(25))
def test_ap_equals_pycocotools(seed: int) -> None:
    case = make_case(seed)
    expected = coco_precisions(case, DACON24)
    metrics = evaluate_keypoints(skeleton=DACON24, **case)
    assert metrics.ap == pytest.approx(expected.mean(), abs=1e-6)
    assert metrics.ap50 == pytest.approx(expected[0], abs=1e-6)
    assert metrics.ap75 == pytest.approx(expected[5], abs=1e-6)
    assert 0.01 < expected.mean() < 0.99, "the case is too easy or too hard to detect a wrong AP"


def test_rmse_is_computed_over_all_48_numbers_as_in_the_competition() -> None:
    case = make_case(1)
    truth = np.nan_to_num(case["truth"], nan=300.0)
    difference = (case["predictions"] - truth)[..., :2].reshape(len(truth), 48)
    metrics = evaluate_keypoints(case["predictions"], truth, DACON24)
    assert metrics.rmse == pytest.approx(np.sqrt((difference**2).mean()))


def test_unlabelled_points_change_no_metric() -> None:
    case = make_case(2)
    changed = case["predictions"].copy()
    changed[..., :2][np.isnan(case["truth"][..., :2])] = 1e6
    case["cameras"] = ["A"] * len(changed)
    expected = evaluate_keypoints(skeleton=DACON24, **case)
    assert evaluate_keypoints(skeleton=DACON24, **{**case, "predictions": changed}) == expected


def test_perfect_predictions_score_perfectly() -> None:
    truth = np.nan_to_num(make_case(3)["truth"], nan=100.0)
    metrics = evaluate_keypoints(truth, truth, DACON24)
    assert metrics.rmse == metrics.median_px == metrics.p95_px == 0
    assert metrics.pck == {"0.02": 1, "0.05": 1, "0.1": 1}
    assert [metrics.ap, metrics.ap50, metrics.ap75] == pytest.approx([1, 1, 1])


def test_a_missing_person_counts_in_rmse_and_lowers_ap() -> None:
    truth = np.nan_to_num(make_case(4, num_images=10)["truth"], nan=100.0)
    found = np.arange(10) > 0
    predictions = truth.copy()
    predictions[0, :, :2] += 100
    metrics = evaluate_keypoints(predictions, truth, DACON24, found=found)
    assert metrics.num_missing == 1
    assert metrics.rmse == pytest.approx(np.sqrt(100**2 / 10))
    assert metrics.ap == pytest.approx(91 / 101), "precision is 1 up to recall 0.9, at 91 of the 101 recalls"


def test_pck_measures_against_the_longer_side_of_the_box() -> None:
    truth = np.full((1, K, 3), 2.0)
    truth[0, :, :2] = np.linspace([100, 200], [200, 600], K)  # a box of 100 x 400
    predictions = truth.copy()
    predictions[0, :6, 0] += 19.9  # 0.05 of 400 is 20
    predictions[0, 6:12, 0] += 20.1
    predictions[0, 12:, 0] += 41
    metrics = evaluate_keypoints(predictions, truth, DACON24)
    assert metrics.pck == {"0.02": 0, "0.05": 0.25, "0.1": 0.5}
    assert metrics.by_keypoint["nose"].pck_005 == 1
    instep = metrics.by_keypoint["right_instep"]
    assert instep.rmse == pytest.approx(41 / np.sqrt(2))
    assert (instep.rmse_interval, instep.median_px, instep.pck_005) == (None, 41, 0)


def test_an_error_lowers_oks_less_if_the_keypoints_sigma_is_large() -> None:
    truth = np.full((1, 2, 3), 2.0)
    truth[0, :, :2] = [[0, 0], [100, 100]]
    predictions = truth.copy()
    predictions[0, 0, 0] += 10
    skeleton = Skeleton(names=("a", "b"), flip_pairs=(), sigmas=(0.05, 1.0))
    expected = (np.exp(-(10**2) / (2 * 10000 * (2 * 0.05) ** 2)) + 1) / 2
    assert oks(predictions, truth, skeleton, np.array([10000.0])) == pytest.approx([expected])


def test_the_metrics_of_a_camera_are_those_of_its_images() -> None:
    case = make_case(5)
    scenes = [str(row % 12) for row in range(60)]
    rows = np.flatnonzero(np.array(case["cameras"]) == "B")
    metrics = evaluate_keypoints(skeleton=DACON24, scenes=scenes, **case)
    scenes_of_b = [scenes[row] for row in rows]
    expected = evaluate_keypoints(case["predictions"][rows], case["truth"][rows], DACON24, scenes=scenes_of_b)
    camera = metrics.by_camera["B"]
    assert (camera.num_images, camera.rmse) == (expected.num_images, expected.rmse)
    assert camera.rmse_interval == expected.rmse_interval
    assert camera.rmse_interval[0] < camera.rmse < camera.rmse_interval[1]
    assert sum(camera.num_images for camera in metrics.by_camera.values()) == 60


def test_the_interval_is_deterministic_and_resamples_whole_scenes() -> None:
    rng = np.random.default_rng(0)
    scene_scales = rng.uniform(2, 20, 10)
    errors = np.abs(rng.normal(size=(200, K))) * np.repeat(scene_scales, 20)[:, None]
    scenes = [f"s{i // 20}" for i in range(200)]
    low, high = rmse_interval(errors, scenes) or (0, 0)
    assert low < (rmse(errors) or 0) < high
    assert rmse_interval(errors, scenes) == (low, high)
    frames_low, frames_high = rmse_interval(errors, [str(i) for i in range(200)]) or (0, 0)
    assert high - low > 2 * (frames_high - frames_low), "frames of one scene are not independent samples"
    order = rng.permutation(200)
    assert rmse_interval(errors[order], [scenes[i] for i in order]) == pytest.approx((low, high))


def test_the_95_percent_interval_contains_the_true_error_in_85_to_99_of_100_samples() -> None:
    num_covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scales = rng.uniform(1, 3, 30).repeat(4)[:, None]
        # A point error of sqrt(2) * scale is an error of `scale` in x and in y.
        low, high = rmse_interval(np.sqrt(2) * scales * np.ones((120, 3)), [f"{i // 4}" for i in range(120)]) or (0, 0)
        num_covered += low <= np.sqrt(13 / 3) <= high  # the root of E[scale^2] for scales uniform in [1, 3]
    assert 85 <= num_covered <= 99


def test_one_scene_has_no_interval() -> None:
    case = make_case(9)
    del case["cameras"]
    metrics = evaluate_keypoints(skeleton=DACON24, **case, scenes=["s"] * 60)
    assert metrics.rmse_interval is None
    two_scenes = evaluate_keypoints(skeleton=DACON24, **case, scenes=["s", "t"] * 30)
    assert two_scenes.rmse_interval[0] <= two_scenes.rmse <= two_scenes.rmse_interval[1]
    assert evaluate_keypoints(skeleton=DACON24, **case).rmse_interval is None


def test_metrics_without_a_labelled_point_are_none() -> None:
    truth = np.full((3, K, 3), np.nan)
    for num_images in (0, 3):
        predictions = np.ones((num_images, K, 3))
        metrics = evaluate_keypoints(predictions, truth[:num_images], DACON24, cameras=["A"] * num_images)
        assert metrics.rmse is metrics.ap is metrics.median_px is metrics.pck["0.1"] is None


@pytest.mark.parametrize("num_images", [0, 60])
def test_an_evaluation_is_equal_after_a_round_trip_through_json(num_images: int) -> None:
    case = {name: values[:num_images] for name, values in make_case(10).items()}
    metrics = evaluate_keypoints(skeleton=DACON24, scenes=[str(row % 12) for row in range(num_images)], **case)
    text = json.dumps(metrics.to_json(), allow_nan=False)
    assert Evaluation.model_validate(json.loads(text)) == metrics


def test_the_json_of_an_evaluation_has_its_documented_keys() -> None:
    metrics = evaluate_keypoints(skeleton=DACON24, scenes=["s", "t"] * 30, **make_case(11)).to_json()
    assert list(metrics) == [
        "num_images",
        "num_missing",
        "rmse",
        "rmse_interval",
        "median_px",
        "p95_px",
        "pck",
        "ap",
        "ap50",
        "ap75",
        "by_keypoint",
        "by_camera",
    ]
    assert list(metrics["pck"]) == ["0.02", "0.05", "0.1"]
    assert list(metrics["by_keypoint"]) == list(DACON24.names)
    assert list(metrics["by_keypoint"]["nose"]) == ["rmse", "rmse_interval", "median_px", "pck_0.05"]
    assert list(metrics["by_camera"]["A"]) == ["num_images", "rmse", "rmse_interval"]
    assert isinstance(metrics["rmse_interval"], list)


@pytest.mark.parametrize("changes", [{"rmse": "large"}, {"pck": None}])
def test_values_of_another_type_are_refused(changes: dict[str, Any]) -> None:
    values = evaluate_keypoints(skeleton=DACON24, **make_case(12)).to_json()
    with pytest.raises(ValueError, match=next(iter(changes))):
        Evaluation.model_validate(values | changes)


def test_ap_is_zero_if_nobody_is_found() -> None:
    case = make_case(6)
    metrics = evaluate_keypoints(skeleton=DACON24, **{**case, "found": np.zeros(60, dtype=bool)})
    assert (metrics.ap, metrics.num_missing) == (0, 60)


@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_prediction_that_is_not_finite_is_refused(column: int, value: float) -> None:
    case = make_case(7)
    case["predictions"][4, 2, column] = value
    with pytest.raises(DataError, match=r"row 4: .* right_eye"):
        evaluate_keypoints(skeleton=DACON24, **case)


@pytest.mark.parametrize("name", ["found", "scores", "cameras", "scenes"])
def test_arrays_of_another_length_are_refused(name: str) -> None:
    case = make_case(8)
    with pytest.raises(ValueError, match=name):
        evaluate_keypoints(skeleton=DACON24, **{**case, name: case.get(name, ["s"] * 60)[:-1]})


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.tuples(st.floats(-500, 500), st.floats(-500, 500)))
def test_shifting_predictions_and_truth_together_changes_no_error(seed: int, shift: tuple[float, float]) -> None:
    case = make_case(seed, num_images=8)
    shifted = {name: case[name] + np.array([*shift, 0]) for name in ("predictions", "truth")}
    before = point_errors(case["predictions"], case["truth"])
    after = point_errors(shifted["predictions"], shifted["truth"])
    np.testing.assert_allclose(after, before, atol=1e-9)
    assert rmse(after) == pytest.approx(rmse(before))
    longer_sides = np.full(8, 123.4)
    assert 0 <= (pck(before, longer_sides, 0.05) or 0) <= (pck(before, longer_sides, 0.1) or 0) <= 1


@settings(max_examples=50)
@given(st.integers(0, 10_000))
def test_no_ranking_has_a_higher_ap_than_the_ranking_by_similarity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarities, scores, found = rng.random(20), rng.random(20), rng.random(20) < 0.8
    highest = average_precision(similarities, similarities, found)
    assert (average_precision(similarities, scores, found) <= highest + 1e-12).all()
