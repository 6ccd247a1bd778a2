"""Validate and run a user's own Albumentations pipelines."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from kp_ray.errors import ConfigError, DataError, describe_unknown_error
from kp_ray.images import Image
from kp_ray.keypoints import FloatArray, apply_affine


def import_albumentations() -> Any:
    """Import Albumentations on first use: the import takes a second, and built-in recipes do not need it."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise the import asks the network for a newer version
    import albumentations

    return albumentations


def validate_pipeline(name: str, pipeline: Mapping[str, Any]) -> str:
    """Check that Albumentations can load a user's pipeline, and return the pipeline as canonical JSON.

    Args:
        name: key of the pipeline in `augment.user_recipes`.
        pipeline: the pipeline as returned by `albumentations.to_dict`.

    Raises:
        ConfigError: Albumentations cannot load the pipeline or would ignore an argument, or a step mirrors images.
    """
    key = f"augment.user_recipes.{name}"
    A = import_albumentations()  # noqa: N806
    try:
        serialised = json.dumps(pipeline, sort_keys=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Albumentations warns even about its own saved pipelines
            loaded_pipeline = A.from_dict(json.loads(serialised))
            _require_same_arguments(json.loads(serialised), A.to_dict(loaded_pipeline))
    except Exception as error:  # Albumentations raises errors of many classes for wrong values
        reason = describe_unknown_error(error)
        raise ConfigError(
            f"{key}: Albumentations cannot load this pipeline ({reason}): save it with albumentations.to_dict"
        ) from error
    if isinstance(loaded_pipeline, A.ReplayCompose):
        raise ConfigError(f"{key}: ReplayCompose is not supported: save the pipeline as albumentations.Compose")
    mirror_classes = (A.HorizontalFlip, A.VerticalFlip, A.Transpose, A.D4)
    mirror = next((step for step in _list_steps([loaded_pipeline]) if isinstance(step, mirror_classes)), None)
    if mirror is not None:
        raise ConfigError(
            f"{key}: {type(mirror).__name__} mirrors the image without exchanging left and right keypoints: drop "
            "this step and set train.flip, which exchanges them"
        )
    return serialised


def _require_same_arguments(saved_value: Any, loaded_value: Any) -> None:
    """Refuse misspelled arguments, because Albumentations only warns about them and loads the pipeline without them.

    Args:
        saved_value: the user's pipeline, or a value inside it.
        loaded_value: the same value, serialised again after loading.

    Raises:
        ValueError: `loaded_value` lacks an argument of `saved_value`; the message names the first.
    """
    if isinstance(saved_value, dict) and isinstance(loaded_value, dict):
        for key, value in saved_value.items():
            if key not in loaded_value:
                raise ValueError(f"the argument {key!r} is unknown")
            _require_same_arguments(value, loaded_value[key])
    elif isinstance(saved_value, list) and isinstance(loaded_value, list | tuple):
        for saved_item, loaded_item in zip(saved_value, loaded_value, strict=False):
            _require_same_arguments(saved_item, loaded_item)


def run_user_pipeline(
    serialised: str, image: Image, keypoints: FloatArray, seed: int
) -> tuple[Image, FloatArray, FloatArray]:
    """Apply a user's pipeline to an image and its keypoints.

    Args:
        serialised: the pipeline, as returned by `validate_pipeline`.
        image: (H, W, 4) BGRX.
        keypoints: (K, 3) x, y, v in pixel indices; NaN where unlabelled.
        seed: seed of the pipeline's random parameters.

    Returns:
        The variant's image (H', W', 4) BGRX, its keypoints (K, 3), and the affine (2, 3) from source to variant, which
        is NaN if the pipeline is not an affine map.

    Raises:
        DataError: the pipeline fails on this image, loses keypoints, does not return an 8-bit color image, or mirrors
            the image.
    """
    height, width = image.shape[:2]
    is_labelled = np.isfinite(keypoints[:, :2]).all(axis=1)
    # The pipeline also moves the frame's corners, because their new positions give its affine.
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], dtype=float)
    points = np.vstack([corners, keypoints[is_labelled, :2]])
    image_pipeline, points_pipeline = _load_pipelines(serialised)
    _seed_steps(image_pipeline, seed)
    _seed_steps(points_pipeline, seed)
    rgb = cv2.cvtColor(image, cv2.COLOR_BGRA2RGB)
    try:
        result = image_pipeline(image=rgb)["image"]
        moved_points = points_pipeline(image=rgb, keypoints=points)["keypoints"]
    except Exception as error:  # a step can raise errors of any class, e.g. if a crop is larger than the image
        raise DataError(f"the user recipe fails on this image: {describe_unknown_error(error)}") from error
    if len(moved_points) != len(points) or result.dtype != np.uint8 or result.ndim != 3:
        raise DataError("the user recipe must keep every keypoint and return an 8-bit color image")
    moved_keypoints = keypoints.copy()
    moved_keypoints[is_labelled, :2] = moved_points[len(corners) :]
    origin, right, down = np.asarray(moved_points[:3], dtype=float)
    affine = np.column_stack([(right - origin) / width, (down - origin) / height, origin])
    if not np.allclose(apply_affine(affine, points), moved_points, atol=1e-2):
        affine = np.full((2, 3), np.nan)
    elif np.linalg.det(affine[:, :2]) < 0:
        raise DataError("the user recipe mirrors this image without exchanging left and right keypoints")
    return np.asarray(cv2.cvtColor(result, cv2.COLOR_RGB2BGRA), dtype=np.uint8), moved_keypoints, affine


@lru_cache(maxsize=64)
def _load_pipelines(serialised: str) -> tuple[Any, Any]:
    """Load a user's pipeline twice: unchanged for the image, and with constant borders for the keypoints.

    With a reflecting border, Albumentations returns mirrored copies of every keypoint too, and a distortion loses
    keypoints outside the image. The second pipeline uses the same random numbers and returns each keypoint once.
    """
    A = import_albumentations()  # noqa: N806
    pipeline = A.from_dict(json.loads(serialised))
    is_compose = isinstance(pipeline, A.Compose)
    steps, probability = (list(pipeline.transforms), pipeline.p) if is_compose else ([pipeline], 1.0)
    points_steps = deepcopy(steps)
    for step in _list_steps(points_steps):
        if hasattr(step, "border_mode"):
            step.border_mode = cv2.BORDER_CONSTANT
        if hasattr(step, "keypoint_remapping_method"):
            step.keypoint_remapping_method = "direct"
    keypoint_params = A.KeypointParams(format="xy", remove_invisible=False)
    return A.Compose(steps, p=probability), A.Compose(points_steps, p=probability, keypoint_params=keypoint_params)


def _list_steps(steps: Sequence[Any]) -> list[Any]:
    """List the steps of a pipeline, each followed by the steps nested in it."""
    return [nested for step in steps for nested in (step, *_list_steps(getattr(step, "transforms", ())))]


def _seed_steps(pipeline: Any, seed: int) -> None:
    """Seed a pipeline and each of its steps with different seeds.

    `Compose.set_random_seed` gives every step the same random numbers, so that, for example, a large angle would always
    occur together with a large scale.
    """
    pipeline.set_random_seed(seed % 2**32)
    steps = _list_steps(pipeline.transforms)
    for step, step_seed in zip(steps, np.random.SeedSequence(seed).generate_state(len(steps)), strict=True):
        step.set_random_seed(int(step_seed))
