"""A user's own Albumentations pipeline as a recipe."""

import json
import os
from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from kp_ray.errors import DataError, one_line
from kp_ray.images import Image
from kp_ray.keypoints import FloatArray, apply_affine


def albumentations() -> Any:
    """The library, imported when it is first needed: that takes a second, and the fused path does without."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise it asks the network for a newer version
    import albumentations

    return albumentations


@lru_cache(maxsize=64)
def _user_pipelines(serialised: str) -> tuple[Any, Any]:
    """A user's pipeline for the picture, and its twin with constant borders for the keypoints.

    A reflect border makes Albumentations return mirrored copies of every keypoint; the twin draws the same numbers
    and returns each keypoint once.
    """
    A = albumentations()  # noqa: N806
    loaded = A.from_dict(json.loads(serialised))
    whole = isinstance(loaded, A.Compose)
    steps, chance = (list(loaded.transforms), loaded.p) if whole else ([loaded], 1.0)
    twin = deepcopy(steps)
    for step in _all_steps(twin):
        if hasattr(step, "border_mode"):
            step.border_mode = cv2.BORDER_CONSTANT
    points = A.KeypointParams(format="xy", remove_invisible=False)
    return A.Compose(steps, p=chance), A.Compose(twin, p=chance, keypoint_params=points)


def _all_steps(steps: Sequence[Any]) -> list[Any]:
    """The steps and those inside them, outer ones first."""
    return [inner for step in steps for inner in (step, *_all_steps(getattr(step, "transforms", ())))]


def _reseed(pipeline: Any, seed: int) -> None:
    """Seed a pipeline and each of its steps apart.

    `set_random_seed` gives every step the same numbers, so that a large angle always comes with a large scale.
    """
    pipeline.set_random_seed(seed % 2**32)
    steps = _all_steps(pipeline.transforms)
    for step, own in zip(steps, np.random.SeedSequence(seed).generate_state(len(steps)), strict=True):
        step.set_random_seed(int(own))


def run_user_pipeline(
    serialised: str, image: Image, keypoints: FloatArray, seed: int
) -> tuple[Image, FloatArray, FloatArray]:
    """A user's recipe by Albumentations; its affine is NaN if the pipeline is not an affine map."""
    height, width = image.shape[:2]
    labelled = np.isfinite(keypoints[:, :2]).all(axis=1)
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], dtype=float)
    everything = np.vstack([corners, keypoints[labelled, :2]])
    for_picture, for_points = _user_pipelines(serialised)
    _reseed(for_picture, seed)
    _reseed(for_points, seed)
    rgb = cv2.cvtColor(image, cv2.COLOR_BGRA2RGB)
    try:
        picture = for_picture(image=rgb)["image"]
        moved = for_points(image=rgb, keypoints=everything)["keypoints"]
    except Exception as error:  # whatever a transform stumbles over, a crop larger than the picture, say
        reason = one_line(f"{type(error).__name__}: {error}")[:200]
        raise DataError(f"the user recipe fails on it: {reason}") from error
    if len(moved) != 4 + labelled.sum() or picture.dtype != np.uint8 or picture.ndim != 3:
        raise DataError("the user recipe must keep every keypoint and give an 8-bit colour picture")
    result = keypoints.copy()
    result[labelled, :2] = moved[4:]
    origin, right, down = np.asarray(moved[:3], dtype=float)
    affine = np.column_stack([(right - origin) / width, (down - origin) / height, origin])
    if not np.allclose(apply_affine(affine, everything), moved, atol=1e-2):
        affine = np.full((2, 3), np.nan)
    elif np.linalg.det(affine[:, :2]) < 0:
        raise DataError("the user recipe mirrors it and leaves left and right keypoints as they are")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2BGRA), dtype=np.uint8), result, affine
