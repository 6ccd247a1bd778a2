"""One source image and its recipes -> augmented rows: decode once, one affine per variant, encode.

Only the output window of a variant is resampled, once, from the source padded by reflection; the padded source is
shared by all of its variants. A picture that a recipe leaves as it is (`Original`) keeps the source's own bytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kp_ray.augmentation.recipes import Recipe
from kp_ray.augmentation.sampling import sample_parameters, variant_seed
from kp_ray.augmentation.user_pipeline import run_user_pipeline
from kp_ray.augmentation.warp import PaddedSource, relight
from kp_ray.errors import KpRayError
from kp_ray.images import decode, encode
from kp_ray.keypoints import FloatArray, apply_affine, inside, visible_box

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """An original image and its labels; `keypoints` is (K, 3) x, y, v with NaN where unlabelled."""

    name: str
    scene: str
    camera: str
    frame: int
    split: str
    keypoints: FloatArray


def augment_source(
    content: bytes,
    source: Source,
    recipes: Sequence[tuple[Recipe, int]],
    *,
    seed: int,
    jpeg_quality: int,
    scale_with_frame: bool,
    box_margin_px: float,
) -> tuple[list[Row], dict[str, str]]:
    """The rows of one source, every recipe's copies in order, and the reasons of recipes that cannot be applied to it.

    A recipe gives all of its copies or none, whatever other recipes do.

    Args:
        content: the source's encoded bytes.
        recipes: recipes with their number of copies.
        seed: the store's seed.
        jpeg_quality: of every picture that is encoded anew (4:2:0).
        scale_with_frame: scale the recipes' sizes when the frame is not 1920x1080.
        box_margin_px: added around the labelled points.

    Raises:
        DataError: the picture cannot be used, with the reason.
    """
    image, plain_jpeg = decode(content)
    height, width = image.shape[:2]
    padded = PaddedSource(image)

    def rows_of(recipe: Recipe, copies: int) -> Iterator[Row]:
        for copy in range(copies):
            seed_of_variant = variant_seed(seed, source.name, recipe.fingerprint, copy)
            if recipe.user is not None:
                picture, keypoints, affine = run_user_pipeline(recipe.user, image, source.keypoints, seed_of_variant)
                encoded = encode(picture, jpeg_quality)
                out_h, out_w = picture.shape[:2]
            else:
                drawn = sample_parameters(recipe, width, height, seed_of_variant, scale_with_frame=scale_with_frame)
                keypoints = source.keypoints.copy()
                keypoints[:, :2] = apply_affine(drawn.affine, keypoints[:, :2])
                affine, out_w, out_h = drawn.affine, drawn.width, drawn.height
                untouched = (out_w, out_h) == (width, height) and np.array_equal(affine, np.eye(2, 3))
                if untouched and plain_jpeg and not recipe.brightness_contrast:
                    encoded = content
                else:
                    encoded = encode(relight(padded.window(drawn), drawn), jpeg_quality)
            yield {
                **_labels(keypoints, out_w, out_h, box_margin_px),
                "source": source.name,
                "scene": source.scene,
                "camera": source.camera,
                "frame": source.frame,
                "split": source.split,
                "recipe": recipe.name,
                "copy": copy,
                "width": out_w,
                "height": out_h,
                "image": encoded,
                "affine": affine.ravel(),
                "seed": seed_of_variant,
            }

    rows: list[Row] = []
    refused: dict[str, str] = {}
    for recipe, copies in recipes:
        try:
            rows += list(rows_of(recipe, copies))
        except KpRayError as error:
            refused[recipe.name] = str(error)
    return rows, refused


def _labels(keypoints: FloatArray, width: int, height: int, box_margin_px: float) -> Row:
    stored = keypoints.astype(np.float32)  # visibility is decided on the numbers that are stored
    stored[~inside(stored[:, :2].astype(np.float64), width, height), 2] = 0
    box = visible_box(stored.astype(np.float64), width, height, box_margin_px)
    return {
        "keypoints": stored.ravel(),
        "bbox_xyxy": box.astype(np.float32),
        "num_visible": int((stored[:, 2] > 0).sum()),
    }
