"""Test fusion: members that found nobody, outliers, weights and fallbacks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kp_ray.ensemble.fusion import MIN_SIGMA_PX, fuse, fuse_clips, inliers
from kp_ray.errors import DataError

METHODS = ["mean", "median", "score"]
K = 5
CLIP = ["s"] * 4, ["A"] * 4, [1, 2, 3, 4]
"""Scenes, cameras and frame numbers of four frames."""


def make_members(seed: int, num_members: int = 4, num_images: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Make keypoints and `found` of members that agree within pixels; some points are outliers, some people missing."""
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform(100, 900, (1, num_images, K, 3)) + rng.normal(0, 3, (num_members, num_images, K, 3))
    keypoints[rng.random((num_members, num_images, K)) < 0.1, :2] += 400
    keypoints[..., 2] = rng.uniform(0, 1, keypoints.shape[:3])
    found = rng.random((num_members, num_images)) < 0.7
    keypoints[~found] = np.nan
    return keypoints, found


def make_points(*xs: float) -> tuple[np.ndarray, np.ndarray]:
    """Make keypoints and `found` of one image with one keypoint; one member per x finds the keypoint at (x, 50)."""
    return np.array([[[[x, 50.0, 1.0]]] for x in xs]), np.ones((len(xs), 1), dtype=bool)


@pytest.mark.parametrize("method", METHODS)
def test_a_member_that_found_nobody_is_not_averaged_as_zeros(method: str) -> None:
    keypoints, found = make_points(100.0, 0.0, 104.0)
    keypoints[1], found[1] = 0, False
    fused, found_by_any = fuse(keypoints, found, method=method, reject_sigmas=3.0)
    assert found_by_any.tolist() == [True]
    np.testing.assert_allclose(fused[0, 0], [102, 50, 1])


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000), method=st.sampled_from(METHODS), order=st.permutations(range(4)))
def test_the_result_is_bit_identical_for_any_order_of_the_members(seed: int, method: str, order: list[int]) -> None:
    keypoints, found = make_members(seed)
    keypoints[..., :2] = (keypoints[..., :2] / 5).round() * 5 / 3  # many ties
    rng = np.random.default_rng(seed)
    weights, scores = rng.choice([0.0, 0.1, 0.3, 0.7], 4), rng.random((4, 6))
    fused = fuse(keypoints, found, method=method, detection_scores=scores, weights=weights, reject_sigmas=3.0)
    reordered = fuse(
        keypoints[order],
        found[order],
        method=method,
        detection_scores=scores[order],
        weights=weights[order],
        reject_sigmas=3.0,
    )
    np.testing.assert_array_equal(fused[0], reordered[0])
    np.testing.assert_array_equal(fused[1], reordered[1])


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000), method=st.sampled_from(METHODS), shift=st.tuples(*[st.integers(-2000, 2000)] * 2))
def test_shifting_every_member_shifts_the_result(seed: int, method: str, shift: tuple[int, int]) -> None:
    keypoints, found = make_members(seed)
    offset = np.array([*shift, 0.0])
    before, _ = fuse(keypoints, found, method=method, reject_sigmas=3.0)
    after, _ = fuse(keypoints + offset, found, method=method, reject_sigmas=3.0)
    np.testing.assert_allclose(after, before + offset, atol=1e-6)


@settings(max_examples=100)
@given(seed=st.integers(0, 10_000), method=st.sampled_from(METHODS))
def test_the_result_lies_between_the_members(seed: int, method: str) -> None:
    keypoints, found = make_members(seed)
    fused, found_by_any = fuse(keypoints, found, method=method, reject_sigmas=2.0)
    masked = np.where(found[..., None, None], keypoints, np.nan)[:, found_by_any]
    assert (fused[found_by_any] >= np.nanmin(masked, axis=0) - 1e-9).all()
    assert (fused[found_by_any] <= np.nanmax(masked, axis=0) + 1e-9).all()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000), method=st.sampled_from(METHODS), weight=st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 7.0])
)
def test_where_one_member_found_someone_its_keypoints_are_unchanged(seed: int, method: str, weight: float) -> None:
    keypoints, found = make_members(seed, num_members=3)
    found[:], keypoints[[0, 2]] = False, np.nan
    found[1], keypoints[1] = True, np.random.default_rng(seed).uniform(0, 2000, keypoints[1].shape)
    fused, _ = fuse(keypoints, found, method=method, weights=np.array([1.0, weight, 1.0]), reject_sigmas=3.0)
    np.testing.assert_array_equal(fused, keypoints[1])


def test_an_image_without_a_person_is_nan_and_reported_as_not_found() -> None:
    keypoints, found = make_members(3)
    found[:, 2] = False
    fused, found_by_any = fuse(keypoints, found, method="mean", reject_sigmas=3.0)
    assert not found_by_any[2]
    assert np.isnan(fused[2]).all()
    assert np.isfinite(fused[found_by_any]).all()


def test_without_any_person_every_image_is_nan() -> None:
    keypoints, found = make_members(4)
    fused, found_by_any = fuse(keypoints, np.zeros_like(found), method="median", reject_sigmas=3.0)
    assert not found_by_any.any()
    assert np.isnan(fused).all()


def test_without_rejection_the_mean_equals_that_of_numpy() -> None:
    keypoints, found = make_members(5)
    fused, found_by_any = fuse(keypoints, found, method="mean", reject_sigmas=None)
    np.testing.assert_allclose(fused[found_by_any], np.nanmean(keypoints[:, found_by_any], axis=0))


def test_with_equal_weights_the_median_equals_that_of_numpy() -> None:
    keypoints, found = make_members(6)
    fused, found_by_any = fuse(keypoints, found, method="median", weights=np.full(4, 0.1), reject_sigmas=None)
    np.testing.assert_allclose(fused[found_by_any], np.nanmedian(keypoints[:, found_by_any], axis=0))


@pytest.mark.parametrize("num_members", range(1, 25))
def test_rounding_does_not_change_the_median_of_equal_weights(num_members: int) -> None:
    xs = np.random.default_rng(num_members).permutation(num_members) * 100.0
    fused, _ = fuse(*make_points(*xs), method="median", weights=np.full(num_members, 0.1), reject_sigmas=None)
    assert fused[0, 0, 0] == np.median(xs)


def test_an_outlier_among_three_points_is_rejected() -> None:
    fused, _ = fuse(*make_points(100.0, 101.0, 400.0), method="mean", reject_sigmas=3.0)
    assert fused[0, 0, 0] == pytest.approx(100.5)


def test_rejecting_an_outlier_removes_one_point_and_not_the_whole_member() -> None:
    keypoints = np.ones((3, 1, 2, 3)) * np.array([100.0, 103.0, 106.0])[:, None, None, None]
    keypoints[2, 0, 0, :2] = 800
    fused, _ = fuse(keypoints, np.ones((3, 1), dtype=bool), method="mean", reject_sigmas=3.0)
    np.testing.assert_allclose(fused[0, :, 0], [101.5, 103])


def test_close_agreement_of_some_members_does_not_reject_the_other_members() -> None:
    limit = 3 * MIN_SIGMA_PX
    fused, _ = fuse(*make_points(100.0, 100.0, 100.0, 100.0 + limit - 0.1), method="mean", reject_sigmas=3.0)
    assert fused[0, 0, 0] == pytest.approx(100 + (limit - 0.1) / 4)
    fused, _ = fuse(*make_points(100.0, 100.0, 100.0, 100.0 + limit + 0.1), method="mean", reject_sigmas=3.0)
    assert fused[0, 0, 0] == 100


@pytest.mark.parametrize("reject_sigmas", [1e-6, 0.5, 3.0])
def test_two_members_have_no_majority_so_neither_is_rejected(reject_sigmas: float) -> None:
    fused, _ = fuse(*make_points(100.0, 900.0), method="mean", reject_sigmas=reject_sigmas)
    assert fused[0, 0, 0] == 500


def test_rounding_does_not_reject_one_of_two_members() -> None:
    points = np.random.default_rng(0).uniform(0, 2000, (2, 1000, K, 3))
    assert inliers(points, 1e-6).all()


def test_a_point_is_an_outlier_beyond_the_given_number_of_robust_sigmas() -> None:
    # The first four points are 20, 10, 0 and 10 px from the median: three robust sigmas are 3 * 1.4826 * 10 = 44.5 px.
    for fifth_x, is_inlier in ((144.0, True), (145.0, False)):
        keypoints, _ = make_points(80.0, 90.0, 100.0, 110.0, fifth_x)
        assert inliers(keypoints, 3.0)[:, 0, 0].tolist() == [True] * 4 + [is_inlier]


def test_members_with_weight_zero_do_not_count_in_the_majority() -> None:
    keypoints, found = make_points(100.0, 101.0, 500.0, 500.0, 500.0)
    weights = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    fused, _ = fuse(keypoints, found, method="mean", weights=weights, reject_sigmas=3.0)
    assert fused[0, 0, 0] == pytest.approx(100.5)


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), reject_sigmas=st.floats(1e-3, 5))
def test_at_least_half_of_the_points_are_kept(seed: int, reject_sigmas: float) -> None:
    keypoints, _ = make_members(seed, num_members=5)
    num_kept = inliers(keypoints, reject_sigmas).sum(axis=0)
    assert (2 * num_kept >= np.isfinite(keypoints[..., 0]).sum(axis=0)).all()


def test_weights_can_be_per_member_or_per_keypoint() -> None:
    keypoints = np.ones((2, 1, 2, 3)) * np.array([100.0, 200.0])[:, None, None, None]
    found = np.ones((2, 1), dtype=bool)
    by_member, _ = fuse(keypoints, found, method="mean", weights=np.array([3.0, 1.0]), reject_sigmas=None)
    np.testing.assert_allclose(by_member[0, :, 0], [125, 125])
    weights = np.array([[1.0, 0.0], [1.0, 5.0]])
    by_keypoint, _ = fuse(keypoints, found, method="mean", weights=weights, reject_sigmas=None)
    np.testing.assert_allclose(by_keypoint[0, :, 0], [150, 200])


def test_the_weighted_median_follows_the_weight() -> None:
    keypoints, found = make_points(100.0, 200.0, 300.0)
    fused, _ = fuse(keypoints, found, method="median", weights=np.array([1.0, 1.0, 5.0]), reject_sigmas=None)
    assert fused[0, 0, 0] == 300


def test_method_score_weights_by_keypoint_and_detection_scores() -> None:
    keypoints, found = make_points(100.0, 200.0)
    keypoints[:, 0, 0, 2] = [0.6, 0.2]
    fused, _ = fuse(keypoints, found, method="score", reject_sigmas=None)
    assert fused[0, 0, 0] == pytest.approx(125)
    detection_scores = np.array([[0.5], [4.5]])
    fused, _ = fuse(keypoints, found, method="score", detection_scores=detection_scores, reject_sigmas=None)
    assert fused[0, 0, 0] == pytest.approx(175)
    keypoints[..., 2] = 0
    fused, _ = fuse(keypoints, found, method="score", reject_sigmas=None)
    assert fused[0, 0, 0] == pytest.approx(150), "if all scores are 0, the members have equal weights"


def test_invalid_input_is_refused() -> None:
    keypoints, found = make_points(1.0, 2.0)
    nan_keypoints = keypoints.copy()
    nan_keypoints[1, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="member 1: image 0"):
        fuse(nan_keypoints, found, method="mean", reject_sigmas=None)
    with pytest.raises(DataError, match="weights"):
        fuse(keypoints, found, method="mean", weights=np.array([1.0, -1.0]), reject_sigmas=None)
    with pytest.raises(DataError, match="scores"):
        fuse(-keypoints, found, method="score", reject_sigmas=None)
    with pytest.raises(ValueError, match="weights"):
        fuse(keypoints, found, method="mean", weights=np.ones(3), reject_sigmas=None)
    with pytest.raises(ValueError, match="vote"):
        fuse(keypoints, found, method="vote", reject_sigmas=None)
    with pytest.raises(ValueError, match="found"):
        fuse(keypoints, found[:1], method="mean", reject_sigmas=None)


def make_frames() -> tuple[np.ndarray, np.ndarray]:
    """Make keypoints and scores of three members in four frames.

    The scores are: in frame 1 three high, in frame 2 one high and one low, in frame 3 one low, and in frame 4 none.
    """
    keypoints = np.full((3, 4, K, 3), 0.5)
    keypoints[..., :2] = np.array([100.0, 101.0, 102.0])[:, None, None, None] + 10 * np.arange(4)[:, None, None]
    scores = np.array([[0.9, 0.9, 0.0, 0.0], [0.9, 0.1, 0.2, 0.0], [0.9, 0.0, 0.0, 0.0]])
    keypoints[scores == 0] = np.nan
    return keypoints, scores


def test_fallbacks_are_used_in_order_and_reported() -> None:
    keypoints, scores = make_frames()
    fusion = fuse_clips(keypoints, scores, *CLIP, thresholds=(0.5, 0.05))
    assert fusion.fallback_names == ["", "", "low score", "frame 3"]
    assert fusion.has_high_score.tolist() == [True, True, False, False]
    assert fusion.keypoints[:, 0, 0].tolist() == [101, 110, 121, 121]
    fusion = fuse_clips(keypoints, scores, *CLIP, thresholds=(0.5, 0.05), missing="zeros")
    assert fusion.fallback_names == ["", "", "low score", "zeros"]
    assert not fusion.keypoints[3].any()
    fusion = fuse_clips(keypoints, scores, *CLIP, thresholds=(0.5, 0.3))
    assert fusion.fallback_names == ["", "", "frame 2", "frame 2"], "nobody reaches the lower threshold in frame 3"


def test_a_member_of_weight_zero_counts_only_where_no_other_member_found_someone() -> None:
    keypoints = np.full((2, 3, K, 3), 0.5)
    keypoints[0, ..., :2], keypoints[1, ..., :2] = 100, 300
    scores = np.array([[0.4, 0.0, 0.9], [0.9, 0.9, 0.9]])
    clip = (["s"] * 3, ["A"] * 3, [1, 2, 3])
    for weights in (np.array([1.0, 0.0]), np.array([[1.0] * K, [0.0] * K])):
        fusion = fuse_clips(keypoints, scores, *clip, thresholds=(0.5, 0.05), weights=weights)
        assert fusion.keypoints[:, 0, 0].tolist() == [100, 300, 100]
        assert fusion.fallback_names == ["low score", "", ""]
        assert fusion.has_high_score.tolist() == [False, True, True]


def test_rejected_points_are_counted_per_member() -> None:
    keypoints, scores = make_frames()
    keypoints[1, 0, :2, 0] += 300
    fusion = fuse_clips(keypoints, scores, *CLIP, thresholds=(0.5, 0.05), reject_sigmas=3.0)
    assert fusion.num_rejected == [0, 2, 0]
    fusion = fuse_clips(keypoints, scores, *CLIP, thresholds=(0.5, 0.05), reject_sigmas=None)
    assert fusion.num_rejected == [0, 0, 0]


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(4)))
def test_fused_clips_are_bit_identical_for_any_order_of_the_members(seed: int, order: list[int]) -> None:
    keypoints, found = make_members(seed)
    scores = np.where(found, np.random.default_rng(seed).random(found.shape), 0.0)
    scenes_cameras_frames = (["s"] * 6, ["A"] * 6, [1, 2, 3, 5, 8, 13])
    options = {"thresholds": (0.5, 0.05), "smooth_frames": 2.0, "mean_pose": np.zeros((K, 2))}
    fusion = fuse_clips(keypoints, scores, *scenes_cameras_frames, **options)
    reordered = fuse_clips(keypoints[order], scores[order], *scenes_cameras_frames, **options)
    np.testing.assert_array_equal(fusion.keypoints, reordered.keypoints)
    assert fusion.fallback_names == reordered.fallback_names
    assert [fusion.num_rejected[i] for i in order] == reordered.num_rejected
