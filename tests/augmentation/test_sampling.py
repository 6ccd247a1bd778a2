"""The parameters of variants have the distributions, the rounding and the geometry of Albumentations."""

import itertools
from dataclasses import fields
from typing import Any

import albumentations as A  # noqa: N812
import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from kp_ray.augmentation.recipes import RECIPES, Recipe
from kp_ray.augmentation.reference import to_albumentations
from kp_ray.augmentation.sampling import VariantParameters, sample_parameters, variant_seed
from kp_ray.errors import DataError
from kp_ray.keypoints import FloatArray, apply_affine

# Albumentations warns if a pipeline moves no keypoint.
pytestmark = pytest.mark.filterwarnings("ignore:Got processor for keypoints")
FRAME_SIZES = [(1920, 1080), (640, 480), (333, 500), (101, 57)]
NUM_SAMPLES = 2000
MIN_P_VALUE = 1e-4
"""Smallest p-value of a Kolmogorov-Smirnov test at which two distributions count as equal; small, because many pairs
are compared. With 2000 samples, a distance of 0.07 between two distributions gives a smaller p-value."""


def make_points(width: int, height: int, seed: int = 0) -> FloatArray:
    """Make 24 random points (24, 2), some of them outside the frame."""
    rng = np.random.default_rng(seed)
    return rng.uniform((-0.1 * width, -0.1 * height), (1.1 * width, 1.1 * height), (24, 2))


def build_fixed_pipeline(recipe: Recipe, parameters: VariantParameters, width: int, height: int) -> Any:
    """Build a recipe's Albumentations pipeline with these parameters instead of random ones."""
    steps: list[Any] = []
    if recipe.rotate_deg:
        steps.append(A.Rotate(limit=(parameters.angle_deg, parameters.angle_deg), border_mode=cv2.BORDER_CONSTANT, p=1))
    if recipe.scale_range:
        steps.append(A.RandomScale(scale_limit=(parameters.scale - 1, parameters.scale - 1), p=1))
    if recipe.crop_hw:
        x, y = parameters.crop_xy
        crop_w, crop_h = recipe.crop_size(width, height, scale_with_frame=True)
        fixed_crop = A.Crop(x_min=x, y_min=y, x_max=x + crop_w, y_max=y + crop_h, p=1)
        steps.append(fixed_crop if recipe.crop == "random" else A.CenterCrop(height=crop_h, width=crop_w, p=1))
    if recipe.crop_scale_range:
        factor = parameters.crop_scale
        steps.append(A.RandomScale(scale_limit=(factor - 1, factor - 1), p=1))
    return A.Compose(steps, keypoint_params=A.KeypointParams(format="xy", remove_invisible=False))


def sample_with_albumentations(recipe: Recipe, width: int, height: int) -> list[dict[str, dict[str, Any]]]:
    """Sample NUM_SAMPLES times with Albumentations; return transform name -> parameters for each sample.

    Each transform has its own seed, because `Compose.set_random_seed` gives all transforms the same random numbers: a
    large scale would always occur together with a crop near the lower edge.
    """
    pipeline = A.Compose(to_albumentations(recipe, width, height).transforms, save_applied_params=True)
    image = np.zeros((height, width), np.uint8)
    samples = []
    for seed in range(NUM_SAMPLES):
        for number, step in enumerate(pipeline.transforms):
            step.set_random_seed(seed + number * NUM_SAMPLES)
        samples.append(dict(pipeline(image=image)["applied_transforms"]))
    return samples


@pytest.mark.parametrize(("width", "height"), FRAME_SIZES)
@pytest.mark.parametrize("name", list(RECIPES))
def test_equal_parameters_map_keypoints_as_albumentations_does(name: str, width: int, height: int) -> None:
    recipe = RECIPES[name]
    points = make_points(width, height)
    image = np.zeros((height, width), np.uint8)
    for seed in range(1 if width > 1000 else 4):
        parameters = sample_parameters(recipe, width, height, seed)
        expected = build_fixed_pipeline(recipe, parameters, width, height)(image=image, keypoints=points)
        assert expected["image"].shape == (parameters.height, parameters.width)
        np.testing.assert_allclose(apply_affine(parameters.affine, points), expected["keypoints"], atol=0.01, rtol=0)


@pytest.mark.parametrize("name", list(RECIPES))
@given(st.integers(48, 700), st.integers(48, 700), st.integers(0, 2**64 - 1))
@settings(max_examples=6, derandomize=True, database=None)
def test_equal_parameters_map_keypoints_as_albumentations_does_in_any_frame(
    name: str, width: int, height: int, seed: int
) -> None:
    recipe, points = RECIPES[name], make_points(width, height)
    parameters = sample_parameters(recipe, width, height, seed)
    crop = recipe.crop_size(width, height, scale_with_frame=True)
    # Albumentations refuses crops that are larger than the frame; kp_ray makes them smaller.
    assume(crop[0] <= int(width * parameters.scale) and crop[1] <= int(height * parameters.scale))
    pipeline = build_fixed_pipeline(recipe, parameters, width, height)
    expected = pipeline(image=np.zeros((height, width), np.uint8), keypoints=points)
    assert expected["image"].shape == (parameters.height, parameters.width)
    np.testing.assert_allclose(apply_affine(parameters.affine, points), expected["keypoints"], atol=0.01, rtol=0)


def recipes_with_random_geometry() -> list[str]:
    """List the recipes with a random angle, scale or crop position."""
    names = []
    for name, recipe in RECIPES.items():
        has_random_crop = recipe.crop_hw is not None and recipe.crop == "random"
        if recipe.rotate_deg or recipe.scale_range or has_random_crop:
            names.append(name)
    return names


def test_all_but_four_recipes_have_random_geometry() -> None:
    fixed_recipes = set(RECIPES) - set(recipes_with_random_geometry())
    assert fixed_recipes == {"Original", "CenterCrop_1", "CenterCrop_2", "RandomBrightnessContrast"}


@pytest.mark.parametrize("name", recipes_with_random_geometry())
def test_geometry_has_the_distributions_of_albumentations(name: str) -> None:
    recipe, width, height = RECIPES[name], 96, 54
    references = sample_with_albumentations(recipe, width, height)
    samples = [
        sample_parameters(recipe, width, height, variant_seed(0, str(i), recipe.fingerprint, 0))
        for i in range(NUM_SAMPLES)
    ]
    pairs: dict[str, tuple[list[float], list[float]]] = {}
    if recipe.rotate_deg:
        angles = [
            np.rad2deg(np.arctan2(matrix[0, 1], matrix[0, 0]))
            for matrix in (reference["Rotate"]["matrix"] for reference in references)
        ]
        pairs["angle"] = [parameters.angle_deg for parameters in samples], angles
        assert all(-45 <= parameters.angle_deg <= 45 for parameters in samples)
    if recipe.scale_range:
        pairs["scale"] = (
            [parameters.scale for parameters in samples],
            [reference["RandomScale"]["scale"] for reference in references],
        )
        assert all(0.7 <= parameters.scale <= 1.3 for parameters in samples)
    if recipe.crop_scale_range:
        pairs["crop_scale"] = (
            [parameters.crop_scale for parameters in samples],
            [reference["RandomScale"]["scale"] for reference in references],
        )
    if recipe.crop_hw and (recipe.crop == "random" or recipe.scale_range):
        kind = "RandomCrop" if recipe.crop == "random" else "CenterCrop"
        corners = [reference[kind]["crop_coords"][:2] for reference in references]
        for axis in (0, 1):
            pairs[f"crop {'xy'[axis]}"] = (
                [parameters.crop_xy[axis] for parameters in samples],
                [corner[axis] for corner in corners],
            )
    assert pairs
    for quantity, (sampled, expected) in pairs.items():
        assert np.ptp(sampled) > 0, quantity
        assert ks_2samp(sampled, expected).pvalue > MIN_P_VALUE, quantity


@pytest.mark.parametrize("name", recipes_with_random_geometry())
def test_the_parameters_of_a_recipe_are_independent(name: str) -> None:
    recipe, width, height = RECIPES[name], 1920, 1080
    seeds = [variant_seed(0, str(i), recipe.fingerprint, 0) for i in range(NUM_SAMPLES)]
    samples = [sample_parameters(recipe, width, height, seed) for seed in seeds]
    values = {"angle": [sample.angle_deg for sample in samples], "scale": [sample.scale for sample in samples]}
    for axis, frame_side in enumerate((width, height)):
        size = recipe.crop_size(width, height, scale_with_frame=True)[axis]
        num_positions = [int(frame_side * sample.scale) - size + 1 for sample in samples]
        # Offsets as fractions of their range, which depends on the scale.
        positions = [(sample.crop_xy[axis] + 0.5) / count for sample, count in zip(samples, num_positions, strict=True)]
        if recipe.crop == "random" and max(num_positions) > 1:
            values["crop " + "xy"[axis]] = positions
    random_values = np.array([sampled for sampled in values.values() if np.ptp(sampled) > 0])
    assert len(random_values)
    assert np.abs(np.corrcoef(random_values) - np.eye(len(random_values))).max() < 0.1


def test_the_comparison_of_distributions_detects_a_small_difference() -> None:
    rng = np.random.default_rng(0)
    expected = rng.uniform(0.7, 1.3, NUM_SAMPLES)
    assert ks_2samp(expected, rng.uniform(0.7, 1.3, NUM_SAMPLES)).pvalue > MIN_P_VALUE
    assert ks_2samp(expected, rng.uniform(0.64, 1.3, NUM_SAMPLES)).pvalue < MIN_P_VALUE
    assert ks_2samp(expected, rng.uniform(0.75, 1.25, NUM_SAMPLES)).pvalue < MIN_P_VALUE


def test_every_crop_position_of_albumentations_is_reached() -> None:
    recipe = RECIPES["RandomCrop_1"]
    sampled = {sample_parameters(recipe, 16, 10, seed).crop_xy for seed in range(NUM_SAMPLES)}
    expected = {reference["RandomCrop"]["crop_coords"][:2] for reference in sample_with_albumentations(recipe, 16, 10)}
    assert sampled == expected == {(x, y) for x in range(11) for y in range(6)}


def test_brightness_and_contrast_have_the_distributions_of_albumentations() -> None:
    recipe = RECIPES["RandomBrightnessContrast"]
    references = [reference["RandomBrightnessContrast"] for reference in sample_with_albumentations(recipe, 8, 8)]
    samples = [sample_parameters(recipe, 8, 8, seed) for seed in range(NUM_SAMPLES)]
    contrasts, brightnesses = zip(*((sample.contrast, 255 * sample.brightness) for sample in samples), strict=True)
    assert ks_2samp(contrasts, [reference["alpha"] for reference in references]).pvalue > MIN_P_VALUE
    assert ks_2samp(brightnesses, [reference["beta"] for reference in references]).pvalue > MIN_P_VALUE
    assert abs(np.corrcoef(contrasts, brightnesses)[0, 1]) < 0.1


@pytest.mark.parametrize("name", ["Rescale_Rotate45_RandomCrop_1", "RandomSquare_1", "Original"])
def test_the_reference_pipeline_gives_images_of_the_size_that_kp_ray_gives(name: str) -> None:
    pipeline = to_albumentations(RECIPES[name], 320, 180)
    for seed in range(5):
        pipeline.set_random_seed(seed)
        shape = pipeline(image=np.zeros((180, 320, 3), np.uint8), keypoints=np.zeros((0, 2)))["image"].shape
        parameters = sample_parameters(RECIPES[name], 320, 180, seed)
        assert shape == (parameters.height, parameters.width, 3)


@given(st.sampled_from(list(RECIPES)), st.integers(16, 4000), st.integers(16, 4000), st.integers(0, 2**64 - 1))
def test_every_recipe_applies_to_any_frame_and_its_affine_is_invertible(
    name: str, width: int, height: int, seed: int
) -> None:
    recipe = RECIPES[name]
    parameters = sample_parameters(recipe, width, height, seed)
    assert parameters.width >= 1
    assert parameters.height >= 1
    inverse = np.linalg.inv(np.vstack([parameters.affine, [0, 0, 1]]))[:2]
    points = make_points(width, height)
    np.testing.assert_allclose(
        apply_affine(inverse, apply_affine(parameters.affine, points)), points, atol=1e-3, rtol=0
    )
    scaled_size = int(width * parameters.scale), int(height * parameters.scale)
    for offset, size, frame_side in zip(
        parameters.crop_xy, (parameters.width, parameters.height), scaled_size, strict=True
    ):
        assert 0 <= offset <= frame_side - int(size / parameters.crop_scale)


@given(st.sampled_from(list(RECIPES)), st.integers(0, 2**64 - 1))
def test_equal_seeds_give_equal_parameters(name: str, seed: int) -> None:
    first_sample, second_sample = (sample_parameters(RECIPES[name], 640, 360, seed) for _ in range(2))
    for field in fields(VariantParameters):
        assert np.array_equal(getattr(first_sample, field.name), getattr(second_sample, field.name)), field.name


def test_different_seeds_give_different_parameters() -> None:
    random_recipes = {*recipes_with_random_geometry(), "RandomBrightnessContrast"}
    for name, recipe in RECIPES.items():
        samples = [sample_parameters(recipe, 640, 360, seed) for seed in range(8)]
        distinct_parameters = {(sample.affine.tobytes(), sample.contrast) for sample in samples}
        assert len(distinct_parameters) == (8 if name in random_recipes else 1), name


def test_seeds_differ_between_variants_and_are_equal_on_every_machine() -> None:
    assert variant_seed(42, "a.jpg", "0123456789abcdef", 0) == 15856658516226839463
    keys = list(itertools.product((0, 1), ("a.jpg", "b.jpg"), ("x", "y"), (0, 1)))
    seeds = {variant_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_the_error_for_a_crop_larger_than_the_frame_gives_both_sizes() -> None:
    with pytest.raises(
        DataError, match=r"CenterCrop_1: its crop of 1280x720 px is larger than the frame \(640x480 px\)"
    ) as error:
        sample_parameters(RECIPES["CenterCrop_1"], 640, 480, 0, scale_with_frame=False)
    assert "augment.oversize: scale" in str(error.value)


def test_original_keeps_the_size_of_every_frame() -> None:
    for size in ((1280, 720), (3840, 2160)):
        parameters = sample_parameters(RECIPES["Original"], *size, 0, scale_with_frame=False)
        assert ((parameters.width, parameters.height), parameters.crop_xy) == (size, (0, 0))
