"""Test filling and smoothing of clips."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kp_ray.ensemble.temporal import fill_missing, smooth_clips
from kp_ray.errors import DataError

K = 5


def make_clip(xs: list[float | None]) -> tuple[np.ndarray, np.ndarray]:
    """Make keypoints and `found` of images with one keypoint at (x, x) and score 0.9, or nobody for None."""
    keypoints = np.array([[[x, x, 0.9]] if x is not None else [[np.nan] * 3] for x in xs], dtype=float)
    return keypoints, np.array([x is not None for x in xs])


def test_an_image_without_a_person_is_filled_from_the_nearest_frame_of_the_clip() -> None:
    keypoints, found = make_clip([10.0, None, 30.0, 40.0, 50.0])
    scenes, cameras, frames = ["s"] * 4 + ["t"], ["A", "A", "A", "B", "A"], [1, 11, 7, 11, 11]
    filled, fallback_names = fill_missing(keypoints, found, scenes, cameras, frames)
    assert filled[1, 0].tolist() == [30, 30, 0]
    assert fallback_names == ["", "frame 7", "", "", ""]
    np.testing.assert_array_equal(filled[found], keypoints[found])
    assert np.isnan(keypoints[1]).all(), "the input is not changed"


def test_of_two_equally_near_frames_the_earlier_is_used() -> None:
    keypoints, found = make_clip([30.0, None, 10.0])
    filled, fallback_names = fill_missing(keypoints, found, ["s"] * 3, ["A"] * 3, [7, 5, 3])
    assert (filled[1, 0, 0], fallback_names[1]) == (10, "frame 3")


def test_a_clip_without_people_gets_the_mean_pose_of_the_other_clips() -> None:
    keypoints, found = make_clip([10.0, 20.0, None, None])
    filled, fallback_names = fill_missing(
        keypoints, found, ["s", "s", "t", ""], ["A", "A", "A", ""], [1, 2, 3, None], mean_pose=np.full((1, 2), 99.0)
    )
    np.testing.assert_array_equal(filled[2:], [[[15, 15, 0]]] * 2)
    assert fallback_names == ["", "", "mean pose", "mean pose"]


def test_images_without_a_frame_number_get_the_mean_pose() -> None:
    keypoints, found = make_clip([10.0, 50.0, None])
    _, fallback_names = fill_missing(keypoints, found, [""] * 3, [""] * 3, [None, -1, -1])
    assert fallback_names[2] == "mean pose"


def test_if_nobody_is_found_anywhere_the_argument_mean_pose_is_used_and_required() -> None:
    keypoints, found = make_clip([None, None])
    clip = (["s"] * 2, ["A"] * 2, [1, 2])
    filled, fallback_names = fill_missing(keypoints, found, *clip, mean_pose=np.full((1, 2), 99.0))
    assert filled.tolist() == [[[99, 99, 0]]] * 2
    assert fallback_names == ["mean pose"] * 2
    with pytest.raises(DataError, match="nobody was found in any image"):
        fill_missing(keypoints, found, *clip)
    with pytest.raises(DataError, match="mean_pose"):
        fill_missing(keypoints, found, *clip, mean_pose=np.full((1, 2), np.nan))


def test_if_every_image_has_a_person_nothing_changes() -> None:
    keypoints, found = make_clip([10.0, 20.0])
    filled, fallback_names = fill_missing(keypoints, found, ["s"] * 2, ["A"] * 2, [1, 2])
    np.testing.assert_array_equal(filled, keypoints)
    assert fallback_names == ["", ""]


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), sigma=st.floats(0.3, 20))
def test_smoothing_does_not_change_linear_motion(seed: int, sigma: float) -> None:
    rng = np.random.default_rng(seed)
    frames = np.sort(rng.choice(100, 12, replace=False))
    keypoints = rng.uniform(0, 900, (1, K, 3)) + frames[:, None, None] * rng.normal(0, 5, (1, K, 3))
    order = rng.permutation(12)
    smoothed = smooth_clips(
        keypoints[order], np.ones(12, dtype=bool), ["s"] * 12, ["A"] * 12, frames[order].tolist(), sigma
    )
    np.testing.assert_allclose(smoothed, keypoints[order], atol=1e-6)


def test_smoothing_reduces_noise_and_does_not_mix_clips() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.linspace(0, 300, 40)[:, None, None], 3, axis=2) * np.ones((1, K, 1))
    noisy = truth + rng.normal(0, 4, truth.shape)
    noisy[20:] += 500  # another camera
    clip = (["s"] * 40, ["A"] * 20 + ["B"] * 20, [*range(20), *range(20)])
    smoothed = smooth_clips(noisy, np.ones(40, dtype=bool), *clip, 2.0)
    residual = smoothed - truth
    residual[20:] -= 500
    assert residual[..., :2].std() < 0.7 * 4
    np.testing.assert_array_equal(smoothed[..., 2], noisy[..., 2])


def test_smoothing_ignores_frames_in_which_nobody_was_found() -> None:
    keypoints, found = make_clip([10.0, 500.0, 30.0, 40.0])
    found[1] = False
    smoothed = smooth_clips(keypoints, found, ["s"] * 4, ["A"] * 4, [1, 2, 3, 4], 3.0)
    np.testing.assert_allclose(smoothed, keypoints, atol=1e-9)
