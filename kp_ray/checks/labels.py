"""Find probable mistakes in the labels: in all images together, in single images and in clips."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from kp_ray.checks.dataset import find_sentinels, remove_sentinels, scale_findings, sentinel_findings
from kp_ray.checks.findings import Finding, Sizes, list_names, warning
from kp_ray.checks.motion import motion_findings
from kp_ray.data.annotations import Annotations
from kp_ray.keypoints import FloatArray, Skeleton, is_inside_image

_TINY_BODY_PX = 8.0
"""Longer side, in pixels, of the box around the labelled points; below it keypoints cannot be distinguished."""
_MIN_BODY_POINTS = 3
"""Minimum number of labelled points by which a person is measured, or compared with another: two points, e.g. the eyes,
may be close to each other."""


def check_labels(annotations: Annotations, sizes: Sizes = None) -> list[Finding]:
    """Find probable mistakes in the labels; all findings are warnings.

    Kinds of findings about all images: sentinel (a place such as 0, 0 that means "no label"), scale (the coordinates
    are not pixels of the images). Kinds of findings about one image: unlabelled (no point is labelled), repeated (all
    coordinates equal those of an earlier image), outside (points outside the image; needs `sizes`), tiny (a person of a
    few pixels), coincident (two points at one place), left_right (left and right are exchanged in one half of the body,
    or in one pair), jump (the whole person, or one point, is at another place in a single frame of a clip).

    Args:
        annotations: N images; a clip is the images of one scene and camera, ordered by frame number.
        sizes: sizes of the upright images in pixels.

    Returns:
        Findings about all images first, then findings about single images in the order of the annotations. A finding
        that is only a symptom of a finding about all images is left out: points at a sentinel are checked as
        unlabelled, and labels of another scale are neither "outside" nor "tiny".
    """
    sentinels = find_sentinels(annotations)
    sentinel_warnings = list(sentinel_findings(annotations, sentinels))
    annotations = remove_sentinels(annotations, sentinels)
    scale_warnings, images_of_other_scale = scale_findings(annotations, sizes)
    findings = [
        finding
        for finding in (*_image_findings(annotations, sizes), *motion_findings(annotations))
        if finding.kind not in ("outside", "tiny") or finding.image not in images_of_other_scale
    ]
    position = {image: row for row, image in enumerate(annotations.images)}
    return [*sentinel_warnings, *scale_warnings, *sorted(findings, key=lambda finding: position[finding.image])]


def _image_findings(annotations: Annotations, sizes: Sizes) -> Iterator[Finding]:
    """Find mistakes in single images, and images with equal coordinates."""
    first_rows = find_repeated(annotations)
    for row, (image, points) in enumerate(zip(annotations.images, annotations.keypoints, strict=True)):
        xy = points[:, :2]
        if not np.isfinite(xy).any():
            yield warning("unlabelled", image, "no point is labelled", "label it, or drop the row")
            continue
        if row in first_rows:
            message = f"its labels repeat those of {annotations.images[first_rows[row]]}"
            yield warning(
                "repeated", image, message, "compare both images, and drop the row whose image the labels do not fit"
            )
        size = sizes.get(image) if isinstance(sizes, Mapping) else sizes
        yield from _pose_findings(annotations.skeleton, image, xy, size)


def find_repeated(annotations: Annotations) -> dict[int, int]:
    """Find images whose coordinates all equal the coordinates of an earlier image.

    Images with fewer than `_MIN_BODY_POINTS` labelled points are left out: one or two points can be equal by chance.

    Returns:
        Row of such an image -> row of the first image with the same coordinates.
    """
    row_by_coordinates: dict[bytes, int] = {}
    first_rows: dict[int, int] = {}
    for row, points in enumerate(annotations.keypoints):
        xy = points[:, :2]
        first_row = row_by_coordinates.setdefault(xy.tobytes(), row)
        if first_row != row and np.isfinite(xy[:, 0]).sum() >= _MIN_BODY_POINTS:
            first_rows[row] = first_row
    return first_rows


def _pose_findings(skeleton: Skeleton, image: str, xy: FloatArray, size: tuple[int, int] | None) -> Iterator[Finding]:
    """Find mistakes in the points (K, 2) of one image; `size` is its (width, height) in pixels, or None."""
    if size is not None:
        is_outside = np.isfinite(xy).all(axis=1) & ~is_inside_image(xy, *size)
        if is_outside.any():
            names = [skeleton.names[k] for k in np.flatnonzero(is_outside)]
            message = f"outside the {size[0]}x{size[1]} image: {list_names(names)}"
            fix = "correct the points, or leave them empty; they count as not visible"
            yield warning("outside", image, message, fix)
    if np.isfinite(xy[:, 0]).sum() >= _MIN_BODY_POINTS:
        body_px = float(np.nanmax(np.nanmax(xy, axis=0) - np.nanmin(xy, axis=0)))
        if body_px < _TINY_BODY_PX:
            message = f"the person is {body_px:.3g} px long"
            yield warning("tiny", image, message, "compare image and labels: are these coordinates pixels?")
    names_at: dict[tuple[float, float], list[str]] = defaultdict(list)
    for name, (x, y) in zip(skeleton.names, xy.tolist(), strict=True):
        if math.isfinite(x):
            names_at[x, y].append(name)
    groups = [" = ".join(names) for names in names_at.values() if len(names) > 1]
    if groups:
        message = f"at the same place: {list_names(groups)}"
        yield warning("coincident", image, message, "correct all but one of them, or leave them empty")
    if is_crossed(skeleton, xy):
        fix = "unless the body is twisted, exchange the left and right points of the wrong half"
        yield warning("left_right", image, "shoulders and hips point in opposite directions", fix)


def is_crossed(skeleton: Skeleton, xy: FloatArray) -> bool:
    """Return whether the lines from right to left through the shoulders and through the hips have opposite directions.

    A body can twist, but hardly by half a turn: both lines must be longer than 0.15 of the torso, and the angle between
    them more than 143 degrees. Of 400 photographs of athletes, eight meet these conditions: some are clearly
    mislabelled, some show a twisted leap, so the finding is a warning.
    """
    corner_names = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
    if not set(corner_names) <= set(skeleton.names):
        return False
    left_shoulder, right_shoulder, left_hip, right_hip = (xy[skeleton.names.index(name)] for name in corner_names)
    shoulders, hips = left_shoulder - right_shoulder, left_hip - right_hip
    torso = np.linalg.norm((left_shoulder + right_shoulder - left_hip - right_hip) / 2)
    lengths = np.linalg.norm(shoulders), np.linalg.norm(hips)
    return bool(min(lengths) > 0.15 * torso and shoulders @ hips < -0.8 * lengths[0] * lengths[1])
