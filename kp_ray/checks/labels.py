"""Look for mistakes in the labels themselves."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from kp_ray.checks.findings import Finding, Sizes, list_names, warning
from kp_ray.checks.motion import motion_findings
from kp_ray.data.annotations import Annotations
from kp_ray.keypoints import FloatArray, Skeleton, inside


def check_labels(annotations: Annotations, sizes: Sizes = None) -> list[Finding]:
    """What looks wrong in the labels themselves, in file order; all of it warnings.

    Kinds: unlabelled (no point at all), repeated (the same labels as an earlier image), outside (points out of the
    frame; needs `sizes`), coincident (two points at one place), left_right (a body half or pair mirrored), jump (the
    person, or one point, is elsewhere in one frame of a clip). Clips are (scene, camera), ordered by frame number.
    """
    found = [*_row_findings(annotations, sizes), *motion_findings(annotations)]
    place = {image: row for row, image in enumerate(annotations.images)}
    return sorted(found, key=lambda finding: place[finding.image])


def _row_findings(annotations: Annotations, sizes: Sizes) -> Iterator[Finding]:
    """What one row shows, or two rows that are equal."""
    names = np.array(annotations.skeleton.names)
    first: dict[bytes, str] = {}
    for image, points in zip(annotations.images, annotations.keypoints, strict=True):
        xy = points[:, :2]
        if not np.isfinite(xy).any():
            yield warning("unlabelled", image, "no point is labelled", "label it, or drop the row")
            continue
        twin = first.setdefault(xy.tobytes(), image)
        if twin != image:
            yield warning(
                "repeated", image, f"its labels repeat those of {twin}", "drop the row whose picture they do not fit"
            )
        size = sizes.get(image) if isinstance(sizes, Mapping) else sizes
        if size is not None:
            out = names[np.isfinite(xy).all(axis=1) & ~inside(xy, *size)]
            if len(out):
                fix = "correct the points, or leave them empty; they count as not visible"
                yield warning("outside", image, f"outside the {size[0]}x{size[1]} frame: {list_names(list(out))}", fix)
        places: dict[tuple[float, float], list[str]] = defaultdict(list)
        for name, (x, y) in zip(annotations.skeleton.names, xy.tolist(), strict=True):
            if math.isfinite(x):
                places[x, y].append(name)
        same = [" = ".join(together) for together in places.values() if len(together) > 1]
        if same:
            yield warning(
                "coincident", image, f"at the same place: {list_names(same)}", "correct one of each, or leave it empty"
            )
        if _is_crossed(annotations.skeleton, xy):
            fix = "unless the body is twisted, exchange the left and right points of the wrong half"
            yield warning("left_right", image, "shoulders and hips point opposite ways", fix)


def _is_crossed(skeleton: Skeleton, xy: FloatArray) -> bool:
    """Whether left-to-right runs one way in the shoulders and the other way in the hips, both seen wide.

    A body can twist, but hardly by half a turn: both must be wider than 0.15 of the torso and more than 143 degrees
    apart. Eight of 400 photographs of athletes are: some clearly mislabelled, some a twisted leap, so look first.
    """
    needed = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
    if not set(needed) <= set(skeleton.names):
        return False
    shoulder_l, shoulder_r, hip_l, hip_r = (xy[skeleton.names.index(name)] for name in needed)
    shoulders, hips = shoulder_l - shoulder_r, hip_l - hip_r
    wide = 0.15 * np.linalg.norm((shoulder_l + shoulder_r - hip_l - hip_r) / 2)
    lengths = np.linalg.norm(shoulders), np.linalg.norm(hips)
    return bool(min(lengths) > wide and shoulders @ hips < -0.8 * lengths[0] * lengths[1])
