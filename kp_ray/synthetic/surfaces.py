"""Surfaces of quads: lofts through rings, limbs, ellipsoids, boxes."""

from collections.abc import Sequence

import numpy as np

from kp_ray.keypoints import FloatArray

Surface = tuple[FloatArray, FloatArray]
"""Quads (N, 4, 3) in metres, counter-clockwise seen from outside, and their BGR colours (N, 3) in 0-255."""


def rotation_matrix(forward: float, side: float, twist: float) -> FloatArray:
    """Return the rotation Rx(side) Ry(forward) Rz(twist) (3, 3) of angles in degrees."""
    (a, b, c), (d, e, f) = (function(np.radians([side, forward, twist])) for function in (np.cos, np.sin))
    about_x, about_y = [[1, 0, 0], [0, a, -d], [0, d, a]], [[b, 0, e], [0, 1, 0], [-e, 0, b]]
    return np.asarray(np.array(about_x) @ about_y @ [[c, -f, 0], [f, c, 0], [0, 0, 1]])


def loft(centres: FloatArray, right: FloatArray, front: FloatArray, colours: FloatArray) -> Surface:
    """Make the surface through R elliptic rings.

    Args:
        centres: (R, 3).
        right, front: half-axes of the rings, (R, 3).
        colours: anything that can be broadcast to (R-1, S, 3), for S segments around; 24 segments if it gives no S.
    """
    angles = np.linspace(0, 2 * np.pi, (colours.shape[1] if colours.ndim == 3 and colours.shape[1] > 1 else 24) + 1)
    points = centres[:, None] + np.cos(angles)[:, None] * right[:, None] + np.sin(angles)[:, None] * front[:, None]
    quads = np.stack([points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]], axis=2)
    return quads.reshape(-1, 4, 3), np.broadcast_to(colours, (*quads.shape[:2], 3)).reshape(-1, 3)


def tube(
    start: FloatArray, end: FloatArray, radii: Sequence[float], colour: FloatArray, *,
    sleeve: tuple[float, FloatArray] | None = None, flat: float = 1.0, across: FloatArray | None = None,
) -> Surface:  # fmt: skip
    """Make a limb with round ends.

    Args:
        start, end: (3,) joints.
        radii: at equal distances along the limb, in metres.
        sleeve: share of the length that cloth covers, and its colour.
        flat: ratio of the thickness in direction `across` to the width.
    """
    axis, length = (end - start) / np.linalg.norm(end - start), float(np.linalg.norm(end - start))
    cap, middle = np.linspace(0, np.pi / 2, 6), np.linspace(0, 1, 16)[1:-1]
    inner = np.interp(middle, np.linspace(0, 1, len(radii)), radii)
    along = np.concatenate([-radii[0] * np.cos(cap), middle * length, length + radii[-1] * np.cos(cap[::-1])])
    radius = np.concatenate([radii[0] * np.sin(cap), inner, radii[-1] * np.sin(cap[::-1])])
    covered = along < (sleeve[0] * length if sleeve and sleeve[0] > 0 else -1)
    radius = radius + covered * (radius > 0) * 0.009
    reference = across if across is not None else np.array([0.31, 0.87, 0.38])
    front = reference - axis * (reference @ axis)
    front /= np.linalg.norm(front)
    right = np.cross(front, axis)
    colours = np.where(covered[1:, None], sleeve[1] if sleeve else colour, colour)[:, None]
    return loft(start + along[:, None] * axis, radius[:, None] * right, radius[:, None] * flat * front, colours)


def ball(centre: FloatArray, orientation: FloatArray, radii: Sequence[float], colour: FloatArray) -> Surface:
    """Make an ellipsoid.

    Args:
        radii: half-axes along the columns of `orientation` (3, 3).
        colour: (3,), or (R, S, 3) for R rings from the lowest to the highest and S segments.
    """
    colour = colour if colour.ndim == 3 else np.broadcast_to(colour, (8, 14, 3))
    polar = np.linspace(-np.pi / 2, np.pi / 2, colour.shape[0] + 1)
    ring = np.cos(polar)[:, None]
    centres = centre + np.sin(polar)[:, None] * orientation[:, 2] * radii[2]
    return loft(centres, ring * -orientation[:, 1] * radii[1], ring * orientation[:, 0] * radii[0], colour)


def box(place: FloatArray, half_diagonal: float, height: float, angle: float, colour: FloatArray) -> Surface:
    """Make a square box that stands at `place` (3,), turned by `angle` radians about the vertical."""
    ring, side = np.array([half_diagonal, half_diagonal, 1e-3])[:, None], np.array([np.cos(angle), np.sin(angle), 0])
    heights = place + np.outer((0, height, height), (0, 0, 1))
    return loft(heights, ring * side, ring * np.cross((0, 0, 1.0), side), np.broadcast_to(colour, (2, 4, 3)))
