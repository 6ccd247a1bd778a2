"""Compare what a COCO JSON states about images and people with the image files and the points."""

from collections.abc import Iterator, Mapping

import numpy as np

from kp_ray.checks.findings import Finding, Sizes, warning
from kp_ray.data.annotations import Annotations, StatedFacts
from kp_ray.keypoints import FloatArray

BOX_MARGIN = 0.1
"""Distance, as a share of the box's longer side, up to which a point outside a box counts as inside."""
MIN_SHARE_IN_BOX = 0.5
"""Share of the labelled points that must be inside the stated box. COCO's boxes surround the visible body, so that some
points of a person are outside."""


def check_stated_facts(annotations: Annotations, sizes: Sizes = None) -> list[Finding]:
    """Find stated sizes, num_keypoints and boxes that do not fit the image or its points; all findings are warnings.

    Kinds: swapped_size (the upright image has the stated width as its height, and the stated height as its width),
    stated_size (another difference in size: the image was resized, cropped or replaced), num_keypoints (differs from
    the number of points with v > 0), bbox (it leaves the image, or fewer than half of the points are in it).

    Args:
        annotations: N images; annotations from a CSV have no stated facts, and then nothing is found.
        sizes: sizes in pixels of the upright images, which are turned as their EXIF orientation says.
    """
    findings: list[Finding] = []
    for image, points, facts in zip(annotations.images, annotations.keypoints, annotations.stated, strict=False):
        labelled_xy = points[points[:, 2] > 0, :2]
        size = sizes.get(image) if isinstance(sizes, Mapping) else sizes
        if size is not None and facts.size is not None and facts.size != size:
            findings.append(_size_finding(image, labelled_xy, facts.size, size))
        findings += _person_findings(image, labelled_xy, facts, size or facts.size)
    return findings


def _size_finding(image: str, labelled_xy: FloatArray, stated_size: tuple[int, int], size: tuple[int, int]) -> Finding:
    """Report a stated size that is not the image's size; the labelled points (L, 2) decide which fix to propose."""
    comparison = (
        f"the labels state {stated_size[0]}x{stated_size[1]} px, the image as displayed has {size[0]}x{size[1]} px"
    )
    points_leave_image = bool((labelled_xy >= np.array(size)).any())
    if stated_size == size[::-1]:
        if points_leave_image:
            fix = "the points fit the image as stored: remove the EXIF orientation from the file, or turn the points"
        else:
            fix = "check whether the points fit; if they do, exchange width and height in the labels"
        return warning("swapped_size", image, f"{comparison}: the image is turned, e.g. by its EXIF orientation", fix)
    scale_x, scale_y = size[0] / stated_size[0], size[1] / stated_size[1]
    # Rounding the sides to whole pixels changes the ratio of the scales by up to 1 / (shortest side).
    rounding = 1 / min(*size, *stated_size)
    if abs(scale_x / scale_y - 1) <= rounding:
        message = f"{comparison}: the image was resized by {scale_x:.3g}"
        fix = f"use the images of the stated size, or multiply the points by {scale_x:.3g}"
    else:
        message = f"{comparison}: the image was cropped, or replaced by an image of the same name"
        fix = "use the images that were labelled"
    if not points_leave_image:
        fix += "; if the points fit already, correct width and height in the labels"
    return warning("stated_size", image, message, fix)


def _person_findings(
    image: str, labelled_xy: FloatArray, facts: StatedFacts, size: tuple[int, int] | None
) -> Iterator[Finding]:
    """Compare num_keypoints and bbox with the labelled points (L, 2) and the size in pixels of one image."""
    if facts.num_keypoints is not None and facts.num_keypoints != facts.num_labelled:
        message = f"num_keypoints is {facts.num_keypoints}, {facts.num_labelled} points have v > 0"
        yield warning("num_keypoints", image, message, "correct num_keypoints, or the v of each point")
    if facts.bbox_xywh is None or not len(labelled_xy):
        return
    x, y, width, height = facts.bbox_xywh
    if width <= 0 or height <= 0:
        return
    margin = BOX_MARGIN * max(width, height)
    begins_outside = min(x, y) < -margin
    ends_outside = size is not None and (x + width > size[0] + margin or y + height > size[1] + margin)
    share_inside = _share_inside(labelled_xy, (x, y, x + width, y + height))
    if not (begins_outside or ends_outside) and share_inside >= MIN_SHARE_IN_BOX:
        return
    # With x = y = 0 both forms of a box are the same numbers, so two corners cannot be recognized.
    may_be_corners = x + y > 0 and width > x and height > y
    if may_be_corners and _share_inside(labelled_xy, (x, y, width, height)) == 1:
        message = "bbox holds two corners (x1, y1, x2, y2) instead of x, y, width, height"
        yield warning("bbox", image, message, "write x, y, width, height")
        return
    box = f"bbox {x:g}, {y:g}, {width:g}, {height:g} (x, y, w, h)"
    if begins_outside or ends_outside:
        message = f"{box} leaves the {size[0]}x{size[1]} image" if size else f"{box} leaves the image"
        yield warning("bbox", image, message, "check whether box and points belong to the same image size")
        return
    num_points = len(labelled_xy)
    message = f"{round(share_inside * num_points)} of {num_points} points are inside {box}"
    yield warning("bbox", image, message, "check whether box and points belong to the same person and image size")


def _share_inside(xy: FloatArray, box_xyxy: tuple[float, float, float, float]) -> float:
    """Return the share of points (L, 2) in a box that is enlarged by BOX_MARGIN of its longer side."""
    low, high = np.array(box_xyxy[:2]), np.array(box_xyxy[2:])
    margin = BOX_MARGIN * float((high - low).max())
    return float(((xy >= low - margin) & (xy <= high + margin)).all(axis=1).mean())
