"""Where things are drawn, and that plots hold what they were given."""

import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kp_ray.images import Image, decode_bgr, encode_bgr
from kp_ray.keypoints import DACON24, Skeleton
from kp_ray.visualization.colors import LEFT, MIDDLE, RIGHT, TRUTH
from kp_ray.visualization.plots import plot_bars, plot_curves, plot_points
from kp_ray.visualization.skeletons import contact_sheet, crop_resize, draw_skeleton, transform

POINT = Skeleton(names=("a",), flip_pairs=(), sigmas=(0.05,))
LIMB = Skeleton(names=("left_a", "right_a"), flip_pairs=(("left_a", "right_a"),), sigmas=(0.05, 0.05), limbs=())
JOINED = Skeleton(names=("left_a", "right_a"), flip_pairs=LIMB.flip_pairs, sigmas=LIMB.sigmas, limbs=LIMB.flip_pairs)


def black(width: int, height: int) -> Image:
    return np.zeros((height, width, 3), dtype=np.uint8)


def centroid(image: Image) -> tuple[float, float]:
    weight = image.astype(float).sum(axis=2)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return float((weight * x).sum() / weight.sum()), float((weight * y).sum() / weight.sum())


@settings(max_examples=25, deadline=None)
@given(
    size=st.sampled_from([(96, 72), (640, 480), (1280, 720)]),
    x=st.floats(20, 70, allow_subnormal=False),
    y=st.floats(20, 50, allow_subnormal=False),
)
def test_the_centroid_of_a_disc_is_its_keypoint(size: tuple[int, int], x: float, y: float) -> None:
    drawn = draw_skeleton(black(*size), np.array([[x, y, 2.0]]), POINT)
    assert centroid(drawn) == pytest.approx((x, y), abs=0.1)


def test_the_picture_given_stays_as_it_was() -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    before = image.copy()
    drawn = draw_skeleton(image, np.array([[40.0, 30.0, 2.0]]), POINT, bbox_xyxy=np.array([5.0, 5.0, 70.0, 50.0]))
    assert np.array_equal(image, before)
    assert not np.array_equal(drawn, before)


@pytest.mark.parametrize(
    "point", [(np.nan, 30, 2), (40, np.nan, 2), (np.inf, 30, 2), (1e300, 30, 2), (40, 30, 0), (40, 30, np.nan)]
)
def test_a_point_that_is_not_there_is_left_out_with_its_limbs(point: tuple[float, float, float]) -> None:
    alone = draw_skeleton(black(80, 60), np.array([[20.0, 20.0, 2.0], point]), LIMB)
    joined = draw_skeleton(black(80, 60), np.array([[20.0, 20.0, 2.0], point]), JOINED)
    assert centroid(joined) == pytest.approx((20, 20), abs=0.1)
    assert np.array_equal(alone, joined)


def test_left_right_and_middle_have_their_colours() -> None:
    names = DACON24.names
    points = np.full((24, 3), np.nan)
    spots = {"left_knee": (30, 30), "right_knee": (90, 30), "nose": (60, 60)}
    for name, spot in spots.items():
        points[names.index(name)] = (*spot, 2)
    drawn = draw_skeleton(black(120, 90), points, DACON24)
    got = [tuple(drawn[y, x]) for x, y in spots.values()]
    assert got == [LEFT, RIGHT, MIDDLE]
    one = draw_skeleton(black(120, 90), points, DACON24, color=TRUTH)
    assert [tuple(one[y, x]) for x, y in spots.values()] == [TRUTH] * 3


def test_a_limb_is_drawn_between_its_ends() -> None:
    drawn = draw_skeleton(black(80, 60), np.array([[10.0, 30.0, 2.0], [70.0, 30.0, 2.0]]), JOINED)
    assert drawn[30, 40].any()
    assert not drawn[10, 40].any()


def test_discs_grow_with_the_picture() -> None:
    point = np.array([[50.0, 50.0, 2.0]])
    small, large = (np.count_nonzero(draw_skeleton(black(*size), point, POINT)) for size in [(320, 240), (1920, 1080)])
    assert large > 10 * small


@pytest.mark.parametrize("max_side", [45, 300])
def test_a_crop_takes_points_where_its_affine_says(max_side: int) -> None:
    image = black(200, 150)
    cv2.circle(image, (120, 80), 12, (255, 255, 255), cv2.FILLED)
    part, affine = crop_resize(image, np.array([70.2, 40.0, 160.0, 139.0]), max_side)
    moved = transform(np.array([[120.0, 80.0, 2.0]]), affine)
    assert max(part.shape[:2]) <= max_side
    assert centroid(part) == pytest.approx(tuple(moved[0, :2]), abs=0.1)
    assert moved[0, 2] == 2


@pytest.mark.parametrize("box", [None, (0, 0, 0, 0), (500, 500, 600, 600), (np.nan,) * 4, (50, 50, 10, 10)])
def test_a_box_without_a_picture_means_the_whole_picture(box: tuple[float, ...] | None) -> None:
    part, _ = crop_resize(black(200, 150), None if box is None else np.array(box, dtype=float), 100)
    assert part.shape == (75, 100, 3)


def test_a_contact_sheet_holds_every_picture_and_every_title() -> None:
    colors = [(0, 0, 250), (0, 250, 0), (250, 0, 0)]
    images = [
        np.full(shape, color, np.uint8)
        for shape, color in zip([(90, 30, 3), (30, 90, 3), (7, 7, 3)], colors, strict=True)
    ]
    titles = ["tall", "wide", "the longest title of the three, cut at the tile's edge"]
    sheet = contact_sheet(images, titles, columns=2, tile_width=120)
    for color in colors:
        assert (sheet == color).all(axis=2).any()
    blank = contact_sheet(images, ["", "", ""], columns=2, tile_width=120)
    changed = (sheet != blank).any(axis=2)
    half_y, half_x = sheet.shape[0] // 2, sheet.shape[1] // 2
    assert changed[:half_y, :half_x].any()
    assert changed[:half_y, half_x:].any()
    assert changed[half_y:, :half_x].any()
    assert not changed[half_y:, half_x:].any()


def test_a_contact_sheet_without_pictures_or_titles_is_refused() -> None:
    with pytest.raises(ValueError, match="0 images"):
        contact_sheet([], [], columns=2, tile_width=100)
    with pytest.raises(ValueError, match="1 images, 2 titles"):
        contact_sheet([black(4, 4)], ["a", "b"], columns=2, tile_width=100)


def test_pictures_are_encoded_as_they_say() -> None:
    image = np.full((20, 30, 3), (40, 90, 200), dtype=np.uint8)
    content = encode_bgr(image)
    assert content.startswith(b"\xff\xd8\xff")
    decoded = decode_bgr(content)
    assert decoded is not None
    np.testing.assert_allclose(decoded, image, atol=4)
    assert decode_bgr(b"") is None
    assert decode_bgr(b"not a picture") is None


def svg_text(svg: bytes) -> str:
    return " ".join(ElementTree.fromstring(svg).itertext())


def test_plots_name_what_they_show_and_take_any_name() -> None:
    hostile = "_<b>&$\\frac{1}$ 관절"
    curves = plot_curves({hostile: ([1, 2], [3, float("nan")]), "b": ([1], [-1])}, "step", "loss", "Title", True)
    bars = plot_bars([hostile, "b", "c"], [1.5, None, float("nan")], "px", "Bars")
    points = plot_points([1e-4, 1e-3], [5, 4], "lr", "rmse", "Points", log_x=True, best=1)
    for svg, words in (
        (curves, ["step", "loss", "Title", hostile]),
        (bars, ["Bars", hostile, "1.50"]),
        (points, ["lr"]),
    ):
        assert all(word in svg_text(svg) for word in words)


def test_plots_have_no_ground_of_their_own_and_equal_input_gives_equal_bytes() -> None:
    first, second = (plot_curves({"a": ([1, 2], [3, 4])}, "x", "y", "t") for _ in range(2))
    assert first == second
    assert b"fill: #ffffff" not in first


def test_plots_of_nothing_are_still_plots() -> None:
    for svg in (
        plot_curves({}, "x", "y", "t", True),
        plot_bars([], [], "x", "t"),
        plot_points([], [], "x", "y", "t"),
    ):
        assert svg_text(svg)
