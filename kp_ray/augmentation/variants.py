"""Make the variants of one source: decode it once, apply one affine map per variant, encode.

A variant's pixels are resampled once, from the source padded by reflection; all variants of a source share the padded
source. If a recipe changes nothing (`Original`), the bytes of an upright JPEG source are stored unchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kp_ray.augmentation.recipes import Recipe
from kp_ray.augmentation.sampling import sample_parameters, variant_seed
from kp_ray.augmentation.user_pipeline import run_user_pipeline
from kp_ray.augmentation.warp import PaddedSource, change_brightness_contrast
from kp_ray.errors import DataError
from kp_ray.images import Image, decode, encode
from kp_ray.keypoints import FloatArray, apply_affine, is_inside_image, labelled_box


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """An original labelled image.

    Attributes:
        name: path of the image inside the folder of images.
        scene, camera, frame: parsed from the name.
        split: "train" or "val".
        keypoints: (K, 3) x, y, v in pixel indices; NaN where unlabelled.
    """

    name: str
    scene: str
    camera: str
    frame: int
    split: str
    keypoints: FloatArray


@dataclass(frozen=True, slots=True)
class VariantSettings:
    """The settings that are the same for all variants of a store.

    Attributes:
        seed: `seed` of the config.
        jpeg_quality: JPEG quality of encoded variants, whose color has half the resolution (4:2:0).
        scale_with_frame: True scales the recipes' crops from REFERENCE_HW to the source's size; False takes their sizes
            as pixels of the source.
        box_margin_px: margin in pixels of the box around the labelled points.
    """

    seed: int
    jpeg_quality: int
    scale_with_frame: bool
    box_margin_px: float


@dataclass(frozen=True, eq=False, slots=True)
class Variant:
    """One variant of a source and its labels, in pixel indices of the variant.

    Attributes:
        source: the source.
        recipe: name of the recipe.
        copy: number of the copy, from 0.
        seed: uint64 seed of the recipe's random parameters.
        width, height: size in pixels.
        image: the variant as a JPEG file.
        affine: (2, 3) matrix from source to variant; NaN if a user's pipeline is not an affine map.
        keypoints: (K, 3) x, y, v; x and y are NaN where unlabelled; v = 0 outside the variant.
        bbox_xyxy: (4,) box around the labelled points with its margin, clipped to the variant.
        num_visible: number of keypoints with v > 0.
    """

    source: Source
    recipe: str
    copy: int
    seed: int
    width: int
    height: int
    image: bytes
    affine: FloatArray
    keypoints: npt.NDArray[np.float32]
    bbox_xyxy: npt.NDArray[np.float32]
    num_visible: int

    def to_row(self) -> dict[str, Any]:
        """Return the variant as a row of a store (`StoredRow`)."""
        return {
            "source": self.source.name,
            "scene": self.source.scene,
            "camera": self.source.camera,
            "frame": self.source.frame,
            "split": self.source.split,
            "recipe": self.recipe,
            "copy": self.copy,
            "seed": self.seed,
            "width": self.width,
            "height": self.height,
            "image": self.image,
            "affine": self.affine.ravel(),
            "keypoints": self.keypoints.ravel(),
            "bbox_xyxy": self.bbox_xyxy,
            "num_visible": self.num_visible,
        }


def augment_source(
    content: bytes, source: Source, recipes: Sequence[tuple[Recipe, int]], settings: VariantSettings
) -> tuple[list[Variant], dict[str, str]]:
    """Make all variants of one source.

    Args:
        content: the encoded source image.
        source: the source.
        recipes: recipes with their numbers of copies.
        settings: settings of the store.

    Returns:
        The variants, recipe by recipe and copy by copy, and a dict of the recipes that cannot be applied to the source:
        recipe name -> reason. A recipe makes all of its copies or none. A variant does not depend on the other recipes.

    Raises:
        DataError: the image cannot be decoded; the message gives the reason.
    """
    image = _SourceImage(content)
    variants: list[Variant] = []
    refusals: dict[str, str] = {}
    for recipe, copies in recipes:
        try:
            variants += [_make_variant(image, source, recipe, copy, settings) for copy in range(copies)]
        except DataError as error:
            refusals[recipe.name] = str(error)
    return variants, refusals


class _SourceImage:
    """The decoded image of a source, which all its variants share.

    Attributes:
        content: the encoded image.
        pixels: (H, W, 4) BGRX.
        is_storable: True if `content` can be stored unchanged as the image of a variant that equals the source.
        padded_source: the image padded by reflection, from which the built-in recipes' variants are resampled.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.pixels, self.is_storable = decode(content)
        self.padded_source = PaddedSource(self.pixels)


def _make_variant(image: _SourceImage, source: Source, recipe: Recipe, copy: int, settings: VariantSettings) -> Variant:
    """Make one variant.

    Raises:
        DataError: the recipe cannot be applied to this image.
    """
    seed = variant_seed(settings.seed, source.name, recipe.fingerprint, copy)
    jpeg: bytes | None = None
    if recipe.user_pipeline is not None:
        pixels, keypoints, affine = run_user_pipeline(recipe.user_pipeline, image.pixels, source.keypoints, seed)
    else:
        pixels, keypoints, affine = _apply_built_in_recipe(image, source.keypoints, recipe, seed, settings)
        if pixels is image.pixels and image.is_storable:
            jpeg = image.content
    height, width = pixels.shape[:2]
    # Round before testing which points are inside, so that visibility agrees with the stored coordinates.
    stored_keypoints = keypoints.astype(np.float32)
    is_inside = is_inside_image(stored_keypoints[:, :2].astype(np.float64), width, height)
    stored_keypoints[~is_inside, 2] = 0
    box = labelled_box(stored_keypoints.astype(np.float64), width, height, settings.box_margin_px)
    return Variant(
        source=source,
        recipe=recipe.name,
        copy=copy,
        seed=seed,
        width=width,
        height=height,
        image=encode(pixels, settings.jpeg_quality) if jpeg is None else jpeg,
        affine=affine,
        keypoints=stored_keypoints,
        bbox_xyxy=box.astype(np.float32),
        num_visible=int((stored_keypoints[:, 2] > 0).sum()),
    )


def _apply_built_in_recipe(
    image: _SourceImage, keypoints: FloatArray, recipe: Recipe, seed: int, settings: VariantSettings
) -> tuple[Image, FloatArray, FloatArray]:
    """Apply a built-in recipe; return the variant's pixels, keypoints (K, 3) and affine (2, 3).

    If the recipe changes nothing, the returned pixels are `image.pixels` itself.

    Raises:
        DataError: the crop is larger than the frame.
    """
    height, width = image.pixels.shape[:2]
    parameters = sample_parameters(recipe, width, height, seed, scale_with_frame=settings.scale_with_frame)
    moved_keypoints = keypoints.copy()
    moved_keypoints[:, :2] = apply_affine(parameters.affine, keypoints[:, :2])
    is_same_size = (parameters.width, parameters.height) == (width, height)
    if is_same_size and np.array_equal(parameters.affine, np.eye(2, 3)) and not recipe.brightness_contrast:
        return image.pixels, moved_keypoints, parameters.affine
    pixels = change_brightness_contrast(image.padded_source.window(parameters), parameters)
    return pixels, moved_keypoints, parameters.affine
