"""Draw skeletons over the images of the page."""

from collections.abc import Sequence

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.annotations import check_image_name
from kp_ray.errors import DataError, StorageError
from kp_ray.images import Image, decode_preview
from kp_ray.keypoints import FloatArray, Skeleton, labelled_box
from kp_ray.prediction.images import is_store_split
from kp_ray.reporting.formatting import jpeg_uri
from kp_ray.storage import exists, join, read_bytes
from kp_ray.visualization.colors import Color
from kp_ray.visualization.skeletons import crop_and_resize, draw_skeleton, transform_keypoints

OVERLAY_PX = 440
"""Longer side of a drawn image in the page, in pixels."""
MARGIN_SHARE = 0.2
"""Margin around the person, as a share of the longer side of the person's box."""

Overlay = tuple[FloatArray, Skeleton, Color | None]
"""Keypoints (K, 3) in pixels, their skeleton, and its color (None: different colors for left, right and middle)."""


def prediction_image_folders(config: Config) -> tuple[str | None, ...]:
    """Return the folders that may hold a predicted image, in the order in which they are searched."""
    if is_store_split(config):
        return (config.data.images,)
    return config.predict.images, config.data.test_images, config.data.images


def read_image(folders: Sequence[str | None], name: str) -> Image | None:
    """Read an image (H, W, 3), BGR, from the first of the folders that holds it; None if it cannot be read."""
    try:
        check_image_name(name, "")
    except DataError:
        return None  # "../x" would put a private file into a page that is shared
    paths = [join(folder, name) for folder in folders if folder is not None]
    try:
        path = next((path for path in paths if exists(path)), None)
        return None if path is None else decode_preview(read_bytes(path))
    except StorageError:  # e.g. its permissions forbid reading it
        return None


def overlay_uri(folders: Sequence[str | None], image_name: str, overlays: Sequence[Overlay]) -> str | None:
    """Draw skeletons over an image, crop the image around them, and encode it as a `data:` URI.

    Args:
        folders: folders of images, as for `read_image`.
        image_name: name of the image in its folder.
        overlays: skeletons to draw.

    Returns:
        None if the image cannot be read or no skeleton has a finite point.
    """
    points = np.concatenate([keypoints for keypoints, _, _ in overlays]) if overlays else np.zeros((0, 3))
    image = read_image(folders, image_name) if np.isfinite(points[:, :2]).any() else None
    if image is None:
        return None
    height, width = image.shape[:2]
    tight_box = labelled_box(points, width, height)
    margin_px = MARGIN_SHARE * float((tight_box[2:] - tight_box[:2]).max())
    crop, affine = crop_and_resize(image, labelled_box(points, width, height, margin_px=margin_px), OVERLAY_PX)
    for keypoints, skeleton, color in overlays:
        crop = draw_skeleton(crop, transform_keypoints(keypoints, affine), skeleton, color=color)
    return jpeg_uri(crop)
