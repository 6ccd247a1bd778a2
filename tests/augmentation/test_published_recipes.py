"""The 27 recipes against an independent statement of the published pipelines.

The statement below is written from `code/augmentation.py` of hangjoo/dacon_key_point_detection and from what
Albumentations 1.0 did with it, and uses nothing of kp_ray/augmentation. Maps are compared in pixel indices.
"""

import math

import cv2
import numpy as np
import pytest
from scipy.stats import ks_2samp

from kp_ray.augmentation.recipes import RECIPES, Recipe
from kp_ray.augmentation.sampling import sample_parameters, variant_seed
from kp_ray.keypoints import FloatArray, apply_affine

FRAME = (1920, 1080)
NUM_DRAWS = 2000
MIN_P_VALUE = 1e-4
"""Smallest p-value at which two samples count as equal; over 200 pairs are compared, with fixed seeds."""
QUANTITIES = ("a", "b", "x", "y", "width", "height", "contrast", "brightness")
"""The map (x, y) -> (a x + b y + x0, -b x + a y + y0), the variant's size, and the change of its pixels."""

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
    "RandomBrightnessContrast": [("relight", (0.2, 0.2))],
    "Rescale_RandomCrop_1": [("rescale", (0.7, 1.3)), ("random crop", (720, 960))],
    "Rescale_RandomCrop_2": [("rescale", (0.7, 1.3)), ("random crop", (540, 720))],
    "Rescale_RandomCrop_3": [("rescale", (0.7, 1.3)), ("random crop", (720, 1280))],
    "Rescale_CenterCrop": [("rescale", (0.7, 1.3)), ("center crop", (720, 1280))],
    "Rescale_Rotate45_RandomCrop_1": [("rotate", (45,)), ("rescale", (0.7, 1.3)), ("random crop", (720, 960))],
    "Rescale_Rotate45_RandomCrop_2": [("rotate", (45,)), ("rescale", (0.7, 1.3)), ("random crop", (540, 720))],
    "Rescale_Rotate45_RandomCrop_3": [("rotate", (45,)), ("rescale", (0.7, 1.3)), ("random crop", (720, 1280))],
    "Rescale_Rotate45_CenterCrop": [("rotate", (45,)), ("rescale", (0.7, 1.3)), ("center crop", (720, 1280))],
}
"""Name -> steps in order: crops have height and width, `rotate` the largest angle in degrees, `rescale` the smallest
and largest factor, `relight` the largest change of contrast and of brightness."""


def draw_published(name: str, rng: np.random.Generator) -> tuple[float, ...]:
    """Draw the QUANTITIES of one variant as the published pipelines do."""
    affine, (width, height), contrast, brightness = np.eye(3), FRAME, 1.0, 0.0
    for step, values in PUBLISHED[name]:
        change = np.eye(3)
        if step == "rotate":
            centre = ((width - 1) / 2, (height - 1) / 2)
            change[:2] = cv2.getRotationMatrix2D(centre, rng.uniform(-values[0], values[0]), 1.0)
        elif step == "rescale":
            factor = rng.uniform(*values)
            change[0, 0] = change[1, 1] = factor
            width, height = int(width * factor), int(height * factor)
        elif step == "relight":
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


def draw_kp_ray(recipe: Recipe, number: int) -> tuple[float, ...]:
    """Draw the QUANTITIES of one variant as the store does."""
    seed = variant_seed(0, str(number), recipe.fingerprint, 0)
    drawn = sample_parameters(recipe, *FRAME, seed)
    return *drawn.affine[0, :2], *drawn.affine[:, 2], drawn.width, drawn.height, drawn.contrast, drawn.brightness


def test_the_statement_names_every_recipe() -> None:
    assert list(PUBLISHED) == list(RECIPES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_variants_are_distributed_as_the_published_ones(name: str) -> None:
    rng = np.random.default_rng(0)
    published = np.array([draw_published(name, rng) for _ in range(NUM_DRAWS)]).T
    drawn = np.array([draw_kp_ray(RECIPES[name], number) for number in range(NUM_DRAWS)]).T
    p_values = {
        quantity: ks_2samp(expected, actual).pvalue
        for quantity, expected, actual in zip(QUANTITIES, published, drawn, strict=True)
        if np.ptp(expected) > 0 or np.ptp(actual) > 0
    }
    assert {quantity: p for quantity, p in p_values.items() if p < MIN_P_VALUE} == {}
    constant = [number for number, quantity in enumerate(QUANTITIES) if quantity not in p_values]
    np.testing.assert_allclose(drawn[constant, 0], published[constant, 0], atol=1e-9)


def test_every_range_is_drawn_up_to_its_ends() -> None:
    scales = [math.hypot(*draw_kp_ray(RECIPES["Random_ScaleCrop"], number)[:2]) for number in range(NUM_DRAWS)]
    assert 0.65 <= min(scales) < 0.66
    assert 1.34 < max(scales) <= 1.35
    for number, scale in enumerate(scales[:100]):
        assert draw_kp_ray(RECIPES["Random_ScaleCrop"], number)[4:6] == (int(960 * scale), int(960 * scale))


# Where kp_ray departs on purpose.


def test_a_random_crop_also_takes_the_last_offset_which_2021_never_did() -> None:
    recipe, frame = Recipe("crop", crop_hw=(10, 10)), (11, 11)
    offsets = {sample_parameters(recipe, *frame, seed, scale_with_frame=False).crop_xy for seed in range(100)}
    assert offsets == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_image_and_labels_have_one_map_while_2021_rounded_the_rescaled_image_alone() -> None:
    for number in range(100):
        seed = variant_seed(0, str(number), RECIPES["Rescale_CenterCrop"].fingerprint, 0)
        drawn = sample_parameters(RECIPES["Rescale_CenterCrop"], *FRAME, seed)
        # A resize to int(1920 scale) px would map x to x int(1920 scale) / 1920, up to 1 px beside the labels.
        assert drawn.affine[0, 0] == drawn.affine[1, 1] == drawn.scale


def test_the_image_turns_about_the_centre_of_its_pixels_while_2021_turned_it_about_half_a_pixel_beside() -> None:
    centre: FloatArray = np.array([[(1920 - 1) / 2, (1080 - 1) / 2]])
    for number in range(20):
        seed = variant_seed(0, str(number), RECIPES["Rotate45"].fingerprint, 0)
        affine = sample_parameters(RECIPES["Rotate45"], *FRAME, seed).affine
        np.testing.assert_allclose(apply_affine(affine, centre), centre, atol=1e-9)
