"""Skeletons, points inside an image, and boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kp_ray.keypoints import DACON24, FloatArray, Skeleton, is_inside_image, labelled_box, skeleton_for

HAND = {
    "names": ("left_tip", "right_tip", "palm"),
    "flip_pairs": (("left_tip", "right_tip"),),
    "sigmas": (0.1, 0.1, 0.2),
}
SIZES = st.integers(1, 4000)
ANY_NUMBER = st.floats(-1e4, 1e4) | st.just(np.nan)


def make_points(*rows: tuple[float, float]) -> FloatArray:
    """Make keypoints (K, 3) from pairs of x and y; v is 2 if both are finite, else 0."""
    xy = np.array(rows, dtype=float).reshape(-1, 2)
    return np.column_stack([xy, np.where(np.isfinite(xy).all(axis=1), 2.0, 0.0)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ("tip", "tip", "palm")}, "unique"),
        ({"names": (), "flip_pairs": (), "sigmas": ()}, "present"),
        ({"sigmas": (0.1, 0.1)}, "sigmas: 3 keypoints need as many sigmas"),
        ({"sigmas": (0.1, 0.0, 0.2)}, "sigmas: .*positive"),
        ({"flip_pairs": (("left_tip", "right_tip"), ("palm", "left_tip"))}, "'left_tip' is listed twice"),
        ({"flip_pairs": (("palm", "palm"),)}, "'palm' is listed twice"),
        ({"flip_pairs": (("left_tip", "thumb"),)}, "flip_pairs: .*thumb"),
        ({"limbs": (("palm", "elbow"),)}, "limbs: .*elbow"),
    ],
)
def test_a_skeleton_whose_fields_do_not_fit_together_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Skeleton(**{**HAND, **change})


def test_the_competition_skeleton_has_the_columns_of_the_competition_csv() -> None:
    assert len(DACON24) == 24
    columns = DACON24.columns
    assert len(columns) == 48
    assert columns[:4] == ["nose_x", "nose_y", "left_eye_x", "left_eye_y"]
    assert columns[40:] == [
        "spine2(back)_x",
        "spine2(back)_y",
        "spine1(waist)_x",
        "spine1(waist)_y",
        "left_instep_x",
        "left_instep_y",
        "right_instep_x",
        "right_instep_y",
    ]


def test_the_first_17_sigmas_are_those_of_coco() -> None:
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    coco_sigmas = cocoeval.Params(iouType="keypoints").kpt_oks_sigmas
    assert len(coco_sigmas) == 17
    np.testing.assert_allclose(DACON24.sigmas[:17], coco_sigmas, rtol=0, atol=1e-12)


def test_a_flip_exchanges_ten_pairs_and_keeps_the_points_in_the_middle() -> None:
    flip = DACON24.flip_indices
    for index, name in enumerate(DACON24.names):
        partner = DACON24.names[flip[index]]
        assert partner == name.replace("left_", "R_").replace("right_", "left_").replace("R_", "right_")
    assert [DACON24.names[i] for i in range(24) if flip[i] == i] == ["nose", "neck", "spine2(back)", "spine1(waist)"]


@given(st.integers(1, 30), st.data())
def test_flipping_any_skeleton_twice_restores_the_order(num_keypoints: int, data: st.DataObject) -> None:
    names = [f"p{index}" for index in range(num_keypoints)]
    shuffled_names = data.draw(st.permutations(names))
    num_pairs = data.draw(st.integers(0, num_keypoints // 2))
    pairs = tuple(zip(shuffled_names[0::2], shuffled_names[1::2], strict=False))[:num_pairs]
    skeleton = Skeleton(tuple(names), pairs, (0.1,) * num_keypoints)
    flip, indices = np.array(skeleton.flip_indices), np.arange(num_keypoints)
    assert sorted(flip) == indices.tolist()
    assert (flip[flip] == indices).all()
    assert sum(flip != indices) == 2 * num_pairs


def test_limb_indices_match_the_limbs_names_and_reach_every_keypoint() -> None:
    limbs = [(DACON24.names[start], DACON24.names[end]) for start, end in DACON24.limb_indices]
    assert limbs == list(DACON24.limbs)
    assert {name for limb in limbs for name in limb} == set(DACON24.names)


@given(st.permutations(DACON24.names))
def test_the_competition_names_in_any_order_give_the_canonical_skeleton(names: list[str]) -> None:
    assert skeleton_for(names) == DACON24


def test_other_names_keep_their_order_and_need_flip_pairs_and_sigmas() -> None:
    names, pairs, sigmas = list(HAND["names"]), HAND["flip_pairs"], HAND["sigmas"]
    assert skeleton_for(names, pairs, sigmas) == Skeleton(**HAND)
    assert skeleton_for(names[::-1], pairs, sigmas).names == tuple(names[::-1])
    for options in ({}, {"flip_pairs": pairs}, {"sigmas": sigmas}):
        with pytest.raises(ValueError, match=r"skeleton\.flip_pairs and skeleton\.sigmas"):
            skeleton_for(names, **options)


@pytest.mark.parametrize("names", [DACON24.names[:17], DACON24.names[:17][::-1], ("neck", "left_hip", "right_hip")])
def test_names_among_the_24_take_their_pairs_sigmas_and_limbs_and_keep_their_order(names: tuple[str, ...]) -> None:
    skeleton = skeleton_for(names)
    assert skeleton.names == names
    for name, sigma, partner in zip(names, skeleton.sigmas, skeleton.flip_indices, strict=True):
        index = DACON24.names.index(name)
        assert sigma == DACON24.sigmas[index]
        assert names[partner] == DACON24.names[DACON24.flip_indices[index]]
    assert set(skeleton.limbs) == {limb for limb in DACON24.limbs if set(limb) <= set(names)}


def test_a_keypoint_without_its_other_side_needs_flip_pairs() -> None:
    with pytest.raises(ValueError, match=r"left_knee has no keypoint on the other side: set skeleton\.flip_pairs"):
        skeleton_for(("nose", "left_knee"))
    assert skeleton_for(("nose", "left_knee"), flip_pairs=()).sigmas == (0.026, 0.087)


def test_sigmas_of_the_config_replace_those_of_the_competition() -> None:
    sigmas = [0.05] * 24
    skeleton = skeleton_for(DACON24.names, sigmas=sigmas)
    assert skeleton.sigmas == tuple(sigmas)
    assert skeleton.flip_pairs == DACON24.flip_pairs


def test_a_skeleton_of_a_few_keypoints_keeps_the_limbs_between_them() -> None:
    arm = ("left_shoulder", "left_elbow", "left_wrist")
    assert skeleton_for(arm, (), (0.1, 0.1, 0.1)).limbs == (arm[:2], arm[1:])


def test_the_right_and_bottom_edges_are_outside() -> None:
    width, height = 640, 480
    below_w, below_h = np.nextafter(width, 0), np.nextafter(height, 0)
    inner_points = [(0, 0), (below_w, below_h)]
    outer_points = [(width, 5), (5, height), (-1e-9, 5), (5, -1e-9), (np.nan, 5), (5, np.nan), (np.inf, 5)]
    assert is_inside_image(np.array(inner_points), width, height).all()
    assert not is_inside_image(np.array(outer_points), width, height).any()


@given(hnp.arrays(float, st.tuples(st.integers(0, 30), st.just(2)), elements=ANY_NUMBER), SIZES, SIZES)
def test_inside_agrees_with_a_comparison_point_by_point(xy: FloatArray, width: int, height: int) -> None:
    expected = [0 <= x < width and 0 <= y < height for x, y in xy]
    assert is_inside_image(xy, width, height).tolist() == expected
    assert is_inside_image(xy[:, None], width, height)[:, 0].tolist() == expected


def test_the_box_is_clipped_to_the_image_and_leaves_unlabelled_points_out() -> None:
    body = make_points((10.5, 20.25), (-30, 60), (np.nan, 5), (700, np.nan), (90, 500))
    assert labelled_box(body, 640, 480).tolist() == [0, 20.25, 90, 480]
    assert labelled_box(body, 640, 480, margin_px=10).tolist() == [0, 10.25, 100, 480]
    assert labelled_box(make_points((700, 20), (800, 30)), 640, 480).tolist() == [640, 20, 640, 30]


def test_the_box_without_labelled_points_is_zeros_with_any_margin() -> None:
    nobody = make_points((np.nan, np.nan), (np.nan, 7))
    assert labelled_box(nobody, 640, 480, margin_px=9).tolist() == [0, 0, 0, 0]


@given(
    hnp.arrays(float, st.tuples(st.integers(1, 24), st.just(2)), elements=ANY_NUMBER),
    SIZES,
    SIZES,
    st.floats(0, 200),
)
def test_the_box_is_inside_the_image_and_contains_every_point_inside_the_image(
    xy: FloatArray, width: int, height: int, margin_px: float
) -> None:
    x1, y1, x2, y2 = labelled_box(make_points(*map(tuple, xy)), width, height, margin_px)
    assert 0 <= x1 <= x2 <= width
    assert 0 <= y1 <= y2 <= height
    for x, y in xy[is_inside_image(xy, width, height)]:
        assert x1 <= x <= x2
        assert y1 <= y <= y2
