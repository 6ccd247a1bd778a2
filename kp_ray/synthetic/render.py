"""Surfaces, a camera, and painting the one through the other."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from kp_ray.keypoints import FloatArray

Picture = npt.NDArray[np.uint8]
Surface = tuple[FloatArray, FloatArray]
"""Quads (N, 4, 3), counter-clockwise from outside, and their BGR colours (N, 3) in 0-255."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: `rotation` (3, 3) rows are its right, down and ahead axes in the world."""

    position: FloatArray
    rotation: FloatArray
    focal_px: float
    centre: tuple[float, float]

    def project(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """World points (..., 3) -> pixel indices (..., 2) and depths (...) in metres."""
        seen = (points - self.position) @ self.rotation.T
        return seen[..., :2] / seen[..., 2:] * self.focal_px + self.centre, seen[..., 2]


def loft(centres: FloatArray, right: FloatArray, front: FloatArray, colours: FloatArray) -> Surface:
    """The surface through R rings: `centres`, half-axes `right` and `front` (R, 3); colours to (R-1, S, 3)."""
    angles = np.linspace(0, 2 * np.pi, (colours.shape[1] if colours.ndim == 3 and colours.shape[1] > 1 else 24) + 1)
    points = centres[:, None] + np.cos(angles)[:, None] * right[:, None] + np.sin(angles)[:, None] * front[:, None]
    quads = np.stack([points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]], axis=2)
    return quads.reshape(-1, 4, 3), np.broadcast_to(colours, (*quads.shape[:2], 3)).reshape(-1, 3)


def tube(
    start: FloatArray, end: FloatArray, radii: Sequence[float], colour: FloatArray, *,
    sleeve: tuple[float, FloatArray] | None = None, flat: float = 1.0, across: FloatArray | None = None,
) -> Surface:  # fmt: skip
    """A limb from `start` to `end` with round ends and radii spread evenly along it, in metres.

    `sleeve`: cloth of a colour over this share of its length. `flat`: thickness in `across` direction over width.
    """
    axis, length = (end - start) / np.linalg.norm(end - start), float(np.linalg.norm(end - start))
    bow, middle = np.linspace(0, np.pi / 2, 6), np.linspace(0, 1, 16)[1:-1]
    inner = np.interp(middle, np.linspace(0, 1, len(radii)), radii)
    along = np.concatenate([-radii[0] * np.cos(bow), middle * length, length + radii[-1] * np.cos(bow[::-1])])
    radius = np.concatenate([radii[0] * np.sin(bow), inner, radii[-1] * np.sin(bow[::-1])])
    covered = along < (sleeve[0] * length if sleeve and sleeve[0] > 0 else -1)
    radius = radius + covered * (radius > 0) * 0.009
    reference = across if across is not None else np.array([0.31, 0.87, 0.38])
    front = reference - axis * (reference @ axis)
    front /= np.linalg.norm(front)
    right = np.cross(front, axis)
    colours = np.where(covered[1:, None], sleeve[1] if sleeve else colour, colour)[:, None]
    return loft(start + along[:, None] * axis, radius[:, None] * right, radius[:, None] * flat * front, colours)


def ball(centre: FloatArray, turn: FloatArray, radii: Sequence[float], colour: FloatArray) -> Surface:
    """An ellipsoid with half-axes `radii` along the columns of `turn`; `colour` (3,) or by unit direction (R, S, 3)."""
    colour = colour if colour.ndim == 3 else np.broadcast_to(colour, (8, 14, 3))
    polar = np.linspace(-np.pi / 2, np.pi / 2, colour.shape[0] + 1)
    ring = np.cos(polar)[:, None]
    centres = centre + np.sin(polar)[:, None] * turn[:, 2] * radii[2]
    return loft(centres, ring * -turn[:, 1] * radii[1], ring * turn[:, 0] * radii[0], colour)


def paint(
    picture: Picture, camera: Camera, parts: list[Surface], light: FloatArray, step: FloatArray | float = 1.0
) -> None:
    """Draw surfaces into `picture` (H, W, 3) in place, far quads first, shaded, twofold supersampled.

    Args:
        light: unit vector towards the lamp.
        step: the camera's pixels per pixel of the picture.
    """
    quads, colours = (np.concatenate(group) for group in zip(*parts, strict=True))
    normals = np.cross(quads[:, 2] - quads[:, 0], quads[:, 3] - quads[:, 1])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    xy, depth = camera.project(quads)
    xy = (xy + 0.5) / step - 0.5
    to_eye = camera.position - quads.mean(axis=1)
    facing = np.einsum("ij,ij->i", normals, to_eye) / np.linalg.norm(to_eye, axis=1)
    order = np.argsort(-depth.mean(axis=1), kind="stable")
    order = order[((facing > 0) & (depth.min(axis=1) > 0.3))[order]]
    corners = xy[order].reshape(-1, 2)
    size = picture.shape[1::-1]
    if not len(order):
        return
    low, high = (np.clip(edge, 0, size).astype(int) for edge in (corners.min(axis=0) - 2, corners.max(axis=0) + 3))
    if (high <= low).any():
        return
    shade = 0.42 + 0.62 * np.maximum(normals @ light, 0) + 0.16 * facing
    tones = np.column_stack([np.clip(colours * shade[:, None], 0, 255), np.full(len(colours), 255.0)])
    # An index i of the picture is the middle of indices 2i and 2i + 1 of the twofold canvas.
    points = np.rint(((xy - low) * 2 + 0.5) * 16).clip(-(2**26), 2**26).astype(np.int32)
    canvas = np.zeros((*(2 * (high - low))[::-1], 4), dtype=np.uint8)
    for quad, tone in zip(points[order], tones[order].tolist(), strict=True):
        cv2.fillConvexPoly(canvas, quad, tone, shift=4)
    drawn = cv2.resize(canvas, tuple(high - low), interpolation=cv2.INTER_AREA)
    window = picture[low[1] : high[1], low[0] : high[0]]
    keep = cv2.merge([cv2.bitwise_not(drawn[..., 3])] * 3)
    window[:] = cv2.add(cv2.multiply(window, keep, scale=1 / 255), drawn[..., :3])
