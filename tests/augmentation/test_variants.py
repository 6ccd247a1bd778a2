"""The images of variants agree with their keypoints, for sources of every size and format."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from kp_ray.augmentation.recipes import RECIPES, resolve_recipes
from kp_ray.augmentation.sampling import sample_parameters
from kp_ray.errors import DataError
from kp_ray.images import MAX_SIDE
from kp_ray.keypoints import apply_affine, is_inside_image
from kp_ray.store.manifest import row_schema
from tests.helpers.images import IMAGE_FILES, UNCHANGED_KINDS, decode_upright_rgb, to_jpeg, to_png
from tests.helpers.variants import (
    SIZES,
    count_stray_pixels,
    decode_variant,
    keypoints_with_dots,
    make_dotted_image,
    make_keypoints,
    make_random_image,
    make_variants,
    measure_dot_errors,
    variants_by_recipe,
)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("name", RECIPES)
def test_every_keypoint_lies_on_the_dot_that_it_marks(name: str, width: int, height: int) -> None:
    errors: list[float] = []
    for variant, plain_variant in zip(
        variants_by_recipe(width, height)[name], variants_by_recipe(width, height, dots=False)[name], strict=True
    ):
        assert np.array_equal(variant.affine, plain_variant.affine)
        scale = np.sqrt(abs(np.linalg.det(variant.affine[:, :2])))
        errors += measure_dot_errors(variant, plain_variant, keypoints_with_dots(width, height), scale)
    assert errors
    assert max(errors) < 0.3


@pytest.mark.parametrize("name", RECIPES)
@given(st.integers(96, 480), st.integers(96, 480), st.integers(0, 2**32 - 1))
@settings(max_examples=10, derandomize=True, database=None)
def test_dots_show_at_the_stored_keypoints_and_nowhere_else(name: str, width: int, height: int, seed: int) -> None:
    keypoints, dotted, plain = make_random_image(width, height, seed)
    (variant, second_copy), (plain_variant, _) = (
        make_variants(to_jpeg(image), keypoints, [(RECIPES[name], 2)], seed=seed, jpeg_quality=98)
        for image in (dotted, plain)
    )
    assert second_copy.seed != variant.seed
    affine, stored_keypoints = variant.affine, variant.keypoints
    inverse = np.linalg.inv(np.vstack([affine, [0, 0, 1]]))[:2]
    np.testing.assert_allclose(apply_affine(inverse, stored_keypoints[:, :2]), keypoints[:, :2], atol=1e-3, rtol=0)
    is_inside = is_inside_image(stored_keypoints[:, :2], variant.width, variant.height)
    assert stored_keypoints[:, 2].tolist() == np.where(is_inside, keypoints[:, 2], 0).tolist()
    has_dot = is_inside_image(keypoints[:, :2], width, height)
    assert count_stray_pixels(variant, plain_variant, keypoints[has_dot, :2], width, height) == 0
    # Near the source's edge a dot merges with its mirror image, so its centre is not the keypoint.
    is_whole = is_inside_image(keypoints[:, :2] - 10, width - 20, height - 20)
    errors = measure_dot_errors(variant, plain_variant, is_whole, np.sqrt(abs(np.linalg.det(affine[:, :2]))))
    assert max(errors, default=0) < 0.5


def test_the_measurements_detect_a_stray_dot_and_a_shifted_keypoint() -> None:
    width, height = 300, 200
    keypoints, dotted, plain = make_random_image(width, height, 1)
    variant, plain_variant = (
        make_variants(to_jpeg(image), keypoints, [(RECIPES["Rotate45"], 1)])[0] for image in (dotted, plain)
    )
    dots = keypoints[is_inside_image(keypoints[:, :2], width, height), :2]
    assert count_stray_pixels(variant, plain_variant, dots, width, height) == 0
    assert count_stray_pixels(variant, plain_variant, dots[1:], width, height) > 0
    assert count_stray_pixels(variant, plain_variant, dots + 6, width, height) > 0
    shifted_variant = replace(variant, keypoints=variant.keypoints + np.array([0.7, 0, 0], np.float32))
    is_whole = is_inside_image(keypoints[:, :2] - 10, width - 20, height - 20)
    assert max(measure_dot_errors(shifted_variant, plain_variant, is_whole, 1.0)) > 0.5


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_stored_coordinate_decides_if_a_keypoint_at_the_border_is_visible(
    width: int, height: int, axis: int
) -> None:
    end = float((width, height)[axis])
    is_visible = {
        -1.0: False,
        -0.5: False,
        -1e-3: False,
        -1e-50: True,  # stored as -0.0
        0.0: True,
        1e-3: True,
        end - 1: True,
        end - 0.5: True,
        float(np.nextafter(end, 0)): False,  # below the end as a float64, and equal to it as the stored float32
        end: False,
        end + 1e-3: False,
    }
    keypoints = np.full((24, 3), np.nan)
    keypoints[:, 2] = 0
    keypoints[: len(is_visible)] = 30.0, 30.0, 2.0
    keypoints[: len(is_visible), axis] = list(is_visible)
    variant = make_variants(to_jpeg(make_dotted_image(width, height)), keypoints, [(RECIPES["Original"], 1)])[0]
    assert variant.keypoints.dtype == np.float32
    assert (variant.keypoints[: len(is_visible), 2] > 0).tolist() == list(is_visible.values())
    assert variant.num_visible == sum(is_visible.values())
    assert variant.bbox_xyxy[[axis, axis + 2]].tolist() == [0, end]
    assert variant.bbox_xyxy[[1 - axis, 3 - axis]].tolist() == [30, 30]


@pytest.mark.parametrize("name", ["CenterCrop_1", "RandomCrop_1", "RandomSquare_2"])
def test_a_keypoint_at_the_border_of_a_crop_is_visible_if_its_coordinate_is_inside(name: str) -> None:
    width, height = SIZES[0]
    content = to_jpeg(make_dotted_image(width, height))
    unlabelled_variant = make_variants(content, np.full((24, 3), np.nan), [(RECIPES[name], 1)])[0]
    left, top = -unlabelled_variant.affine[:, 2]
    right, bottom = left + unlabelled_variant.width, top + unlabelled_variant.height
    is_visible = {
        (left, top): True,
        (right - 1, bottom - 1): True,
        (right - 0.5, bottom - 0.5): True,
        (right - 0.001, top): True,
        (right, top): False,
        (left, bottom): False,
        (left - 0.001, top): False,
        (left, top - 0.001): False,
    }
    keypoints = np.full((24, 3), np.nan)
    keypoints[:, 2] = 0
    keypoints[: len(is_visible)] = [(x, y, 1) for x, y in is_visible]
    variant = make_variants(content, keypoints, [(RECIPES[name], 1)])[0]
    assert (variant.keypoints[: len(is_visible), 2] > 0).tolist() == list(is_visible.values())
    assert variant.bbox_xyxy.tolist() == [0, 0, variant.width, variant.height]


def test_the_box_of_points_outside_the_image_is_clipped_to_it() -> None:
    keypoints = np.full((24, 3), np.nan)
    keypoints[:2] = (-50, -20, 2), (-10, 40, 2)
    variant = make_variants(to_jpeg(make_dotted_image(*SIZES[0])), keypoints, [(RECIPES["Original"], 1)])[0]
    assert variant.bbox_xyxy.tolist() == [0, 0, 0, 40]
    assert variant.num_visible == 0


def test_a_recipe_listed_twice_gives_two_images_each_with_its_own_labels() -> None:
    recipes = resolve_recipes(["Rotate45_CenterCrop", "Original", "Rotate45_CenterCrop"])
    content, keypoints = to_jpeg(make_dotted_image(*SIZES[0])), make_keypoints(*SIZES[0])
    variants, plain_variants = (
        make_variants(to_jpeg(make_dotted_image(*SIZES[0], dots)), keypoints, recipes) for dots in (True, False)
    )
    assert [(variant.recipe, variant.copy) for variant in variants] == [
        ("Rotate45_CenterCrop", 0),
        ("Rotate45_CenterCrop", 1),
        ("Original", 0),
    ]
    first_copy, second_copy = variants[:2]
    assert not np.array_equal(first_copy.affine, second_copy.affine)
    assert first_copy.image != second_copy.image
    for variant, plain_variant in zip(variants, plain_variants, strict=True):
        assert max(measure_dot_errors(variant, plain_variant, keypoints_with_dots(*SIZES[0]), 1.0)) < 0.3
    assert variants[2].image == content


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("name", RECIPES)
def test_visibility_box_and_size_agree_with_the_stored_keypoints(name: str, width: int, height: int) -> None:
    source_keypoints = make_keypoints(width, height)
    for variant in variants_by_recipe(width, height)[name]:
        points = variant.keypoints
        affine = variant.affine
        np.testing.assert_allclose(points[:, :2], apply_affine(affine, source_keypoints[:, :2]), atol=1e-3, rtol=1e-6)
        is_inside = [0 <= x < variant.width and 0 <= y < variant.height for x, y, _ in points]
        assert points[:, 2].tolist() == np.where(is_inside, source_keypoints[:, 2], 0).tolist()
        assert variant.num_visible == sum(is_inside)
        labelled_points = points[~np.isnan(points[:, 0]), :2]
        size = np.array([variant.width, variant.height])
        expected = np.concatenate(
            [labelled_points.min(axis=0).clip(0, size), labelled_points.max(axis=0).clip(0, size)]
        )
        np.testing.assert_allclose(variant.bbox_xyxy, expected, rtol=1e-6)
        assert decode_variant(variant).shape == (variant.height, variant.width, 3)


def test_rows_fit_the_schema_and_name_their_source() -> None:
    width, height = SIZES[0]
    variants = make_variants(
        to_jpeg(make_dotted_image(width, height)),
        make_keypoints(width, height),
        [(RECIPES["Original"], 1), (RECIPES["Rotate45"], 2)],
    )
    rows = [variant.to_row() for variant in variants]
    assert set(rows[0]) == set(pa.Table.from_pylist(rows, schema=row_schema(24)).column_names)
    assert [(variant.recipe, variant.copy) for variant in variants] == [
        ("Original", 0),
        ("Rotate45", 0),
        ("Rotate45", 1),
    ]
    for row in rows:
        assert [row[key] for key in ("source", "scene", "camera", "frame", "split")] == [
            "a/001_B-0000007.jpg",
            "001",
            "B",
            7,
            "train",
        ]
    assert len({variant.seed for variant in variants}) == 3
    assert variants[1].image != variants[2].image


def test_the_box_margin_widens_only_the_box() -> None:
    content, keypoints = to_jpeg(make_dotted_image(*SIZES[0])), make_keypoints(*SIZES[0])
    # The points at odd indices lie at the frame's edge, where the margin would be clipped.
    keypoints = np.where(np.arange(24)[:, None] % 2, np.nan, keypoints)
    narrow_box_variant = make_variants(content, keypoints, [(RECIPES["CenterCrop_1"], 1)])[0]
    wide_box_variant = make_variants(content, keypoints, [(RECIPES["CenterCrop_1"], 1)], box_margin_px=4.5)[0]
    size = [narrow_box_variant.width, narrow_box_variant.height] * 2
    expected = (narrow_box_variant.bbox_xyxy + np.array([-4.5, -4.5, 4.5, 4.5])).clip(0, size)
    np.testing.assert_allclose(wide_box_variant.bbox_xyxy, expected, rtol=1e-5)
    assert wide_box_variant.image == narrow_box_variant.image
    assert np.array_equal(wide_box_variant.keypoints, narrow_box_variant.keypoints, equal_nan=True)


def test_a_source_without_labels_has_variants_without_a_box() -> None:
    for variant in make_variants(
        to_jpeg(make_dotted_image(*SIZES[0])), np.full((24, 3), np.nan), [(RECIPES["Rotate45"], 1)]
    ):
        assert variant.num_visible == 0
        assert variant.bbox_xyxy.tolist() == [0, 0, 0, 0]
        assert variant.keypoints[:, 2].tolist() == [0] * 24


def test_equal_seeds_give_equal_bytes_and_different_seeds_give_different_bytes() -> None:
    width, height = SIZES[0]
    content, keypoints = to_jpeg(make_dotted_image(width, height)), make_keypoints(width, height)
    all_recipes = [(recipe, 1) for recipe in RECIPES.values()]
    runs = (make_variants(content, keypoints, all_recipes, seed=seed) for seed in (5, 5, 6))
    for variant, same_seed_variant, other_seed_variant in zip(*runs, strict=True):
        assert variant.image == same_seed_variant.image
        assert np.array_equal(variant.keypoints, same_seed_variant.keypoints, equal_nan=True)
        is_fixed = variant.recipe in ("Original", "CenterCrop_1", "CenterCrop_2")
        assert (variant.image == other_seed_variant.image) is is_fixed, variant.recipe


def test_a_variant_does_not_depend_on_the_other_recipes() -> None:
    width, height = SIZES[0]
    content, keypoints = to_jpeg(make_dotted_image(width, height)), make_keypoints(width, height)
    for name in ("Rescale_CenterCrop", "Rotate45", "RandomCrop_1"):
        variant = make_variants(content, keypoints, [(RECIPES[name], 1)])[0]
        variant_among_others = variants_by_recipe(width, height)[name][0]
        assert variant.image == variant_among_others.image
        assert np.array_equal(variant.affine, variant_among_others.affine)


def test_original_keeps_the_bytes_of_a_jpeg() -> None:
    content = to_jpeg(make_dotted_image(*SIZES[0]))
    for variant in make_variants(content, make_keypoints(*SIZES[0]), [(RECIPES["Original"], 2)], jpeg_quality=10):
        assert variant.image == content
        assert np.array_equal(variant.affine, np.eye(2, 3))


def test_a_crop_larger_than_the_frame_is_refused_if_sizes_do_not_scale() -> None:
    with pytest.raises(DataError, match=r"1280x720 px is larger than the frame \(480x270 px\)") as error:
        make_variants(
            to_jpeg(make_dotted_image(*SIZES[0])),
            make_keypoints(*SIZES[0]),
            [(RECIPES["CenterCrop_1"], 1)],
            scale_with_frame=False,
        )
    assert str(error.value).startswith("recipe CenterCrop_1: ")  # the store prepends the image's name


def test_brightness_and_contrast_change_the_stored_image() -> None:
    flat_image = np.full((64, 64, 3), 100, np.uint8)
    for variant in make_variants(
        to_png(flat_image), np.full((24, 3), np.nan), [(RECIPES["RandomBrightnessContrast"], 5)]
    ):
        parameters = sample_parameters(RECIPES["RandomBrightnessContrast"], 64, 64, variant.seed)
        assert abs(decode_variant(variant).mean() - (100 * parameters.contrast + 255 * parameters.brightness)) < 1.5


def test_a_source_that_is_too_long_for_a_jpeg_needs_a_crop() -> None:
    long_image, points = to_png(np.zeros((8, MAX_SIDE + 1, 3), np.uint8)), np.full((24, 3), 5.0)
    with pytest.raises(DataError, match=f"{MAX_SIDE + 1}x8 px is larger than a JPEG can be"):
        make_variants(long_image, points, [(RECIPES["Original"], 1)])
    assert len(make_variants(long_image, points, [(RECIPES["CenterCrop_1"], 1)])) == 1


@pytest.mark.parametrize("kind", IMAGE_FILES)
def test_the_stored_original_equals_the_source(kind: str) -> None:
    expected = decode_upright_rgb(IMAGE_FILES[kind])
    height, width = expected.shape[:2]
    variant = make_variants(IMAGE_FILES[kind], np.full((24, 3), 5.0), [(RECIPES["Original"], 1)])[0]
    assert (variant.width, variant.height) == (width, height)
    assert (variant.image == IMAGE_FILES[kind]) is (kind in UNCHANGED_KINDS)
    # simplejpeg ignores EXIF, so it shows whether the stored pixels themselves are upright.
    stored_image = simplejpeg.decode_jpeg(variant.image, "RGB")
    assert np.abs(stored_image.astype(int) - expected).mean() < (8 if kind == "black and white PNG" else 3)


@pytest.mark.parametrize(("width", "height"), [(213, 120), (120, 213), (119, 213)])
def test_an_image_of_odd_size_is_encoded_without_pixels_from_outside(width: int, height: int) -> None:
    image = np.full((height, width, 3), 255, np.uint8)
    image[:, 0] = image[0] = 0  # an encoder that reads past the end of a row or of the image reads these pixels
    recipes = [(RECIPES["Original"], 1), (RECIPES["RandomBrightnessContrast"], 1)]
    no_keypoints = np.full((24, 3), np.nan)
    first_variants = make_variants(to_png(image), no_keypoints, recipes, jpeg_quality=30)
    assert decode_variant(first_variants[0])[height // 2 :, width // 2 :].min() >= 254
    for value in range(0, 256, 32):
        buffers = [np.full(image.size // 3, value, np.uint8) for _ in range(8)]
        del buffers  # the next images are made in this memory, which holds `value`
        variants = make_variants(to_png(image), no_keypoints, recipes, jpeg_quality=30)
        assert [variant.image for variant in variants] == [variant.image for variant in first_variants]


def test_making_variants_does_not_change_the_source() -> None:
    keypoints = make_keypoints(*SIZES[0]).copy()
    make_variants(
        to_jpeg(make_dotted_image(*SIZES[0])), keypoints, [(RECIPES["Rotate45"], 1), (RECIPES["RandomCrop_1"], 1)]
    )
    assert np.array_equal(keypoints, make_keypoints(*SIZES[0]), equal_nan=True)


@given(st.integers(3, 60), st.integers(3, 60), st.sampled_from(list(RECIPES)))
@settings(max_examples=60)
def test_tiny_and_narrow_images_have_variants(width: int, height: int, name: str) -> None:
    content = to_png(np.full((height, width, 3), 77, np.uint8))
    variant = make_variants(content, np.full((24, 3), 1.0), [(RECIPES[name], 1)])[0]
    stored_image = decode_variant(variant)
    assert stored_image.shape == (variant.height, variant.width, 3)
    if not RECIPES[name].brightness_contrast:
        assert np.abs(stored_image.astype(int) - 77).max() <= 2, "a border shows"
