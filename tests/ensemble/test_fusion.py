"""Fusion: masking, rejection, combination, and filling what nobody found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kp_ray.ensemble.fitted import SHRINKAGES, _simplex_weights, fit_weights
from kp_ray.ensemble.fusion import SCALE_FLOOR_PX, fuse, fuse_clips, inliers
from kp_ray.ensemble.people import choose_people
from kp_ray.ensemble.temporal import fill_missing, smooth_clips
from kp_ray.errors import KpRayError

METHODS = ["mean", "median", "score"]
K = 5


def members(seed: int, num: int = 4, num_images: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Members that agree within pixels, with some far-off points and some misses."""
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform(100, 900, (1, num_images, K, 3)) + rng.normal(0, 3, (num, num_images, K, 3))
    keypoints[rng.random((num, num_images, K)) < 0.1, :2] += 400
    keypoints[..., 2] = rng.uniform(0, 1, keypoints.shape[:3])
    found = rng.random((num, num_images)) < 0.7
    keypoints[~found] = np.nan
    return keypoints, found


def stack(*xs: float) -> tuple[np.ndarray, np.ndarray]:
    """One image, one keypoint at (x, 50), score 1, for each member."""
    return np.array([[[[x, 50.0, 1.0]]] for x in xs]), np.ones((len(xs), 1), dtype=bool)


@pytest.mark.parametrize("method", METHODS)
def test_a_member_that_found_nobody_is_not_averaged_as_zeros(method: str) -> None:
    keypoints, found = stack(100.0, 0.0, 104.0)
    keypoints[1], found[1] = 0, False
    fused, found_by_any = fuse(keypoints, found, method=method, reject_sigmas=3.0)
    assert found_by_any.tolist() == [True]
    np.testing.assert_allclose(fused[0, 0], [102, 50, 1])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), method=st.sampled_from(METHODS), order=st.permutations(range(4)))
def test_the_order_of_the_members_changes_no_bit(seed: int, method: str, order: list[int]) -> None:
    keypoints, found = members(seed)
    keypoints[..., :2] = (keypoints[..., :2] / 5).round() * 5 / 3  # many ties
    rng = np.random.default_rng(seed)
    weights, persons = rng.choice([0.0, 0.1, 0.3, 0.7], 4), rng.random((4, 6))
    once = fuse(keypoints, found, method=method, person_scores=persons, weights=weights, reject_sigmas=3.0)
    again = fuse(
        keypoints[order], found[order], method=method, person_scores=persons[order], weights=weights[order],
        reject_sigmas=3.0,
    )  # fmt: skip
    np.testing.assert_array_equal(once[0], again[0])
    np.testing.assert_array_equal(once[1], again[1])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), method=st.sampled_from(METHODS), shift=st.tuples(*[st.integers(-2000, 2000)] * 2))
def test_shifting_every_member_shifts_the_answer(seed: int, method: str, shift: tuple[int, int]) -> None:
    keypoints, found = members(seed)
    offset = np.array([*shift, 0.0])
    before, _ = fuse(keypoints, found, method=method, reject_sigmas=3.0)
    after, _ = fuse(keypoints + offset, found, method=method, reject_sigmas=3.0)
    np.testing.assert_allclose(after, before + offset, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), method=st.sampled_from(METHODS))
def test_the_answer_lies_between_the_members(seed: int, method: str) -> None:
    keypoints, found = members(seed)
    fused, found_by_any = fuse(keypoints, found, method=method, reject_sigmas=2.0)
    masked = np.where(found[..., None, None], keypoints, np.nan)[:, found_by_any]
    assert (fused[found_by_any] >= np.nanmin(masked, axis=0) - 1e-9).all()
    assert (fused[found_by_any] <= np.nanmax(masked, axis=0) + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000), method=st.sampled_from(METHODS), weight=st.sampled_from([0.0, 0.1, 0.3, 1 / 3, 7.0])
)
def test_where_one_member_found_someone_its_answer_is_unchanged(seed: int, method: str, weight: float) -> None:
    keypoints, found = members(seed, num=3)
    found[:], keypoints[[0, 2]] = False, np.nan
    found[1], keypoints[1] = True, np.random.default_rng(seed).uniform(0, 2000, keypoints[1].shape)
    fused, _ = fuse(keypoints, found, method=method, weights=np.array([1.0, weight, 1.0]), reject_sigmas=3.0)
    np.testing.assert_array_equal(fused, keypoints[1])


def test_rows_nobody_found_are_nan_and_not_found() -> None:
    keypoints, found = members(3)
    found[:, 2] = False
    fused, found_by_any = fuse(keypoints, found, method="mean", reject_sigmas=3.0)
    assert not found_by_any[2]
    assert np.isnan(fused[2]).all()
    assert np.isfinite(fused[found_by_any]).all()


def test_no_member_found_anyone_anywhere() -> None:
    keypoints, found = members(4)
    fused, found_by_any = fuse(keypoints, np.zeros_like(found), method="median", reject_sigmas=3.0)
    assert not found_by_any.any()
    assert np.isnan(fused).all()


def test_without_rejection_the_mean_is_numpys() -> None:
    keypoints, found = members(5)
    fused, found_by_any = fuse(keypoints, found, method="mean", reject_sigmas=None)
    np.testing.assert_allclose(fused[found_by_any], np.nanmean(keypoints[:, found_by_any], axis=0))


def test_with_equal_weights_the_median_is_numpys() -> None:
    keypoints, found = members(6)
    fused, found_by_any = fuse(keypoints, found, method="median", weights=np.full(4, 0.1), reject_sigmas=None)
    np.testing.assert_allclose(fused[found_by_any], np.nanmedian(keypoints[:, found_by_any], axis=0))


@pytest.mark.parametrize("num", range(1, 25))
def test_the_median_of_equal_weights_is_numpys_though_their_sums_round(num: int) -> None:
    xs = np.random.default_rng(num).permutation(num) * 100.0
    fused, _ = fuse(*stack(*xs), method="median", weights=np.full(num, 0.1), reject_sigmas=None)
    assert fused[0, 0, 0] == np.median(xs)


def test_an_outlier_among_three_is_rejected() -> None:
    fused, _ = fuse(*stack(100.0, 101.0, 400.0), method="mean", reject_sigmas=3.0)
    assert fused[0, 0, 0] == pytest.approx(100.5)


def test_an_outlier_costs_one_point_not_the_whole_member() -> None:
    keypoints = np.ones((3, 1, 2, 3)) * np.array([100.0, 103.0, 106.0])[:, None, None, None]
    keypoints[2, 0, 0, :2] = 800
    fused, _ = fuse(keypoints, np.ones((3, 1), dtype=bool), method="mean", reject_sigmas=3.0)
    np.testing.assert_allclose(fused[0, :, 0], [101.5, 103])


def test_close_agreement_of_some_does_not_reject_the_rest() -> None:
    near = 3 * SCALE_FLOOR_PX - 0.1
    kept, _ = fuse(*stack(100.0, 100.0, 100.0, 100.0 + near), method="mean", reject_sigmas=3.0)
    assert kept[0, 0, 0] == pytest.approx(100 + near / 4)
    dropped, _ = fuse(*stack(100.0, 100.0, 100.0, 100.0 + near + 0.2), method="mean", reject_sigmas=3.0)
    assert dropped[0, 0, 0] == 100


@pytest.mark.parametrize("reject_sigmas", [1e-6, 0.5, 3.0])
def test_two_members_have_no_majority_so_neither_is_rejected(reject_sigmas: float) -> None:
    fused, _ = fuse(*stack(100.0, 900.0), method="mean", reject_sigmas=reject_sigmas)
    assert fused[0, 0, 0] == 500


def test_two_members_are_kept_whatever_rounding_does() -> None:
    points = np.random.default_rng(0).uniform(0, 2000, (2, 1000, K, 3))
    assert inliers(points, 1e-6).all()


def test_the_limit_is_in_sigmas_of_the_members_own_spread() -> None:
    # Distances 20, 10, 0, 10 and the last: three robust sigmas are 3 * 1.4826 * 10 = 44.5 px.
    for last, kept in ((144.0, True), (145.0, False)):
        keypoints, _ = stack(80.0, 90.0, 100.0, 110.0, last)
        assert inliers(keypoints, 3.0)[:, 0, 0].tolist() == [True] * 4 + [kept]


def test_members_without_weight_do_not_outvote_the_others() -> None:
    keypoints, found = stack(100.0, 101.0, 500.0, 500.0, 500.0)
    weights = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    fused, _ = fuse(keypoints, found, method="mean", weights=weights, reject_sigmas=3.0)
    assert fused[0, 0, 0] == pytest.approx(100.5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), reject_sigmas=st.floats(1e-3, 5))
def test_at_least_half_of_the_members_are_kept(seed: int, reject_sigmas: float) -> None:
    keypoints, _ = members(seed, num=5)
    kept = inliers(keypoints, reject_sigmas).sum(axis=0)
    assert (2 * kept >= np.isfinite(keypoints[..., 0]).sum(axis=0)).all()


def test_weights_can_be_per_member_or_per_keypoint() -> None:
    keypoints = np.ones((2, 1, 2, 3)) * np.array([100.0, 200.0])[:, None, None, None]
    found = np.ones((2, 1), dtype=bool)
    by_member, _ = fuse(keypoints, found, method="mean", weights=np.array([3.0, 1.0]), reject_sigmas=None)
    np.testing.assert_allclose(by_member[0, :, 0], [125, 125])
    weights = np.array([[1.0, 0.0], [1.0, 5.0]])
    by_keypoint, _ = fuse(keypoints, found, method="mean", weights=weights, reject_sigmas=None)
    np.testing.assert_allclose(by_keypoint[0, :, 0], [150, 200])


def test_the_weighted_median_follows_the_weight() -> None:
    keypoints, found = stack(100.0, 200.0, 300.0)
    fused, _ = fuse(keypoints, found, method="median", weights=np.array([1.0, 1.0, 5.0]), reject_sigmas=None)
    assert fused[0, 0, 0] == 300


def test_scores_of_points_and_persons_weigh_the_mean() -> None:
    keypoints, found = stack(100.0, 200.0)
    keypoints[:, 0, 0, 2] = [0.6, 0.2]
    fused, _ = fuse(keypoints, found, method="score", reject_sigmas=None)
    assert fused[0, 0, 0] == pytest.approx(125)
    both, _ = fuse(keypoints, found, method="score", person_scores=np.array([[0.5], [0.5 * 9]]), reject_sigmas=None)
    assert both[0, 0, 0] == pytest.approx(175)
    keypoints[..., 2] = 0
    zero, _ = fuse(keypoints, found, method="score", reject_sigmas=None)
    assert zero[0, 0, 0] == pytest.approx(150), "scores that are all zero weigh equally"


def test_what_cannot_be_combined_is_refused() -> None:
    keypoints, found = stack(1.0, 2.0)
    broken = keypoints.copy()
    broken[1, 0, 0, 0] = np.nan
    with pytest.raises(KpRayError, match="member 1: row 0"):
        fuse(broken, found, method="mean", reject_sigmas=None)
    with pytest.raises(KpRayError, match="weights"):
        fuse(keypoints, found, method="mean", weights=np.array([1.0, -1.0]), reject_sigmas=None)
    with pytest.raises(KpRayError, match="scores"):
        fuse(-keypoints, found, method="score", reject_sigmas=None)
    with pytest.raises(ValueError, match="weights"):
        fuse(keypoints, found, method="mean", weights=np.ones(3), reject_sigmas=None)
    with pytest.raises(ValueError, match="vote"):
        fuse(keypoints, found, method="vote", reject_sigmas=None)
    with pytest.raises(ValueError, match="found"):
        fuse(keypoints, found[:1], method="mean", reject_sigmas=None)


def clip(xs: list[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Rows with one keypoint at (x, x), score 0.9; None where nobody was found."""
    keypoints = np.array([[[x, x, 0.9]] if x is not None else [[np.nan] * 3] for x in xs], dtype=float)
    return keypoints, np.array([x is not None for x in xs])


def test_a_miss_is_filled_from_the_nearest_frame_of_its_clip() -> None:
    keypoints, found = clip([10.0, None, 30.0, 40.0, 50.0])
    scenes, cameras, frames = ["s"] * 4 + ["t"], ["A", "A", "A", "B", "A"], [1, 11, 7, 11, 11]
    filled, notes = fill_missing(keypoints, found, scenes, cameras, frames)
    assert filled[1, 0].tolist() == [30, 30, 0]
    assert notes == ["", "frame 7", "", "", ""]
    np.testing.assert_array_equal(filled[found], keypoints[found])
    assert np.isnan(keypoints[1]).all(), "the input is left as it was"


def test_of_two_equally_near_frames_the_earlier_is_taken() -> None:
    keypoints, found = clip([30.0, None, 10.0])
    filled, notes = fill_missing(keypoints, found, ["s"] * 3, ["A"] * 3, [7, 5, 3])
    assert (filled[1, 0, 0], notes[1]) == (10, "frame 3")


def test_a_clip_without_anyone_takes_the_mean_pose_of_the_rest() -> None:
    keypoints, found = clip([10.0, 20.0, None, None])
    filled, notes = fill_missing(
        keypoints, found, ["s", "s", "t", ""], ["A", "A", "A", ""], [1, 2, 3, None], mean_pose=np.full((1, 2), 99.0)
    )
    np.testing.assert_array_equal(filled[2:], [[[15, 15, 0]]] * 2)
    assert notes == ["", "", "mean pose", "mean pose"]


def test_images_without_a_frame_number_have_no_neighbours() -> None:
    keypoints, found = clip([10.0, 50.0, None])
    _, notes = fill_missing(keypoints, found, [""] * 3, [""] * 3, [None, -1, -1])
    assert notes[2] == "mean pose"


def test_nobody_anywhere_takes_the_given_pose_or_is_an_error() -> None:
    keypoints, found = clip([None, None])
    place = (["s"] * 2, ["A"] * 2, [1, 2])
    filled, notes = fill_missing(keypoints, found, *place, mean_pose=np.full((1, 2), 99.0))
    assert filled.tolist() == [[[99, 99, 0]]] * 2
    assert notes == ["mean pose"] * 2
    with pytest.raises(KpRayError, match="nobody found in any image"):
        fill_missing(keypoints, found, *place)
    with pytest.raises(KpRayError, match="mean pose"):
        fill_missing(keypoints, found, *place, mean_pose=np.full((1, 2), np.nan))


def test_nothing_missing_changes_nothing() -> None:
    keypoints, found = clip([10.0, 20.0])
    filled, notes = fill_missing(keypoints, found, ["s"] * 2, ["A"] * 2, [1, 2])
    np.testing.assert_array_equal(filled, keypoints)
    assert notes == ["", ""]


def four_frames() -> tuple[np.ndarray, np.ndarray]:
    """Three members on four frames of one clip: all sure, one sure, one unsure, nobody."""
    keypoints = np.full((3, 4, K, 3), 0.5)
    keypoints[..., :2] = np.array([100.0, 101.0, 102.0])[:, None, None, None] + 10 * np.arange(4)[:, None, None]
    scores = np.array([[0.9, 0.9, 0.0, 0.0], [0.9, 0.1, 0.2, 0.0], [0.9, 0.0, 0.0, 0.0]])
    keypoints[scores == 0] = np.nan
    return keypoints, scores


def test_every_fallback_is_taken_in_its_turn_and_told() -> None:
    keypoints, scores = four_frames()
    fusion = fuse_clips(keypoints, scores, ["s"] * 4, ["A"] * 4, [1, 2, 3, 4], thresholds=(0.5, 0.05))
    assert fusion.how == ["", "", "low score", "frame 3"]
    assert fusion.found.tolist() == [True, True, False, False]
    assert fusion.keypoints[:, 0, 0].tolist() == [101, 110, 121, 121]
    zeros = fuse_clips(keypoints, scores, ["s"] * 4, ["A"] * 4, [1, 2, 3, 4], thresholds=(0.5, 0.05), missing="zeros")
    assert zeros.how == ["", "", "low score", "zeros"]
    assert not zeros.keypoints[3].any()
    high = fuse_clips(keypoints, scores, ["s"] * 4, ["A"] * 4, [1, 2, 3, 4], thresholds=(0.5, 0.3))
    assert high.how == ["", "", "frame 2", "frame 2"], "nobody reaches the lower threshold in frame 3"


def test_dropped_points_are_counted_by_member() -> None:
    keypoints, scores = four_frames()
    keypoints[1, 0, :2, 0] += 300
    clip = ["s"] * 4, ["A"] * 4, [1, 2, 3, 4]
    fusion = fuse_clips(keypoints, scores, *clip, thresholds=(0.5, 0.05), reject_sigmas=3.0)
    assert fusion.rejected == [0, 2, 0]
    kept = fuse_clips(keypoints, scores, ["s"] * 4, ["A"] * 4, [1, 2, 3, 4], thresholds=(0.5, 0.05), reject_sigmas=None)
    assert kept.rejected == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(4)))
def test_the_order_of_the_members_changes_no_bit_of_the_whole_fusion(seed: int, order: list[int]) -> None:
    keypoints, found = members(seed)
    scores = np.where(found, np.random.default_rng(seed).random(found.shape), 0.0)
    place = (["s"] * 6, ["A"] * 6, [1, 2, 3, 5, 8, 13])
    some = {"thresholds": (0.5, 0.05), "smooth_frames": 2.0, "mean_pose": np.zeros((K, 2))}
    once = fuse_clips(keypoints, scores, *place, **some)
    again = fuse_clips(keypoints[order], scores[order], *place, **some)
    np.testing.assert_array_equal(once.keypoints, again.keypoints)
    assert once.how == again.how
    assert [once.rejected[i] for i in order] == again.rejected


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), sigma=st.floats(0.3, 20))
def test_smoothing_leaves_a_straight_motion_as_it_is(seed: int, sigma: float) -> None:
    rng = np.random.default_rng(seed)
    frames = np.sort(rng.choice(100, 12, replace=False))
    keypoints = rng.uniform(0, 900, (1, K, 3)) + frames[:, None, None] * rng.normal(0, 5, (1, K, 3))
    order = rng.permutation(12)
    smoothed = smooth_clips(
        keypoints[order], np.ones(12, dtype=bool), ["s"] * 12, ["A"] * 12, frames[order].tolist(), sigma
    )
    np.testing.assert_allclose(smoothed, keypoints[order], atol=1e-6)


def test_smoothing_takes_noise_away_within_a_clip_only() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.linspace(0, 300, 40)[:, None, None], 3, axis=2) * np.ones((1, K, 1))
    noisy = truth + rng.normal(0, 4, truth.shape)
    noisy[20:] += 500  # another camera
    place = (["s"] * 40, ["A"] * 20 + ["B"] * 20, [*range(20), *range(20)])
    smoothed = smooth_clips(noisy, np.ones(40, dtype=bool), *place, 2.0)
    residual = smoothed - truth
    residual[20:] -= 500
    assert residual[..., :2].std() < 0.7 * 4
    np.testing.assert_array_equal(smoothed[..., 2], noisy[..., 2])


def test_smoothing_passes_over_frames_in_which_nobody_was_found() -> None:
    keypoints, found = clip([10.0, 500.0, 30.0, 40.0])
    found[1] = False
    smoothed = smooth_clips(keypoints, found, ["s"] * 4, ["A"] * 4, [1, 2, 3, 4], 3.0)
    np.testing.assert_allclose(smoothed, keypoints, atol=1e-9)


def people(*answers: list[tuple[float, float, float]]) -> dict[str, list[int] | np.ndarray]:
    """People (x, side, score) of one member in the frames 1, 2, ... of a clip."""
    rows = [row for row, answer in enumerate(answers) for _ in answer]
    boxes = np.array([[x, 0, x + side, 2 * side] for answer in answers for x, side, _ in answer])
    return {"rows": rows, "asked": rows, "boxes": boxes, "scores": np.array([p[2] for a in answers for p in a])}


CROWD = [[(100, 50, 0.9)], [(700, 80, 0.95), (104, 50, 0.9)], [(108, 50, 0.9), (100, 10, 0.1)]]


@pytest.mark.parametrize(("rule", "chosen"), [("score", [0, 1, 3]), ("largest", [0, 1, 3]), ("track", [0, 2, 3])])
def test_of_several_people_the_rule_decides(rule: str, chosen: list[int]) -> None:
    place = {"scenes": ["s"] * 3, "cameras": ["A"] * 3, "frames": [1, 2, 3]}
    found = choose_people(**people(*CROWD), **place, rule=rule, threshold=0.5)
    assert found == (chosen, 1, int(rule == "track")), "the last frame's second person is below the threshold"


def test_the_largest_is_not_always_the_surest() -> None:
    crowd = people([(100, 50, 0.9), (500, 90, 0.6)])
    place = {"scenes": ["s"], "cameras": ["A"], "frames": [1]}
    assert choose_people(**crowd, **place, rule="largest", threshold=0.5) == ([1], 1, 1)
    assert choose_people(**crowd, **place, rule="largest", threshold=0.7) == ([0], 0, 0)
    assert choose_people(**crowd, **place, rule="track", threshold=0.5) == ([0], 1, 0), "no other frame, no track"


def test_people_of_another_camera_are_no_track() -> None:
    place = {"scenes": ["s"] * 3, "cameras": ["A", "B", "A"], "frames": [1, 2, 3]}
    assert choose_people(**people(*CROWD), **place, rule="track", threshold=0.5) == ([0, 1, 3], 1, 0)


def test_when_all_are_below_the_threshold_all_are_looked_at() -> None:
    place = {"scenes": ["s"] * 3, "cameras": ["A"] * 3, "frames": [1, 2, 3]}
    chosen, several, changed = choose_people(**people(*CROWD), **place, rule="track", threshold=1.0)
    assert (chosen, several, changed) == ([0, 2, 3], 2, 1)


def known_members(seed: int, spreads: list[float], num_scenes: int = 6) -> tuple[np.ndarray, ...]:
    """Members whose errors have these spreads in pixels, on 8 images a scene."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(100, 900, (8 * num_scenes, K, 2))
    keypoints = np.ones((len(spreads), *truth.shape[:2], 3))
    keypoints[..., :2] = truth + rng.normal(size=keypoints[..., :2].shape) * np.array(spreads)[:, None, None, None]
    scenes = np.repeat([f"s{i}" for i in range(num_scenes)], 8)
    return keypoints, np.ones(keypoints.shape[:2], dtype=bool), truth, scenes


def test_fitted_weights_trust_the_better_member_and_help_on_other_scenes() -> None:
    keypoints, found, truth, scenes = known_members(0, [2.0, 4.0, 8.0])
    fitted = fit_weights(keypoints, found, truth, scenes, reject_sigmas=None)
    np.testing.assert_allclose(fitted.weights.sum(axis=0), 1)
    # Independent errors: the best weights go with 1 / variance, here 16 : 4 : 1.
    np.testing.assert_allclose(fitted.weights.mean(axis=1), np.array([16, 4, 1]) / 21, atol=0.05)
    assert fitted.rmse_fitted < 0.7 * fitted.rmse_equal
    assert (fitted.num_scenes, fitted.num_images) == (6, 48)
    fresh = known_members(1, [2.0, 4.0, 8.0])
    errors = [
        fuse(*fresh[:2], weights=weights, reject_sigmas=None)[0][..., :2] - fresh[2]
        for weights in (None, fitted.weights)
    ]
    assert np.square(errors[1]).mean() < 0.6 * np.square(errors[0]).mean()


def test_weights_differ_by_keypoint_where_the_members_strengths_do() -> None:
    keypoints, found, truth, scenes = known_members(0, [3.0, 3.0])
    keypoints[0, :, 0, :2] = truth[:, 0] + 9 * (keypoints[0, :, 0, :2] - truth[:, 0])
    fitted = fit_weights(keypoints, found, truth, scenes)
    assert fitted.chosen.startswith("per keypoint")
    assert fitted.weights[0, 0] < 0.1
    assert np.abs(fitted.weights[0, 1:] - 0.5).max() < 0.2


@pytest.mark.parametrize("seed", range(5))
def test_equal_members_keep_equal_weights(seed: int) -> None:
    fitted = fit_weights(*known_members(seed, [4.0] * 4))
    assert np.abs(fitted.weights - 0.25).max() < 0.1
    assert fitted.rmse_fitted <= fitted.rmse_equal


def test_a_gain_in_one_scene_only_is_not_believed() -> None:
    keypoints, found, truth, scenes = known_members(0, [4.0, 4.0])
    one = scenes == "s0"
    keypoints[1, one, :, :2] = truth[one] + 60  # one scene in which the second member is far off
    fitted = fit_weights(keypoints, found, truth, scenes)
    assert fitted.chosen == "equal"
    assert fitted.rmse_fitted == fitted.rmse_equal
    np.testing.assert_array_equal(fitted.weights, np.full((2, K), 0.5))


def test_fitting_bears_misses_unlabelled_points_and_another_order() -> None:
    keypoints, found, truth, scenes = known_members(2, [2.0, 4.0, 8.0])
    rng = np.random.default_rng(0)
    found = rng.random(found.shape) < 0.9
    keypoints[~found] = np.nan
    truth[rng.random(truth.shape[:2]) < 0.1] = np.nan
    fitted = fit_weights(keypoints, found, truth, scenes)
    assert (np.diff(fitted.weights.mean(axis=1)) < 0).all(), "the better, the heavier"
    again = fit_weights(keypoints[::-1], found[::-1], truth, scenes)
    np.testing.assert_allclose(again.weights, fitted.weights[::-1], atol=1e-9)


def test_one_scene_is_too_little_to_fit_on() -> None:
    keypoints, found, truth, scenes = known_members(0, [4.0, 4.0])
    with pytest.raises(KpRayError, match=r"2 validation scenes or more, there are 1: raise split\.fraction"):
        fit_weights(keypoints, found, truth, ["s"] * len(scenes))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), num=st.integers(1, 6), shrinkage=st.sampled_from(SHRINKAGES))
def test_no_other_weights_of_sum_one_do_better(seed: int, num: int, shrinkage: float) -> None:
    rng = np.random.default_rng(seed)
    errors = rng.normal(size=(num, 30)) * rng.uniform(1, 10, (num, 1)) + rng.normal(0, 5, 30)
    gram = errors @ errors.T
    weights = _simplex_weights(gram[None], shrinkage)[0]
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)
    matrix = gram + shrinkage * np.trace(gram) / num * np.eye(num)
    others = rng.dirichlet(np.full(num, 0.3), 500)
    others = np.concatenate([others, 0.99 * weights + 0.01 * others])
    assert weights @ matrix @ weights <= np.einsum("im,ml,il->i", others, matrix, others).min() * (1 + 1e-9)
