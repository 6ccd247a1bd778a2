"""Find mistakes that show only in all images together: coordinates that mean "no label", and labels of another scale.

Each mistake is one finding about the whole data set, because a single cause has thousands of symptoms.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from kp_ray.checks.findings import Finding, Sizes, list_names, warning
from kp_ray.data.annotations import Annotations
from kp_ray.keypoints import BoolArray, FloatArray

_MIN_IMAGES = 5
"""Minimum number of images that have a point at the same place, an exact pair x, y, for the place to be examined. The
usual sentinels, e.g. -1, -1, are examined even with one point. `scale_findings` reports fractions from this many images
on, or from half of all images if that is less."""
_MIN_SHARE = 0.02
"""Minimum fraction of all images that have a point at a place, in addition to `_MIN_IMAGES`, for the place to be
examined. Of 4195 real images, at most 0.4 % have a point at the same place, e.g. a foot at rest."""
_MAX_COMPARED_IMAGES = 1000
"""Maximum number of images in which a place is compared with the body; it bounds the time for a million images."""
_FRACTION_LIMIT = 1.5
"""If no coordinate of an image exceeds this value, its labels count as fractions of the image's size."""
_SMALL_BODY_PX = 16.0
"""Body size in pixels below which a label is too small to train on: Detectron2's smallest anchor is 32 px."""
_HALF_IMAGE_SHARE = 0.51
"""Share of width and height within which all points lie if the labels belong to images of half the size or smaller."""
_MIN_SCALE_IMAGES = 10
"""Minimum number of images whose points are compared with the images' sizes: in fewer images, all people may be in the
upper left quarter of their images by chance."""


@dataclass(frozen=True, eq=False)
class Sentinel:
    """A place that marks points without a label.

    Attributes:
        place: x, y as they are in the labels' file.
        at_place: (N, K) true for the points at this place.
    """

    place: tuple[float, float]
    at_place: BoolArray


def find_sentinels(annotations: Annotations) -> list[Sentinel]:
    """Find the places that mark points without a label, the most frequent first.

    The corner 0, 0 and places with two equal negative coordinates, e.g. -1, -1, count even if only one point is there.
    Any other place must hold points of several images at exactly the same coordinates, and meet one of two conditions:

    - In most of these images it is far from the rest of the body, or holds several points.
    - It holds four or more different keypoints, and at least ten times as many points as the median place.

    A foot that stands still meets neither condition.
    """
    xy = annotations.keypoints[..., :2]
    is_labelled = np.all(np.isfinite(xy), axis=2)
    rows, keypoint_indices = np.nonzero(is_labelled)
    if not len(rows):
        return []
    # A complex number per point, because np.unique sorts numbers 50 times as fast as rows.
    numbers = xy[rows, keypoint_indices] @ np.array([1, 1j])
    places, place_indices, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    is_usual_sentinel = (places.real == places.imag) & (places.real <= 0)
    is_frequent = counts >= max(_MIN_IMAGES, _MIN_SHARE * len(annotations))
    sentinels = []
    for index in np.flatnonzero(is_usual_sentinel | is_frequent):
        at_place = np.zeros(is_labelled.shape, dtype=bool)
        is_selected = place_indices == index
        at_place[rows[is_selected], keypoint_indices[is_selected]] = True
        is_outlier = counts[index] >= 10 * np.median(counts) and at_place.any(axis=0).sum() >= 4
        if is_usual_sentinel[index] or is_outlier or _is_apart(xy, is_labelled, at_place):
            sentinels.append(Sentinel((float(places[index].real), float(places[index].imag)), at_place))
    return sorted(sentinels, key=lambda sentinel: -int(sentinel.at_place.sum()))


def _is_apart(xy: FloatArray, is_labelled: BoolArray, at_place: BoolArray) -> bool:
    """Return whether a place is far from the body, or holds several points, in most of the images that share it.

    Args:
        xy: (N, K, 2) points.
        is_labelled: (N, K) true for labelled points.
        at_place: (N, K) true for the points at the place.
    """
    rows = np.flatnonzero(at_place.any(axis=1))
    if len(rows) < max(_MIN_IMAGES, _MIN_SHARE * len(xy)):
        return False
    rows = rows[:: -(-len(rows) // _MAX_COMPARED_IMAGES)]
    place = xy[at_place][0]
    num_suspicious = 0
    for row in rows:
        body = xy[row, is_labelled[row] & ~at_place[row]]
        low, high = (body.min(axis=0), body.max(axis=0)) if len(body) else (place, place)
        margin = (high - low).max() / 2
        is_far = ((place < low - margin) | (place > high + margin)).any()
        num_suspicious += bool(is_far or at_place[row].sum() > 1)
    return num_suspicious > len(rows) / 2


def sentinel_findings(annotations: Annotations, sentinels: list[Sentinel]) -> Iterator[Finding]:
    """Report each place that marks points without a label, with the items of data.missing_values that remove them."""
    places = [[_simplify_number(value) for value in sentinel.place] for sentinel in sentinels]
    for sentinel, (x, y) in zip(sentinels, places, strict=True):
        names = [annotations.skeleton.names[k] for k in np.flatnonzero(sentinel.at_place.any(axis=0))]
        message = (
            f"{int(sentinel.at_place.sum())} points in {int(sentinel.at_place.any(axis=1).sum())} of "
            f"{len(annotations)} images are at exactly {x}, {y} and count as labels: {list_names(names)}"
        )
        fix = f"if this place means that a point has no label, add to data.missing_values: {places}"
        yield warning("sentinel", "", message, fix)


def _simplify_number(value: float) -> int | float:
    """Return a whole number as an integer, so that a message shows 0 instead of 0.0."""
    return int(value) if value.is_integer() else value


def remove_sentinels(annotations: Annotations, sentinels: list[Sentinel]) -> Annotations:
    """Remove the labels of the points at these places, and the images that have no other labelled point."""
    if not sentinels:
        return annotations
    keypoints = annotations.keypoints.copy()
    at_any_place = np.logical_or.reduce([sentinel.at_place for sentinel in sentinels])
    keypoints[at_any_place] = (np.nan, np.nan, 0)
    lost_all_labels = at_any_place.any(axis=1) & ~np.isfinite(keypoints[..., 0]).any(axis=1)
    return replace(annotations, keypoints=keypoints).select(np.flatnonzero(~lost_all_labels))


def scale_findings(annotations: Annotations, sizes: Sizes) -> tuple[list[Finding], set[str]]:
    """Find coordinates that are not pixels of the images; at most one finding, of kind "scale".

    Args:
        annotations: N images, after `remove_sentinels`.
        sizes: sizes of the images in pixels, after the EXIF orientation is applied; without sizes only fractions and
            tiny bodies are found.

    Returns:
        The finding, and the images to whose coordinates it applies.
    """
    xy = annotations.keypoints[..., :2]
    is_labelled = np.any(np.all(np.isfinite(xy), axis=2), axis=1)
    xy, images = xy[is_labelled], np.array(annotations.images, dtype=object)[is_labelled]
    if not len(xy):
        return [], set()
    max_coordinates = np.nanmax(np.abs(xy), axis=(1, 2))
    is_fraction = max_coordinates <= _FRACTION_LIMIT
    if is_fraction.sum() >= min(_MIN_IMAGES, len(xy) / 2):
        message = (
            f"the coordinates of {is_fraction.sum()} of {len(xy)} images are fractions of the image's size, not "
            f"pixels: the largest is {max_coordinates[is_fraction].max():.4g}"
        )
        fix = "multiply x by the image's width and y by its height"
        return [_scale_warning(message, fix)], set(images[is_fraction])
    finding = _image_size_finding(annotations, sizes)
    if finding:
        return [finding], set(images)
    body_px = np.sqrt(np.prod(np.nanmax(xy, axis=1) - np.nanmin(xy, axis=1), axis=1))
    if np.median(body_px) < _SMALL_BODY_PX and np.isfinite(xy[..., 0]).sum(axis=1).max() > 2:
        message = f"half of the people are smaller than {np.median(body_px):.3g} px"
        fix = "if the labels belong to smaller images, multiply them by the ratio of the sizes"
        return [_scale_warning(message, fix)], set(images)
    return [], set()


def _image_size_finding(annotations: Annotations, sizes: Sizes) -> Finding | None:
    """Compare all points with the images' sizes; return None if the points fit, or if too few sizes are known."""
    sizes_by_image = sizes if isinstance(sizes, Mapping) else dict.fromkeys(annotations.images, sizes)
    image_sizes = np.array([sizes_by_image.get(image) or (np.nan, np.nan) for image in annotations.images], dtype=float)
    xy = annotations.keypoints[..., :2]
    is_used = np.isfinite(image_sizes[:, 0]) & np.any(np.all(np.isfinite(xy), axis=2), axis=1)
    if is_used.sum() < _MIN_SCALE_IMAGES:
        return None
    xy, image_sizes = xy[is_used], image_sizes[is_used]
    max_xy = np.nanmax(xy, axis=1)
    # The largest x and y of all images, as shares of width and height: 1 is the right or lower edge.
    max_share_x, max_share_y = (float(value) for value in (max_xy / image_sizes).max(axis=0))
    if max_xy.max() <= 100 and image_sizes.min() >= 200:
        message = f"coordinates are percentages of the image's size, not pixels: the largest is {max_xy.max():.4g}"
        return _scale_warning(message, "multiply x by the image's width / 100 and y by its height / 100")
    if max(max_share_x, max_share_y) <= _HALF_IMAGE_SHARE:
        message = (
            f"every point is in the upper left part of its image ({max_share_x:.0%} of the widths, {max_share_y:.0%} "
            "of the heights)"
        )
        fix = "if the labels belong to smaller images, e.g. of half the size, multiply them by the ratio of the sizes"
        return _scale_warning(message, fix)
    leaves_image = (max_xy > image_sizes).any(axis=1)
    if leaves_image.mean() > 0.5:
        message = f"{leaves_image.mean():.0%} of the images have points beyond their right or lower edge (up to "
        message += f"{max_share_x:.3g} widths and {max_share_y:.3g} heights)"
        if (np.nanmax(xy[..., ::-1], axis=1) <= image_sizes).all():
            return _scale_warning(message, "x and y are exchanged: exchange the columns")
        return _scale_warning(message, "if the labels belong to larger images, multiply them by the ratio of the sizes")
    return None


def _scale_warning(message: str, fix: str) -> Finding:
    return warning("scale", "", message, fix)
