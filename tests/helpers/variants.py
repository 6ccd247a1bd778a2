"""Generated images with a dot at every keypoint, their variants, and measurements of the dots."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from kp_ray.augmentation.recipes import RECIPES, Recipe
from kp_ray.augmentation.variants import Source, Variant, VariantSettings, augment_source
from kp_ray.errors import DataError
from kp_ray.keypoints import FloatArray, apply_affine, is_inside_image
from tests.helpers.images import BGR, to_jpeg

SIZES = [(480, 270), (333, 500)]
"""Width and height in pixels of the test images."""
COPIES_PER_RECIPE = 3
"""Number of variants per recipe."""
MARGIN_PX = 6
"""A dot nearer to the edge of a variant is not measured, because it may be cut off."""
DOT_SIGMA_PX = 2.5
MIN_DOT_CHANGE = 14
"""Smallest change, in levels of 255, of a pixel that shows a dot; JPEG compression changes pixels by less."""


def _draw_background(width: int, height: int) -> FloatArray:
    """Draw smooth noise (H, W, 3): brightness with three grain sizes, and color."""
    rng = np.random.default_rng(width)
    clouds: Any = [cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), sigma) * sigma for sigma in (1.5, 6, 20)]
    colors = cv2.GaussianBlur(rng.normal(0, 1, (height, width, 3)), (0, 0), 12) * 12 * np.sqrt(12)
    light = sum(clouds) / np.std(sum(clouds))
    return np.asarray((120 + 22 * light[..., None] + 8 * colors / np.std(colors)).clip(60, 180))


@cache
def make_keypoints(width: int, height: int) -> FloatArray:
    """Make keypoints (24, 3): 20 inside the image and far from each other, two outside, two unlabelled."""
    rng = np.random.default_rng(height)
    columns, rows = (6, 4) if width > height else (4, 6)
    across, down = np.linspace(24, width - 25, columns), np.linspace(24, height - 25, rows)
    xy = np.array([(x, y) for y in down for x in across]) + rng.uniform(-5, 5, (24, 2))
    xy[3], xy[9] = (-7.5, height / 3), (width / 2, height + 0.25)
    xy[[5, 20]] = np.nan
    return np.column_stack([xy, np.where(np.isnan(xy[:, 0]), 0, np.where(np.arange(24) % 3 == 0, 1, 2))])


def keypoints_with_dots(width: int, height: int) -> npt.NDArray[np.bool_]:
    """Return (24,) booleans: True where a keypoint of `make_keypoints` is inside the image and has a dot."""
    return is_inside_image(make_keypoints(width, height)[:, :2], width, height)


@cache
def make_dotted_image(width: int, height: int, dots: bool = True) -> BGR:
    """Draw a background with a Gaussian dot at every keypoint; without `dots`, the background alone.

    A dot is bright where the background is dark, and dark where it is bright.
    """
    pixels = _draw_background(width, height)
    ys, xs = np.mgrid[:height, :width]
    for number, (x, y, _) in enumerate(make_keypoints(width, height)):
        if dots and keypoints_with_dots(width, height)[number]:
            dot = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * DOT_SIGMA_PX**2))
            brightness = pixels[round(y), round(x)].mean()
            pixels = pixels + (60 if brightness < 120 else -60) * dot[..., None]
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


def make_variants(
    content: bytes, keypoints: FloatArray, recipes: Sequence[tuple[Recipe, int]], **settings: Any
) -> list[Variant]:
    """Make the variants of a source.

    Args:
        content: the encoded source image.
        keypoints: (K, 3) x, y, v.
        recipes: recipes with their numbers of copies.
        settings: fields of `VariantSettings` that replace this function's defaults.

    Raises:
        DataError: a recipe cannot be applied; the message is that of the first such recipe.
    """
    source = Source("a/001_B-0000007.jpg", "001", "B", 7, "train", keypoints)
    defaults = VariantSettings(seed=5, jpeg_quality=95, scale_with_frame=True, box_margin_px=0.0)
    variants, refusals = augment_source(content, source, recipes, replace(defaults, **settings))
    if refusals:
        raise DataError(next(iter(refusals.values())))
    return variants


@cache
def variants_by_recipe(width: int, height: int, dots: bool = True) -> dict[str, list[Variant]]:
    """Make COPIES_PER_RECIPE variants of `make_dotted_image` for each built-in recipe; return them by recipe."""
    all_recipes = [(recipe, COPIES_PER_RECIPE) for recipe in RECIPES.values()]
    variants = make_variants(
        to_jpeg(make_dotted_image(width, height, dots)), make_keypoints(width, height), all_recipes
    )
    return {name: [variant for variant in variants if variant.recipe == name] for name in RECIPES}


def decode_variant(variant: Variant) -> BGR:
    """Decode a variant's image (H, W, 3), BGR."""
    return np.asarray(simplejpeg.decode_jpeg(variant.image, "BGR", strict=True))


def _brightness_difference(variant: Variant, plain_variant: Variant) -> FloatArray:
    """Return the absolute difference (H, W) of brightness, the mean of a pixel's colors, in levels of 255."""
    dotted, plain = (decode_variant(item).astype(float).mean(axis=2) for item in (variant, plain_variant))
    return np.asarray(np.abs(dotted - plain))


def measure_dot_errors(
    variant: Variant, plain_variant: Variant, has_dot: npt.NDArray[np.bool_], scale: float
) -> list[float]:
    """Measure the distance in pixels between the centroid of each dot and its keypoint.

    Dots within MARGIN_PX of the edge are skipped.

    Args:
        variant: variant of an image with dots.
        plain_variant: the same variant of the image without dots.
        has_dot: (24,) True for the keypoints to measure.
        scale: scale factor of the variant's affine.
    """
    difference = _brightness_difference(variant, plain_variant)
    reach = int(np.ceil(9 * max(scale, 0.5)))
    errors = []
    for (x, y, v), dot in zip(variant.keypoints, has_dot, strict=True):
        is_clear_of_edges = (
            MARGIN_PX < x < variant.width - 1 - MARGIN_PX and MARGIN_PX < y < variant.height - 1 - MARGIN_PX
        )
        if not (dot and v > 0 and is_clear_of_edges):
            continue
        left, top = max(0, round(x) - reach), max(0, round(y) - reach)
        window = difference[top : round(y) + reach + 1, left : round(x) + reach + 1].copy()
        assert window.max() > 20, "the dot is missing"
        window[window < 0.15 * window.max()] = 0
        ys, xs = np.mgrid[: window.shape[0], : window.shape[1]]
        centre = np.array([(xs * window).sum(), (ys * window).sum()]) / window.sum() + (left, top)
        errors.append(float(np.hypot(*(centre - (x, y)))))
    return errors


@cache
def make_random_image(width: int, height: int, seed: int) -> tuple[FloatArray, BGR, BGR]:
    """Make random keypoints (24, 3), an image with a dot at each keypoint inside the image, and the image without dots.

    The keypoints are far from each other; some lie at an edge, some outside; about a quarter are unlabelled.
    """
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.arange(-0.5, width / 30 + 1), np.arange(-0.5, height / 30 + 1))
    cells = rng.permutation(np.stack([across.ravel(), down.ravel()], axis=1))[:18]
    xy = np.full((24, 2), np.nan)
    xy[rng.permutation(24)[: len(cells)]] = cells * 30 + rng.uniform(-3, 3, cells.shape)
    grain = rng.uniform(108, 148, (height // 16 + 2, width // 16 + 2, 3)).astype(np.float32)
    plain = np.asarray(cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float64)
    ys, xs = np.mgrid[:height, :width]
    dotted = plain.copy()
    for x, y in xy[is_inside_image(xy, width, height)]:
        dot = np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * DOT_SIGMA_PX**2))
        dotted += rng.choice([-70, 70]) * dot[..., None]
    keypoints = np.column_stack([xy, np.where(np.isnan(xy[:, 0]), 0, rng.integers(1, 3, 24))])
    return keypoints, *(np.rint(image.clip(0, 255)).astype(np.uint8) for image in (dotted, plain))  # type: ignore[return-value]


def reflect_into_image(xy: FloatArray, width: int, height: int) -> FloatArray:
    """Map points (N, 2) to the pixels of an image that a reflect-101 border shows at these points."""
    last_pixel = np.array([width - 1, height - 1])
    return np.asarray(last_pixel - np.abs(np.mod(xy, 2 * last_pixel) - last_pixel))


def count_stray_pixels(variant: Variant, plain_variant: Variant, dot_xy: FloatArray, width: int, height: int) -> int:
    """Count the pixels far from every dot that differ between a variant and the same variant without dots.

    A dot's mirror image in the reflecting border counts as a dot.

    Args:
        variant, plain_variant: the variant of an image with dots, and of the image without dots.
        dot_xy: (N, 2) coordinates of the dots in the source.
        width, height: size of the source in pixels.
    """
    is_changed = _brightness_difference(variant, plain_variant) > MIN_DOT_CHANGE
    inverse = np.linalg.inv(np.vstack([variant.affine, [0, 0, 1]]))[:2]
    source_pixels = reflect_into_image(
        apply_affine(inverse, np.argwhere(is_changed)[:, ::-1].astype(float)), width, height
    )
    scale = np.sqrt(abs(np.linalg.det(variant.affine[:, :2])))
    # The radius within which a dot changes pixels, plus 1.5 pixels of the variant for the interpolation.
    reach = 2.2 * DOT_SIGMA_PX + 1.5 / scale
    distances = np.linalg.norm(source_pixels[:, None] - dot_xy[None], axis=2)
    return int((distances.min(axis=1, initial=np.inf) > reach).sum())
