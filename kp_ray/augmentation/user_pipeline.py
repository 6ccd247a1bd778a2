"""A user's own Albumentations pipeline: import of the library, validation of the pipeline, and running it."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from kp_ray.errors import ConfigError, DataError, one_line
from kp_ray.images import Image
from kp_ray.keypoints import FloatArray, apply_affine


def import_albumentations() -> Any:
    """Import Albumentations when it is first needed: it takes a second, and the named recipes do without it."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise it looks for a newer version on the network
    import albumentations

    return albumentations


def validate_pipeline(name: str, pipeline: Mapping[str, Any]) -> str:
    """Return a user's pipeline as canonical JSON, after it was loaded once.

    Args:
        name: key of the pipeline in `augment.user_recipes`.
        pipeline: what `albumentations.to_dict` returned for it.

    Raises:
        ConfigError: Albumentations cannot load it or would ignore an argument, or it exchanges left and right.
    """
    key = f"augment.user_recipes.{name}"
    A = import_albumentations()  # noqa: N806
    try:
        serialised = json.dumps(pipeline, sort_keys=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # raised even for pipelines that to_dict has just saved
            loaded = A.from_dict(json.loads(serialised))
            _require_same_arguments(json.loads(serialised), A.to_dict(loaded))
    except Exception as error:  # Albumentations raises many classes on wrong values
        reason = one_line(f"{type(error).__name__}: {error}")
        raise ConfigError(f"{key}: not a pipeline saved by albumentations.to_dict: {reason}") from error
    mirrors = (A.HorizontalFlip, A.VerticalFlip, A.Transpose, A.D4)
    mirror = next((step for step in _list_steps([loaded]) if isinstance(step, mirrors)), None)
    if mirror is not None:
        raise ConfigError(
            f"{key}: {type(mirror).__name__} mirrors the picture and leaves left and right "
            "keypoints as they are: drop it and set train.flip, which exchanges them"
        )
    return serialised


def _require_same_arguments(saved: Any, loaded: Any) -> None:
    """Refuse arguments that Albumentations ignores, with no more than a warning, when it loads a pipeline.

    Args:
        saved: a pipeline, or a part of one, as the user gave it.
        loaded: the same, saved again after loading.

    Raises:
        ValueError: an argument is lost; the message names the first.
    """
    if isinstance(saved, dict) and isinstance(loaded, dict):
        for key, value in saved.items():
            if key not in loaded:
                raise ValueError(f"Argument(s) '{key}' are not valid")
            _require_same_arguments(value, loaded[key])
    elif isinstance(saved, list) and isinstance(loaded, list | tuple):
        for saved_item, loaded_item in zip(saved, loaded, strict=False):
            _require_same_arguments(saved_item, loaded_item)


def run_user_pipeline(
    serialised: str, image: Image, keypoints: FloatArray, seed: int
) -> tuple[Image, FloatArray, FloatArray]:
    """Apply a user's pipeline to a picture and its keypoints.

    Args:
        serialised: the pipeline, as `validate_pipeline` returned it.
        image: (H, W, 4) BGRX.
        keypoints: (K, 3) x, y, v in pixel indices; NaN where unlabelled.
        seed: decides what the pipeline draws.

    Returns:
        The new picture (H', W', 4) BGRX, its keypoints (K, 3), and the affine (2, 3) from source to variant; the affine
        is NaN if the pipeline is not an affine map.

    Raises:
        DataError: the pipeline fails on this picture, loses keypoints, gives no 8-bit colour picture, or mirrors it.
    """
    height, width = image.shape[:2]
    labelled = np.isfinite(keypoints[:, :2]).all(axis=1)
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], dtype=float)
    points = np.vstack([corners, keypoints[labelled, :2]])
    picture_pipeline, points_pipeline = _load_pipelines(serialised)
    _seed_steps(picture_pipeline, seed)
    _seed_steps(points_pipeline, seed)
    rgb = cv2.cvtColor(image, cv2.COLOR_BGRA2RGB)
    try:
        picture = picture_pipeline(image=rgb)["image"]
        moved = points_pipeline(image=rgb, keypoints=points)["keypoints"]
    except Exception as error:  # a step can raise any class, e.g. where a crop is larger than the picture
        raise DataError(f"the user recipe fails on it: {type(error).__name__}: {error}") from error
    if len(moved) != len(points) or picture.dtype != np.uint8 or picture.ndim != 3:
        raise DataError("the user recipe must keep every keypoint and give an 8-bit colour picture")
    moved_keypoints = keypoints.copy()
    moved_keypoints[labelled, :2] = moved[len(corners) :]
    origin, right, down = np.asarray(moved[:3], dtype=float)
    affine = np.column_stack([(right - origin) / width, (down - origin) / height, origin])
    if not np.allclose(apply_affine(affine, points), moved, atol=1e-2):
        affine = np.full((2, 3), np.nan)
    elif np.linalg.det(affine[:, :2]) < 0:
        raise DataError("the user recipe mirrors it and leaves left and right keypoints as they are")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2BGRA), dtype=np.uint8), moved_keypoints, affine


@lru_cache(maxsize=64)
def _load_pipelines(serialised: str) -> tuple[Any, Any]:
    """Load a user's pipeline for the picture, and a twin of it with constant borders for the keypoints.

    With a reflecting border Albumentations returns mirrored copies of every keypoint; the twin draws the same numbers
    and returns each keypoint once.
    """
    A = import_albumentations()  # noqa: N806
    loaded = A.from_dict(json.loads(serialised))
    is_compose = isinstance(loaded, A.Compose)
    steps, probability = (list(loaded.transforms), loaded.p) if is_compose else ([loaded], 1.0)
    twin_steps = deepcopy(steps)
    for step in _list_steps(twin_steps):
        if hasattr(step, "border_mode"):
            step.border_mode = cv2.BORDER_CONSTANT
    keypoint_params = A.KeypointParams(format="xy", remove_invisible=False)
    return A.Compose(steps, p=probability), A.Compose(twin_steps, p=probability, keypoint_params=keypoint_params)


def _list_steps(steps: Sequence[Any]) -> list[Any]:
    """List the steps of a pipeline and the steps nested in them, outer ones first."""
    return [nested for step in steps for nested in (step, *_list_steps(getattr(step, "transforms", ())))]


def _seed_steps(pipeline: Any, seed: int) -> None:
    """Seed a pipeline and each of its steps separately.

    `Compose.set_random_seed` gives every step the same random numbers: a large angle would always come with a large
    scale.
    """
    pipeline.set_random_seed(seed % 2**32)
    steps = _list_steps(pipeline.transforms)
    for step, step_seed in zip(steps, np.random.SeedSequence(seed).generate_state(len(steps)), strict=True):
        step.set_random_seed(int(step_seed))
