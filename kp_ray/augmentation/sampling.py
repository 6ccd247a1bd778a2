"""Sample a variant's parameters from its seed, and compute its affine map."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from kp_ray.augmentation.recipes import Recipe
from kp_ray.errors import DataError
from kp_ray.keypoints import FloatArray


def variant_seed(seed: int, source: str, fingerprint: str, copy: int) -> int:
    """Compute the uint64 seed of a variant, which depends on the arguments only.

    Args:
        seed: `seed` of the config.
        source: name of the source.
        fingerprint: fingerprint of the recipe.
        copy: number of the copy, from 0.
    """
    key = "\0".join([str(seed), source, fingerprint, str(copy)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, eq=False)
class VariantParameters:
    """The parameters of one variant of a built-in recipe.

    Attributes:
        affine: (2, 3) matrix from source to variant, in pixel indices.
        width, height: size of the variant in pixels.
        angle_deg: angle of the rotation in degrees, counter-clockwise as displayed.
        scale: scale factor of the frame before the crop.
        crop_xy: top-left pixel of the crop in the rotated and rescaled frame.
        crop_scale: scale factor of the crop.
        contrast, brightness: a pixel's value becomes value * contrast + 255 * brightness.
    """

    affine: FloatArray
    width: int
    height: int
    angle_deg: float = 0.0
    scale: float = 1.0
    crop_xy: tuple[int, int] = (0, 0)
    crop_scale: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0


def sample_parameters(
    recipe: Recipe, width: int, height: int, seed: int, *, scale_with_frame: bool = True
) -> VariantParameters:
    """Sample the parameters of a built-in recipe for a source of this size.

    The distributions are those of the published pipelines, with the three differences that docs/from-the-notebook.md
    names. Centre of rotation, and rounding of sizes and offsets, are those of Albumentations 2.0.8.

    Args:
        recipe: a recipe without a `user_pipeline`.
        width, height: size of the source in pixels.
        seed: seed of the variant, see `variant_seed`.
        scale_with_frame: True scales the crop from REFERENCE_HW to this frame; False takes its size as pixels.

    Raises:
        DataError: the crop is larger than the rescaled frame.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    angle = rng.uniform(-recipe.rotate_deg, recipe.rotate_deg) if recipe.rotate_deg else 0.0
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    cx, cy = width / 2 - 0.5, height / 2 - 0.5
    scale = rng.uniform(*recipe.scale_range) if recipe.scale_range else 1.0
    scaled_w, scaled_h = int(width * scale), int(height * scale)
    crop_w, crop_h = recipe.crop_size(width, height, scale_with_frame=scale_with_frame)
    if not recipe.crop_hw:
        crop_w, crop_h = scaled_w, scaled_h
    if scale_with_frame:  # in small frames, rounding can make the crop a pixel larger than the rescaled frame
        crop_w, crop_h = min(crop_w, scaled_w), min(crop_h, scaled_h)
    if crop_w > scaled_w or crop_h > scaled_h:
        raise DataError(
            f"recipe {recipe.name}: its crop of {crop_w}x{crop_h} px is larger than the frame "
            f"({scaled_w}x{scaled_h} px): drop the recipe, or set augment.oversize: scale"
        )
    x = y = 0
    if recipe.crop_hw and recipe.crop == "random":
        y, x = int((scaled_h - crop_h + 1) * rng.random()), int((scaled_w - crop_w + 1) * rng.random())
    elif recipe.crop_hw:
        y, x = (scaled_h - crop_h) // 2, (scaled_w - crop_w) // 2
    crop_scale = rng.uniform(*recipe.crop_scale_range) if recipe.crop_scale_range else 1.0
    # Rotate about the centre, multiply by scale, subtract the crop's corner, multiply by crop_scale.
    shift_x = crop_scale * (scale * (cx - cos * cx - sin * cy) - x)
    shift_y = crop_scale * (scale * (cy + sin * cx - cos * cy) - y)
    total_scale = crop_scale * scale
    affine = np.array(
        [
            [total_scale * cos, total_scale * sin, shift_x],
            [0.0 - total_scale * sin, total_scale * cos, shift_y],  # 0.0 - x is never -0.0, as -x can be
        ]
    )
    contrast, brightness = 1.0, 0.0
    if recipe.brightness_contrast:
        contrast, brightness = 1 + rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
    out_w, out_h = max(1, int(crop_w * crop_scale)), max(1, int(crop_h * crop_scale))
    return VariantParameters(affine, out_w, out_h, angle, scale, (x, y), crop_scale, contrast, brightness)
