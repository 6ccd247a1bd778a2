"""The 27 built-in recipes vary images as the published pipelines do, except for three deliberate differences.

`PUBLISHED` and `sample_published` repeat `code/augmentation.py` of hangjoo/dacon_key_point_detection with the formulas
of Albumentations 1.0. They use no code of kp_ray, so that they do not repeat its errors. Affines map pixel indices.
"""

import math

import cv2
import numpy as np
import pytest
from scipy.stats import ks_2samp

from kp_ray.augmentation.recipes import RECIPES, Recipe
from kp_ray.augmentation.sampling import sample_parameters, variant_seed
from kp_ray.keypoints import FloatArray, apply_affine

FRAME_SIZE = (1920, 1080)
NUM_SAMPLES = 2000
MIN_P_VALUE = 1e-4
"""Smallest p-value at which two distributions count as equal; small, because many pairs are compared."""
QUANTITIES = ("a", "b", "x0", "y0", "width", "height", "contrast", "brightness")
"""The affine (x, y) -> (a x + b y + x0, -b x + a y + y0), the variant's size, and the change of its pixels."""

PUBLISHED: dict[str, list[tuple[str, tuple[float, ...]]]] = {
    "Original": [("random crop", (1080, 1920))],
    "CenterCrop_1": [("center crop", (720, 1280))],
    "CenterCrop_2": [("center crop", (960, 960))],
    "RandomCrop_1": [("random crop", (540, 720))],
    "RandomCrop_2": [("random crop", (720, 960))],
    "RandomCrop_3": [("random crop", (960, 1280))],
    "RandomCrop_4": [("random crop", (720, 1280))],
    "RandomSquare_1": [("random crop", (960, 960))],
    "RandomSquare_2": [("random crop", (720, 720))],
    "RandomSquare_3": [("random crop", (540, 540))],
    "RandomSquare_4": [("random crop", (420, 420))],
    "Rotate45": [("rotate", (45,))],
    "Rotate45_CenterCrop": [("rotate", (45,)), ("center crop", (720, 1280))],
    "Rotate45_RandomCrop_1": [("rotate", (45,)), ("random crop", (540, 720))],
    "Rotate45_RandomCrop_2": [("rotate", (45,)), ("random crop", (720, 960))],
    "Rotate45_RandomCrop_3": [("rotate", (45,)), ("random crop", (960, 960))],
    "Rotate45_RandomCrop_4": [("rotate", (45,)), ("random crop", (720, 1280))],
    "Random_ScaleCrop": [("random crop", (960, 960)), ("rescale", (0.65, 1.35))],
    "RandomBrightnessContrast": [("brightness contrast", (0.2, 0.2))],
    "Rescale_RandomCrop_1": [("rescale", (0.7, 1.3)), ("random crop", (720, 960))],
    "Rescale_RandomCrop_2": [("rescale", (0.7, 1.3)), ("random crop", (540, 720))],
    "Rescale_RandomCrop_3": [("rescale", (0.7, 1.3)), ("random crop", (720, 1280))],
    "Rescale_CenterCrop": [("rescale", (0.7, 1.3)), ("center crop", (720, 1280))],
    "Rescale_Rotate45_RandomCrop_1": [("rotate", (45,)), ("rescale", (0.7, 1.3)), ("random crop", (720, 960))],
    "Rescale_Rotate45_RandomCrop_2": [("rotate", (45,)), ("rescale", (0.7, 1.3)), ("random crop", (540, 720))],
    "Rescale_Rotate45_RandomCrop_3": [("rotate", (45,)), ("rescale", (0.7, 1.3)), ("random crop", (720, 1280))],
    "Rescale_Rotate45_CenterCrop": [("rotate", (45,)), ("rescale", (0.7, 1.3)), ("center crop", (720, 1280))],
}
"""Name -> steps in order. A crop has its height and width, "rotate" its largest angle in degrees, "rescale" its
smallest and largest factor, and "brightness contrast" its largest change of contrast and of brightness."""


def sample_published(name: str, rng: np.random.Generator) -> tuple[float, ...]:
    """Sample the QUANTITIES of one variant as the published pipelines do."""
    affine, (width, height), contrast, brightness = np.eye(3), FRAME_SIZE, 1.0, 0.0
    for step, values in PUBLISHED[name]:
        change = np.eye(3)
        if step == "rotate":
            centre = ((width - 1) / 2, (height - 1) / 2)
            change[:2] = cv2.getRotationMatrix2D(centre, rng.uniform(-values[0], values[0]), 1.0)
        elif step == "rescale":
            factor = rng.uniform(*values)
            change[0, 0] = change[1, 1] = factor
            width, height = int(width * factor), int(height * factor)
        elif step == "brightness contrast":
            contrast, brightness = 1 + rng.uniform(-values[0], values[0]), rng.uniform(-values[1], values[1])
        else:
            crop_h, crop_w = (int(value) for value in values)
            x, y = (width - crop_w) // 2, (height - crop_h) // 2
            if step == "random crop":
                x, y = int((width - crop_w) * rng.random()), int((height - crop_h) * rng.random())
            change[:2, 2] = -x, -y
            width, height = crop_w, crop_h
        affine = change @ affine
    return *affine[0, :2], *affine[:2, 2], width, height, contrast, brightness


def sample_kp_ray(recipe: Recipe, number: int) -> tuple[float, ...]:
    """Sample the QUANTITIES of one variant as kp_ray does; `number` stands for the source's name."""
    seed = variant_seed(0, str(number), recipe.fingerprint, 0)
    result = sample_parameters(recipe, *FRAME_SIZE, seed)
    return *result.affine[0, :2], *result.affine[:, 2], result.width, result.height, result.contrast, result.brightness


def test_the_built_in_recipes_are_the_27_published_ones() -> None:
    assert list(RECIPES) == list(PUBLISHED)
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    assert len({recipe.fingerprint for recipe in RECIPES.values()}) == 27


@pytest.mark.parametrize("name", PUBLISHED)
def test_variants_are_distributed_as_the_published_ones(name: str) -> None:
    rng = np.random.default_rng(0)
    published = np.array([sample_published(name, rng) for _ in range(NUM_SAMPLES)]).T
    sampled = np.array([sample_kp_ray(RECIPES[name], number) for number in range(NUM_SAMPLES)]).T
    p_values = {
        quantity: ks_2samp(expected, actual).pvalue
        for quantity, expected, actual in zip(QUANTITIES, published, sampled, strict=True)
        if np.ptp(expected) > 0 or np.ptp(actual) > 0
    }
    assert {quantity: p for quantity, p in p_values.items() if p < MIN_P_VALUE} == {}
    constant_indices = [number for number, quantity in enumerate(QUANTITIES) if quantity not in p_values]
    np.testing.assert_allclose(sampled[constant_indices, 0], published[constant_indices, 0], atol=1e-9)


def test_random_scale_crop_samples_its_whole_range_of_scales() -> None:
    scales = [math.hypot(*sample_kp_ray(RECIPES["Random_ScaleCrop"], number)[:2]) for number in range(NUM_SAMPLES)]
    assert 0.65 <= min(scales) < 0.66
    assert 1.34 < max(scales) <= 1.35
    for number, scale in enumerate(scales[:100]):
        assert sample_kp_ray(RECIPES["Random_ScaleCrop"], number)[4:6] == (int(960 * scale), int(960 * scale))


# Deliberate differences from the published pipelines.


def test_a_random_crop_can_lie_at_the_far_edge_unlike_a_published_one() -> None:
    recipe = Recipe("crop", crop_hw=(10, 10))
    offsets = {sample_parameters(recipe, 11, 11, seed, scale_with_frame=False).crop_xy for seed in range(100)}
    assert offsets == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_labels_follow_a_rescaled_image_exactly_unlike_published_labels() -> None:
    for number in range(100):
        seed = variant_seed(0, str(number), RECIPES["Rescale_CenterCrop"].fingerprint, 0)
        parameters = sample_parameters(RECIPES["Rescale_CenterCrop"], *FRAME_SIZE, seed)
        # The published code resizes to int(1920 * scale) px, which moves pixels by up to 1 px against their labels.
        assert parameters.affine[0, 0] == parameters.affine[1, 1] == parameters.scale


def test_an_image_is_rotated_about_its_exact_centre_unlike_a_published_one() -> None:
    centre: FloatArray = np.array([[(1920 - 1) / 2, (1080 - 1) / 2]])
    for number in range(20):
        seed = variant_seed(0, str(number), RECIPES["Rotate45"].fingerprint, 0)
        affine = sample_parameters(RECIPES["Rotate45"], *FRAME_SIZE, seed).affine
        np.testing.assert_allclose(apply_affine(affine, centre), centre, atol=1e-9)
