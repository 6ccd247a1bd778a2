"""Make surfaces of quads: lofts through rings, limbs, ellipsoids, boxes."""

from collections.abc import Sequence

import numpy as np

from kp_ray.keypoints import FloatArray

Surface = tuple[FloatArray, FloatArray]
"""Quads (N, 4, 3) in metres, counter-clockwise seen from outside, and their BGR colors (N, 3) in 0-255."""


def rotation_matrix(forward: float, side: float, twist: float) -> FloatArray:
    """Return the rotation matrix (3, 3) Rx(side) @ Ry(forward) @ Rz(twist); angles are in degrees."""
    angles = np.radians([side, forward, twist])
    (cos_x, cos_y, cos_z), (sin_x, sin_y, sin_z) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cos_x, -sin_x], [0, sin_x, cos_x]])
    about_y = np.array([[cos_y, 0, sin_y], [0, 1, 0], [-sin_y, 0, cos_y]])
    about_z = np.array([[cos_z, -sin_z, 0], [sin_z, cos_z, 0], [0, 0, 1]])
    return np.asarray(about_x @ about_y @ about_z)


def loft(centres: FloatArray, right: FloatArray, front: FloatArray, colors: FloatArray) -> Surface:
    """Make the surface through R elliptic rings, with S segments around it.

    Args:
        centres: (R, 3) centres of the rings.
        right, front: (R, 3) half-axes of the rings.
        colors: array that can be broadcast to (R-1, S, 3). S is the number of colors around a ring, or 24 if
            all colors of a ring are equal.
    """
    angles = np.linspace(0, 2 * np.pi, (colors.shape[1] if colors.ndim == 3 and colors.shape[1] > 1 else 24) + 1)
    points = centres[:, None] + np.cos(angles)[:, None] * right[:, None] + np.sin(angles)[:, None] * front[:, None]
    quads = np.stack([points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]], axis=2)
    return quads.reshape(-1, 4, 3), np.broadcast_to(colors, (*quads.shape[:2], 3)).reshape(-1, 3)


def tube(
    start: FloatArray,
    end: FloatArray,
    radii: Sequence[float],
    color: FloatArray,
    *,
    sleeve: tuple[float, FloatArray] | None = None,
    thickness: float = 1.0,
    across: FloatArray | None = None,
) -> Surface:
    """Make a limb with round ends.

    Args:
        start, end: (3,) positions of the joints.
        radii: two or more radii in metres, at equal distances along the limb.
        color: (3,) color of the skin.
        sleeve: (share of the length that cloth covers from `start`, color of the cloth); None: no cloth.
        thickness: thickness of the limb as a share of its width; 1 is round.
        across: (3,) direction along which the thickness is measured; None: any direction.
    """
    axis, length = (end - start) / np.linalg.norm(end - start), float(np.linalg.norm(end - start))
    cap, middle = np.linspace(0, np.pi / 2, 6), np.linspace(0, 1, 16)[1:-1]
    middle_radii = np.interp(middle, np.linspace(0, 1, len(radii)), radii)
    along = np.concatenate([-radii[0] * np.cos(cap), middle * length, length + radii[-1] * np.cos(cap[::-1])])
    radius = np.concatenate([radii[0] * np.sin(cap), middle_radii, radii[-1] * np.sin(cap[::-1])])
    is_covered = along < (sleeve[0] * length if sleeve and sleeve[0] > 0 else -1)
    radius = radius + is_covered * (radius > 0) * 0.009
    reference = across if across is not None else np.array([0.31, 0.87, 0.38])
    front = reference - axis * (reference @ axis)
    front /= np.linalg.norm(front)
    right = np.cross(front, axis)
    colors = np.where(is_covered[1:, None], sleeve[1] if sleeve else color, color)[:, None]
    return loft(start + along[:, None] * axis, radius[:, None] * right, radius[:, None] * thickness * front, colors)


def ellipsoid(centre: FloatArray, orientation: FloatArray, radii: Sequence[float], color: FloatArray) -> Surface:
    """Make an ellipsoid.

    Args:
        centre: (3,) position.
        orientation: (3, 3); the half-axes are along its columns.
        radii: lengths of the three half-axes in metres.
        color: one color (3,), or colors (R, S, 3) of R rings from the bottom to the top with S segments each.
    """
    color = color if color.ndim == 3 else np.broadcast_to(color, (8, 14, 3))
    polar = np.linspace(-np.pi / 2, np.pi / 2, color.shape[0] + 1)
    ring = np.cos(polar)[:, None]
    centres = centre + np.sin(polar)[:, None] * orientation[:, 2] * radii[2]
    return loft(centres, ring * -orientation[:, 1] * radii[1], ring * orientation[:, 0] * radii[0], color)


def box(place: FloatArray, half_diagonal: float, height: float, angle: float, color: FloatArray) -> Surface:
    """Make a square box that stands at `place` (3,), turned by `angle` radians about the vertical."""
    ring, side = np.array([half_diagonal, half_diagonal, 1e-3])[:, None], np.array([np.cos(angle), np.sin(angle), 0])
    heights = place + np.outer((0, height, height), (0, 0, 1))
    return loft(heights, ring * side, ring * np.cross((0, 0, 1.0), side), np.broadcast_to(color, (2, 4, 3)))
