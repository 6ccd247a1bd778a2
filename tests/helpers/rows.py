"""Make rows like those of a store."""

from typing import Any

import cv2
import numpy as np
import simplejpeg


def random_row(width: int = 320, height: int = 180, seed: int = 0) -> dict[str, Any]:
    """Make the row of a smooth random image with 24 random keypoints, two of which have v = 0: one has x and y."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    keypoints = np.column_stack([rng.uniform(0, width, 24), rng.uniform(0, height, 24), np.full(24, 2.0)])
    keypoints[3] = np.nan, np.nan, 0
    keypoints[7, 2] = 0
    finite_xy = keypoints[np.isfinite(keypoints[:, 0]), :2]
    return {
        "image": simplejpeg.encode_jpeg(image, 95, colorspace="BGR"),
        "width": width,
        "height": height,
        "keypoints": keypoints.ravel().tolist(),
        "bbox_xyxy": [*finite_xy.min(axis=0), *finite_xy.max(axis=0)],
    }
