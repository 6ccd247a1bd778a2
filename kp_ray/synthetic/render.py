"""Paint surfaces as a pinhole camera sees them."""

from dataclasses import dataclass

import cv2
import numpy as np

from kp_ray.images import Image
from kp_ray.keypoints import FloatArray
from kp_ray.synthetic.surfaces import Surface


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera.

    Attributes:
        position: (3,) in metres.
        rotation: (3, 3); the rows are the right, down and ahead axes in the world.
        focal_px: focal length in pixels.
        centre: pixel index (x, y) of the optical axis.
    """

    position: FloatArray
    rotation: FloatArray
    focal_px: float
    centre: tuple[float, float]

    def project(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Project world points (..., 3) to pixel indices (..., 2) and depths (...) in metres."""
        relative = (points - self.position) @ self.rotation.T
        return relative[..., :2] / relative[..., 2:] * self.focal_px + self.centre, relative[..., 2]


def paint(
    image: Image, camera: Camera, surfaces: list[Surface], light: FloatArray, step: FloatArray | float = 1.0
) -> None:
    """Paint shaded surfaces into an image in place, distant quads first, with twofold supersampling.

    Args:
        image: (H, W, 3) BGR.
        camera: projects the surfaces.
        surfaces: one or more surfaces; quads that face away from the camera are not painted.
        light: unit vector (3,) towards the lamp.
        step: number of camera pixels per image pixel, one number or (2,) for x and y.
    """
    quads, colors = (np.concatenate(group) for group in zip(*surfaces, strict=True))
    normals = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    xy, depth = camera.project(quads)
    xy = (xy + 0.5) / step - 0.5
    to_eye = camera.position - quads.mean(axis=1)
    cos_view = np.einsum("ij,ij->i", normals, to_eye) / np.linalg.norm(to_eye, axis=1)
    order = np.argsort(-depth.mean(axis=1), kind="stable")
    # Leave out quads that face away or have a corner less than 0.3 m in front of the camera.
    order = order[((cos_view > 0) & (depth.min(axis=1) > 0.3))[order]]
    corners = xy[order].reshape(-1, 2)
    size = image.shape[1::-1]
    if not len(order):
        return
    low, high = (np.clip(edge, 0, size).astype(int) for edge in (corners.min(axis=0) - 2, corners.max(axis=0) + 3))
    if (high <= low).any():
        return
    shade = 0.42 + 0.62 * np.maximum(normals @ light, 0) + 0.16 * cos_view
    tones = np.column_stack([np.clip(colors * shade[:, None], 0, 255), np.full(len(colors), 255.0)])
    # The canvas is twice as large: index i of the image lies between the indices 2i and 2i + 1 of the canvas.
    points = np.rint(((xy - low) * 2 + 0.5) * 16).clip(-(2**26), 2**26).astype(np.int32)
    canvas = np.zeros((*(2 * (high - low))[::-1], 4), dtype=np.uint8)
    for quad, tone in zip(points[order], tones[order].tolist(), strict=True):
        cv2.fillConvexPoly(canvas, quad, tone, shift=4)
    patch = cv2.resize(canvas, tuple(high - low), interpolation=cv2.INTER_AREA)
    window = image[low[1] : high[1], low[0] : high[0]]
    transparency = cv2.merge([cv2.bitwise_not(patch[..., 3])] * 3)
    window[:] = cv2.add(cv2.multiply(window, transparency, scale=1 / 255), patch[..., :3])
