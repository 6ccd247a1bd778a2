"""Pictures of test images with skeletons over them."""

from collections.abc import Sequence

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.annotations import check_image_name
from kp_ray.errors import DataError
from kp_ray.images import Image, decode_bgr
from kp_ray.keypoints import FloatArray, Skeleton, visible_box
from kp_ray.reporting.formatting import jpeg_uri
from kp_ray.storage import exists, join, read_bytes
from kp_ray.visualization.colors import Color
from kp_ray.visualization.skeletons import crop_and_resize, draw_skeleton, transform_keypoints

PICTURE_PX = 440
"""Longer side of a picture."""
MARGIN_SHARE = 0.2
"""Margin around the person, as a share of the longer side of the person's box."""

Overlay = tuple[FloatArray, Skeleton, Color | None]
"""Keypoints (K, 3) in pixels, their skeleton, and its colour (None: left and right differ)."""


def read_test_image(config: Config, name: str) -> Image | None:
    """Read a predicted image (H, W, 3), BGR; None if it is not there, or lies outside the config's image folders."""
    try:
        check_image_name(name, "")
    except DataError:
        return None  # "../x" would put a file that is not part of the data into a page that is passed on
    for folder in (config.predict.images, config.data.test_images, config.data.images):
        path = join(folder or "", name)
        if folder is not None and exists(path):
            return decode_bgr(read_bytes(path))
    return None


def overlay_uri(config: Config, image: str, overlays: Sequence[Overlay]) -> str | None:
    """Draw skeletons over a test image, cropped around them, as a `data:` URI; None if there is nothing to draw."""
    points = np.concatenate([keypoints for keypoints, *_ in overlays]) if overlays else np.zeros((0, 3))
    picture = read_test_image(config, image) if np.isfinite(points[:, :2]).any() else None
    if picture is None:
        return None
    height, width = picture.shape[:2]
    box = visible_box(points, width, height)
    box = visible_box(points, width, height, margin_px=MARGIN_SHARE * float((box[2:] - box[:2]).max()))
    picture, affine = crop_and_resize(picture, box, PICTURE_PX)
    for keypoints, skeleton, color in overlays:
        picture = draw_skeleton(picture, transform_keypoints(keypoints, affine), skeleton, color=color)
    return jpeg_uri(picture)
