"""The built-in recipes as Albumentations pipelines, with which tests and benchmarks compare kp_ray."""

from typing import Any

import cv2

from kp_ray.augmentation.recipes import REFERENCE_HW, Recipe
from kp_ray.augmentation.user_pipeline import import_albumentations


def to_albumentations(recipe: Recipe, width: int = REFERENCE_HW[1], height: int = REFERENCE_HW[0]) -> Any:
    """Build the Albumentations pipeline of a built-in recipe for frames of `width` x `height` pixels.

    The pipeline takes keypoints as pixel indices in format "xy" and removes none. If it rotates, Albumentations 2.0.8
    returns mirrored copies of the keypoints too, because the border is filled by reflection.
    """
    A = import_albumentations()  # noqa: N806
    crop_w, crop_h = recipe.crop_size(width, height, scale_with_frame=True)
    steps: list[Any] = []
    if recipe.rotate_deg:
        limit = (-recipe.rotate_deg, recipe.rotate_deg)
        steps.append(A.Rotate(limit=limit, border_mode=cv2.BORDER_REFLECT_101, p=1))
    if recipe.scale_range:
        low, high = recipe.scale_range
        steps.append(A.RandomScale(scale_limit=(low - 1, high - 1), p=1))
    if recipe.crop_hw:
        crop = A.RandomCrop if recipe.crop == "random" else A.CenterCrop
        steps.append(crop(height=crop_h, width=crop_w, p=1))
    if recipe.crop_scale_range:
        low, high = recipe.crop_scale_range
        steps.append(A.RandomScale(scale_limit=(low - 1, high - 1), p=1))
    if recipe.brightness_contrast:
        steps.append(A.RandomBrightnessContrast(p=1))
    return A.Compose(steps, keypoint_params=A.KeypointParams(format="xy", remove_invisible=False))
