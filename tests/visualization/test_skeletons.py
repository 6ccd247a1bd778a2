"""Skeletons are drawn at the keypoints; crops have the right affine matrix; contact sheets hold images and titles."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kp_ray.images import Image
from kp_ray.keypoints import DACON24, Skeleton
from kp_ray.visualization.colors import LEFT, MIDDLE, RIGHT, TRUTH
from kp_ray.visualization.skeletons import (
    crop_and_resize,
    draw_contact_sheet,
    draw_legend,
    draw_skeleton,
    transform_keypoints,
)

ONE_POINT = Skeleton(names=("a",), flip_pairs=(), sigmas=(0.05,))
TWO_POINTS = Skeleton(names=("left_a", "right_a"), flip_pairs=(("left_a", "right_a"),), sigmas=(0.05, 0.05), limbs=())
TWO_POINTS_WITH_LIMB = Skeleton(
    names=("left_a", "right_a"), flip_pairs=TWO_POINTS.flip_pairs, sigmas=TWO_POINTS.sigmas, limbs=TWO_POINTS.flip_pairs
)


def black_image(width: int, height: int) -> Image:
    """Make a black image (height, width, 3)."""
    return np.zeros((height, width, 3), dtype=np.uint8)


def centroid(image: Image) -> tuple[float, float]:
    """Return the mean (x, y) of the pixels, weighted by their brightness."""
    weight = image.astype(float).sum(axis=2)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return float((weight * x).sum() / weight.sum()), float((weight * y).sum() / weight.sum())


@settings(max_examples=25)
@given(
    size=st.sampled_from([(96, 72), (640, 480), (1280, 720)]),
    x=st.floats(20, 70, allow_subnormal=False),
    y=st.floats(20, 50, allow_subnormal=False),
)
def test_the_centroid_of_a_disc_is_its_keypoint(size: tuple[int, int], x: float, y: float) -> None:
    drawing = draw_skeleton(black_image(*size), np.array([[x, y, 2.0]]), ONE_POINT)
    assert centroid(drawing) == pytest.approx((x, y), abs=0.1)


def test_drawing_leaves_the_input_image_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    original = image.copy()
    drawing = draw_skeleton(image, np.array([[40.0, 30.0, 2.0]]), ONE_POINT, bbox_xyxy=np.array([5.0, 5.0, 70.0, 50.0]))
    assert np.array_equal(image, original)
    assert not np.array_equal(drawing, original)


@pytest.mark.parametrize(
    "point", [(np.nan, 30, 2), (40, np.nan, 2), (np.inf, 30, 2), (1e300, 30, 2), (40, 30, 0), (40, 30, np.nan)]
)
def test_a_missing_point_is_left_out_with_its_limbs(point: tuple[float, float, float]) -> None:
    without_limbs = draw_skeleton(black_image(80, 60), np.array([[20.0, 20.0, 2.0], point]), TWO_POINTS)
    with_limbs = draw_skeleton(black_image(80, 60), np.array([[20.0, 20.0, 2.0], point]), TWO_POINTS_WITH_LIMB)
    assert centroid(with_limbs) == pytest.approx((20, 20), abs=0.1)
    assert np.array_equal(without_limbs, with_limbs)


def test_left_right_and_middle_have_different_colors_unless_one_color_is_set() -> None:
    names = DACON24.names
    points = np.full((24, 3), np.nan)
    locations = {"left_knee": (30, 30), "right_knee": (90, 30), "nose": (60, 60)}
    for name, location in locations.items():
        points[names.index(name)] = (*location, 2)
    drawing = draw_skeleton(black_image(120, 90), points, DACON24)
    drawn_colors = [tuple(drawing[y, x]) for x, y in locations.values()]
    assert drawn_colors == [LEFT, RIGHT, MIDDLE]
    drawing = draw_skeleton(black_image(120, 90), points, DACON24, color=TRUTH)
    assert [tuple(drawing[y, x]) for x, y in locations.values()] == [TRUTH] * 3


def test_a_limb_is_drawn_between_its_ends() -> None:
    drawing = draw_skeleton(black_image(80, 60), np.array([[10.0, 30.0, 2.0], [70.0, 30.0, 2.0]]), TWO_POINTS_WITH_LIMB)
    assert drawing[30, 40].any()
    assert not drawing[10, 40].any()


def test_discs_grow_with_the_image() -> None:
    point = np.array([[50.0, 50.0, 2.0]])
    small_count, large_count = (
        np.count_nonzero(draw_skeleton(black_image(*size), point, ONE_POINT)) for size in [(320, 240), (1920, 1080)]
    )
    assert large_count > 10 * small_count


@pytest.mark.parametrize("max_side", [45, 300])
def test_the_affine_of_a_crop_maps_a_point_of_the_image_to_its_place_in_the_crop(max_side: int) -> None:
    image = black_image(200, 150)
    cv2.circle(image, (120, 80), 12, (255, 255, 255), cv2.FILLED)
    crop, affine = crop_and_resize(image, np.array([70.2, 40.0, 160.0, 139.0]), max_side)
    moved_point = transform_keypoints(np.array([[120.0, 80.0, 2.0]]), affine)
    assert max(crop.shape[:2]) <= max_side
    assert centroid(crop) == pytest.approx(tuple(moved_point[0, :2]), abs=0.1)
    assert moved_point[0, 2] == 2


@pytest.mark.parametrize("box", [None, (0, 0, 0, 0), (500, 500, 600, 600), (np.nan,) * 4, (50, 50, 10, 10)])
def test_without_a_box_inside_the_image_the_whole_image_is_resized(box: tuple[float, ...] | None) -> None:
    crop, _ = crop_and_resize(black_image(200, 150), None if box is None else np.array(box, dtype=float), 100)
    assert crop.shape == (75, 100, 3)


def test_a_contact_sheet_holds_every_image_and_every_title() -> None:
    colors = [(0, 0, 250), (0, 250, 0), (250, 0, 0)]
    images = [
        np.full(shape, color, np.uint8)
        for shape, color in zip([(90, 30, 3), (30, 90, 3), (7, 7, 3)], colors, strict=True)
    ]
    titles = ["tall", "wide", "the longest title of the three, cut at the tile's edge"]
    sheet = draw_contact_sheet(images, titles, columns=2, tile_width=120)
    for color in colors:
        assert (sheet == color).all(axis=2).any()
    untitled_sheet = draw_contact_sheet(images, ["", "", ""], columns=2, tile_width=120)
    is_title = (sheet != untitled_sheet).any(axis=2)
    half_y, half_x = sheet.shape[0] // 2, sheet.shape[1] // 2
    assert is_title[:half_y, :half_x].any()
    assert is_title[:half_y, half_x:].any()
    assert is_title[half_y:, :half_x].any()
    assert not is_title[half_y:, half_x:].any()


def test_a_contact_sheet_without_images_or_with_a_wrong_number_of_titles_is_refused() -> None:
    with pytest.raises(ValueError, match="0 images"):
        draw_contact_sheet([], [], columns=2, tile_width=100)
    with pytest.raises(ValueError, match="1 images, 2 titles"):
        draw_contact_sheet([black_image(4, 4)], ["a", "b"], columns=2, tile_width=100)


def test_a_legend_is_written_in_its_colors_on_a_copy() -> None:
    image = black_image(600, 1100)
    drawing = draw_legend(image, [("truth", TRUTH), ("é", LEFT)])
    assert not image.any()
    for color in (TRUTH, LEFT):
        assert (drawing == color).all(axis=2).any()
