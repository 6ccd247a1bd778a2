"""Read a sample of a store's variants, recipe by recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kp_ray.errors import KpRayError, StoreError
from kp_ray.images import Image, decode_preview
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.storage import join
from kp_ray.store.manifest import Manifest
from kp_ray.store.parts import sample_evenly
from kp_ray.store.read import RowReader, read_part
from kp_ray.visualization.skeletons import crop_and_resize, draw_skeleton, transform_keypoints

MAX_PARTS = 8
"""Maximum number of parts that are read per recipe, evenly spaced over all its parts."""
EXAMPLE_PX = 360
"""Longer side of an example image, in pixels."""
_COLUMNS = ("keypoints", "bbox_xyxy", "width", "height", "split", "camera", "source")


@dataclass(frozen=True, eq=False)
class VariantSample:
    """The variants in some parts of one recipe: n rows, K keypoints.

    Attributes:
        keypoints: (n, K, 3) x, y, v in the variant's pixels.
        boxes: (n, 4) x1, y1, x2, y2 in pixels.
        sizes: (n, 2) width and height in pixels.
        splits: n names, "train" or "val".
        cameras: sorted distinct cameras of the rows.
        example: image (H, W, 3), BGR, of one variant with its skeleton, at most EXAMPLE_PX on each side; None if no
            part could be read.
        unreadable_parts: paths of the parts that could not be read.
    """

    keypoints: FloatArray
    boxes: FloatArray
    sizes: FloatArray
    splits: npt.NDArray[np.str_]
    cameras: tuple[str, ...]
    example: Image | None
    unreadable_parts: tuple[str, ...]

    @property
    def is_visible(self) -> npt.NDArray[np.bool_]:
        """Mask (n, K) of the keypoints inside the image."""
        return np.asarray(self.keypoints[..., 2] > 0)


def read_samples(store: str, manifest: Manifest, skeleton: Skeleton) -> dict[str, VariantSample]:
    """Sample the variants of every recipe in a store; parts that cannot be read are listed, not raised."""
    samples = {}
    for recipe in manifest.recipes:
        paths = [part.path for part in manifest.parts if part.recipe == recipe.name]
        samples[recipe.name] = _read_sample(store, sample_evenly(paths, MAX_PARTS), skeleton)
    return samples


def _read_sample(store: str, paths: Sequence[str], skeleton: Skeleton) -> VariantSample:
    rows: list[dict[str, Any]] = []
    unreadable_parts: list[str] = []
    example: Image | None = None
    for path in paths:
        try:
            part_rows = read_part(join(store, path), _COLUMNS).to_pylist()
            if any(len(row["keypoints"]) != 3 * len(skeleton) for row in part_rows):
                raise StoreError(f"{path}: keypoints of another skeleton than the manifest's: run verify")
            if example is None and part_rows:
                example = _draw_variant(join(store, path), part_rows, skeleton)
        except KpRayError:
            unreadable_parts.append(path)
        else:
            rows += part_rows
    return VariantSample(
        keypoints=np.array([row["keypoints"] for row in rows], dtype=float).reshape(-1, len(skeleton), 3),
        boxes=np.array([row["bbox_xyxy"] for row in rows], dtype=float).reshape(-1, 4),
        sizes=np.array([[row["width"], row["height"]] for row in rows], dtype=float).reshape(-1, 2),
        splits=np.array([row["split"] for row in rows], dtype=str),
        cameras=tuple(sorted({row["camera"] for row in rows})),
        example=example,
        unreadable_parts=tuple(unreadable_parts),
    )


def _draw_variant(path: str, rows: Sequence[dict[str, Any]], skeleton: Skeleton) -> Image | None:
    """Draw a part's first variant with a visible keypoint; if no variant has one, draw the part's first variant.

    Returns:
        None if the image cannot be decoded.
    """
    points = [np.array(row["keypoints"], dtype=float).reshape(-1, 3) for row in rows]
    index = next((index for index, keypoints in enumerate(points) if (keypoints[:, 2] > 0).any()), 0)
    image = decode_preview(RowReader(["image"]).read(path, index)["image"])
    if image is None:
        return None
    canvas, affine = crop_and_resize(image, None, EXAMPLE_PX)
    return draw_skeleton(canvas, transform_keypoints(points[index], affine), skeleton)
