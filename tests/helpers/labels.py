"""Labels of a person who walks through clips."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kp_ray.data.annotations import Annotations, parse_name
from kp_ray.keypoints import DACON24, FloatArray

NUM_KEYPOINTS = len(DACON24)
HEADER = ",".join(["image", *DACON24.columns])
"""Header row of the native CSV."""
CELLS = ",".join(str(number) for number in range(2 * NUM_KEYPOINTS))
"""Text of the coordinates 0, 1, 2, ... of one row of the native CSV."""
CELLS_AFTER_X = CELLS.partition(",")[2]
"""`CELLS` without the first x."""
UNLABELLED = [np.nan, np.nan, 0]
VISIBILITY_CASES = [
    ("1,2,2", [1, 2, 2]),
    ("1,2,1", [1, 2, 1]),
    ("1,2,1.0", [1, 2, 1]),
    ("1,2,", [1, 2, 2]),
    ("1,2,0", UNLABELLED),
    (",,1", UNLABELLED),
    (",,", UNLABELLED),
]
"""Cells x, y, visible of a point, and its x, y, v as a label."""


def make_labels(images: Sequence[str], xy: FloatArray) -> Annotations:
    """Make annotations of N images with points (N, K, 2): v is 2, or 0 for points that are NaN."""
    visibility = np.where(np.isfinite(xy[..., :1]), 2.0, 0.0)
    scenes, cameras, frames = zip(*map(parse_name, images), strict=True)
    return Annotations(DACON24, tuple(images), np.concatenate([xy, visibility], axis=2), scenes, cameras, frames)


def make_person(seed: int = 0) -> FloatArray:
    """Make the points (K, 2) of a person who faces the camera.

    No two points coincide, and points of the left side have larger x than points of the right side.
    """
    rng = np.random.default_rng(seed)
    xy = rng.uniform(-5, 5, (NUM_KEYPOINTS, 2)) + np.array([900.0, 300.0])
    for index, name in enumerate(DACON24.names):
        xy[index, 0] += 60 if name.startswith("left_") else -60 if name.startswith("right_") else 0
        xy[index, 1] += 20 * index
    return xy


def make_clips(cameras: str = "A", num_frames: int = 9, step_px: float = 10.0) -> Annotations:
    """Make one scene in which the person walks right, seen by each camera with its own small noise."""
    images, poses = [], []
    for number, camera in enumerate(cameras):
        rng = np.random.default_rng(number)
        for frame in range(num_frames):
            images.append(f"walk_{camera}-{frame:07d}.jpg")
            noise = rng.normal(0, 0.5, (NUM_KEYPOINTS, 2))
            poses.append(make_person() + np.array([step_px * frame, 0.0]) + noise)
    return make_labels(images, np.array(poses))


def replace_points(labels: Annotations, image: str, keypoints: FloatArray) -> Annotations:
    """Copy annotations with other keypoints (K, 3) for one image."""
    new_keypoints = labels.keypoints.copy()
    new_keypoints[labels.images.index(image)] = keypoints
    return replace(labels, keypoints=new_keypoints)
