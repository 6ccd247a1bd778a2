"""Make the variants of one source: decode it once, apply one affine map per variant, encode.

Only the output window of a variant is resampled, once, from the source padded by reflection; all variants of a source
share the padded source. Where a recipe changes nothing (`Original`), a JPEG source's bytes are stored as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kp_ray.augmentation.recipes import Recipe
from kp_ray.augmentation.sampling import sample_parameters, variant_seed
from kp_ray.augmentation.user_pipeline import run_user_pipeline
from kp_ray.augmentation.warp import PaddedSource, relight
from kp_ray.errors import DataError
from kp_ray.images import Image, decode, encode
from kp_ray.keypoints import FloatArray, apply_affine, inside, visible_box


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """An original image and its labels.

    Attributes:
        name: path inside the image folder.
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
    """Settings that all variants of a store share.

    Attributes:
        seed: the store's.
        jpeg_quality: of every picture that is encoded (4:2:0).
        scale_with_frame: scale the recipes' sizes with the frame; otherwise they are pixels in any frame.
        box_margin_px: added around the labelled points.
    """

    seed: int
    jpeg_quality: int
    scale_with_frame: bool
    box_margin_px: float


@dataclass(frozen=True, eq=False, slots=True)
class Variant:
    """One augmented picture and its labels, in pixel indices of that picture.

    Attributes:
        recipe: its name.
        copy: number among the variants of the same source and recipe, from 0.
        seed: uint64; decides the recipe's parameters.
        width, height: in pixels.
        image: JPEG.
        affine: (2, 3) from source to variant; NaN if a user's pipeline is not an affine map.
        keypoints: (K, 3) x, y, v; NaN where unlabelled; v = 0 outside the picture.
        bbox_xyxy: (4,) around the labelled points, clipped to the picture.
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
        """Return the variant as a row of a store's part."""
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
        content: the source's encoded bytes.
        recipes: recipes with their number of copies.

    Returns:
        The variants, each recipe's copies in order, and recipe name -> reason for the recipes that cannot be applied to
        the source. A recipe gives all of its copies or none; what it gives does not depend on the other recipes.

    Raises:
        DataError: the picture cannot be used, with the reason.
    """
    picture = _SourcePicture(content)
    variants: list[Variant] = []
    refused: dict[str, str] = {}
    for recipe, copies in recipes:
        try:
            variants += [_make_variant(picture, source, recipe, copy, settings) for copy in range(copies)]
        except DataError as error:
            refused[recipe.name] = str(error)
    return variants, refused


class _SourcePicture:
    """A decoded source, which its variants share.

    Attributes:
        content: the encoded bytes.
        image: (H, W, 4) BGRX.
        can_be_copied: whether `content` can be stored for a variant that equals the source.
        padded: for the named recipes.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.image, self.can_be_copied = decode(content)
        self.padded = PaddedSource(self.image)


def _make_variant(
    picture: _SourcePicture, source: Source, recipe: Recipe, copy: int, settings: VariantSettings
) -> Variant:
    seed = variant_seed(settings.seed, source.name, recipe.fingerprint, copy)
    encoded: bytes | None = None
    if recipe.user is not None:
        image, keypoints, affine = run_user_pipeline(recipe.user, picture.image, source.keypoints, seed)
    else:
        image, keypoints, affine = _apply_named_recipe(picture, source.keypoints, recipe, seed, settings)
        if image is picture.image and picture.can_be_copied:
            encoded = picture.content
    height, width = image.shape[:2]
    stored = keypoints.astype(np.float32)  # the stored numbers decide whether a point is inside
    stored[~inside(stored[:, :2].astype(np.float64), width, height), 2] = 0
    return Variant(
        source=source,
        recipe=recipe.name,
        copy=copy,
        seed=seed,
        width=width,
        height=height,
        image=encode(image, settings.jpeg_quality) if encoded is None else encoded,
        affine=affine,
        keypoints=stored,
        bbox_xyxy=visible_box(stored.astype(np.float64), width, height, settings.box_margin_px).astype(np.float32),
        num_visible=int((stored[:, 2] > 0).sum()),
    )


def _apply_named_recipe(
    picture: _SourcePicture, keypoints: FloatArray, recipe: Recipe, seed: int, settings: VariantSettings
) -> tuple[Image, FloatArray, FloatArray]:
    """Return the variant's picture (the source's own array if nothing changes), keypoints and affine."""
    height, width = picture.image.shape[:2]
    parameters = sample_parameters(recipe, width, height, seed, scale_with_frame=settings.scale_with_frame)
    moved = keypoints.copy()
    moved[:, :2] = apply_affine(parameters.affine, keypoints[:, :2])
    is_same_frame = (parameters.width, parameters.height) == (width, height)
    if is_same_frame and np.array_equal(parameters.affine, np.eye(2, 3)) and not recipe.brightness_contrast:
        return picture.image, moved, parameters.affine
    return relight(picture.padded.window(parameters), parameters), moved, parameters.affine
