"""Draw skeletons over images (H, W, 3) BGR, crop images, and lay them out as contact sheets."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from kp_ray.images import Image
from kp_ray.keypoints import FloatArray, Skeleton, apply_affine
from kp_ray.visualization.colors import MIDDLE, Color, limb_colors, side_colors

_OUTLINE: Color = (0, 0, 0)
_BACKGROUND: Color = (34, 31, 29)
_SHIFT = 5  # number of fractional bits in the fixed-point coordinates that OpenCV draws with
_MAX_PX = 1e6  # larger coordinates do not fit OpenCV's 32-bit integers


def draw_skeleton(
    image: Image,
    keypoints: FloatArray,
    skeleton: Skeleton,
    *,
    bbox_xyxy: FloatArray | None = None,
    color: Color | None = None,
) -> Image:
    """Draw a person's skeleton over a copy of the image.

    Args:
        image: (H, W, 3).
        keypoints: (K, 3) x, y in pixel indices and visibility or score. Points with visibility 0 or a coordinate that
            is not finite are left out, and so are their limbs.
        skeleton: the K keypoints with their limbs and flip pairs.
        bbox_xyxy: (4,) box to draw in pixel indices; None: draw no box.
        color: color of the whole skeleton; None: different colors for left, right and middle.
    """
    canvas: Image = np.array(image, dtype=np.uint8, order="C")
    unit = float(np.hypot(*canvas.shape[:2])) / 560  # 1 for an image of 448x336 pixels
    thickness = max(1, round(2 * unit))
    outline = thickness + max(2, 2 * round(unit))
    colors = [color or side_color for side_color in side_colors(skeleton)]
    xy = _to_fixed_point(keypoints[:, :2])
    is_drawable = _drawable_mask(keypoints)
    if bbox_xyxy is not None and np.isfinite(bbox_xyxy).all() and np.abs(bbox_xyxy).max() < _MAX_PX:
        corners = [_pair(corner) for corner in _to_fixed_point(np.asarray(bbox_xyxy).reshape(2, 2))]
        for width, box_color in ((outline, _OUTLINE), (thickness, color or MIDDLE)):
            cv2.rectangle(canvas, corners[0], corners[1], box_color, width, cv2.LINE_AA, _SHIFT)
    limbs = [
        (_pair(xy[a]), _pair(xy[b]), color or limb_color)
        for (a, b), limb_color in zip(skeleton.limb_indices, limb_colors(skeleton), strict=True)
        if is_drawable[a] and is_drawable[b]
    ]
    for start, end, _ in limbs:
        cv2.line(canvas, start, end, _OUTLINE, outline, cv2.LINE_AA, _SHIFT)
    for start, end, limb_color in limbs:
        cv2.line(canvas, start, end, limb_color, thickness, cv2.LINE_AA, _SHIFT)
    radius_px = max(1.5, 2.8 * unit)
    for index in np.flatnonzero(is_drawable):
        for radius, disc_color in ((radius_px + max(1.0, unit), _OUTLINE), (radius_px, colors[index])):
            _fill_disc(canvas, keypoints[index, :2], radius, disc_color)
    return canvas


def draw_legend(image: Image, entries: Sequence[tuple[str, Color]]) -> Image:
    """Write names in their colors, one per line, into the top left corner of a copy of the image (H, W, 3)."""
    canvas: Image = np.array(image, dtype=np.uint8, order="C")
    size = max(0.4, canvas.shape[0] / 1100)
    for row, (name, color) in enumerate(entries):
        text = name.encode("ascii", "replace").decode()  # OpenCV's fonts have ASCII letters only
        text_xy = (round(14 * size), round((row + 1) * 34 * size))
        for text_color, width in ((_OUTLINE, 5), (color, 2)):
            cv2.putText(
                canvas, text, text_xy, cv2.FONT_HERSHEY_SIMPLEX, size, text_color, round(width * size), cv2.LINE_AA
            )
    return canvas


def _fill_disc(canvas: Image, centre: FloatArray, radius_px: float, color: Color) -> None:
    """Fill a disc in place, blending each pixel by the share that the disc covers.

    `cv2.circle` is not used because it draws small circles about 0.1 px off their centre.
    """
    height, width = canvas.shape[:2]
    x1, y1 = np.clip(np.floor(centre - radius_px), 0, [width, height]).astype(int)
    x2, y2 = np.clip(np.ceil(centre + radius_px) + 1, 0, [width, height]).astype(int)
    y, x = np.ogrid[y1:y2, x1:x2]
    coverage = np.clip(radius_px + 0.5 - np.hypot(x - centre[0], y - centre[1]), 0, 1)[..., None]
    window = canvas[y1:y2, x1:x2]
    window[:] = np.rint(window * (1 - coverage) + np.array(color) * coverage)


def _drawable_mask(keypoints: FloatArray) -> npt.NDArray[np.bool_]:
    """Return a (K,) mask of the keypoints with visibility or score > 0 and finite coordinates below `_MAX_PX`."""
    with np.errstate(invalid="ignore"):
        is_in_range = (np.abs(keypoints[:, :2]) < _MAX_PX).all(axis=1)
        return np.asarray(is_in_range & (keypoints[:, 2] > 0))


def _to_fixed_point(xy: FloatArray) -> npt.NDArray[np.int64]:
    """Convert pixel coordinates to OpenCV's fixed-point integers with `_SHIFT` fractional bits."""
    xy = np.nan_to_num(np.asarray(xy, dtype=np.float64)).clip(-_MAX_PX, _MAX_PX)
    return np.asarray(np.rint(xy * 2**_SHIFT), dtype=np.int64)


def _pair(point: npt.NDArray[np.int64]) -> tuple[int, int]:
    return int(point[0]), int(point[1])


def crop_and_resize(image: Image, bbox_xyxy: FloatArray | None, max_side_px: int) -> tuple[Image, FloatArray]:
    """Crop an image to a box and resize the crop so that its longer side is `max_side_px`; enlarge at most twofold.

    Args:
        image: (H, W, 3).
        bbox_xyxy: (4,) box in pixel indices, clipped to the image. If it is None or outside the image, the whole image
            is resized.
        max_side_px: longer side of the result in pixels.

    Returns:
        The resized crop, and the affine matrix (2, 3) from pixel indices of `image` to pixel indices of the crop.
    """
    height, width = image.shape[:2]
    box = np.zeros(4) if bbox_xyxy is None else np.nan_to_num(bbox_xyxy)
    low = np.clip(np.floor(box[:2]), 0, [width, height])
    high = np.clip(np.ceil(box[2:]) + 1, 0, [width, height])
    if (high - low < 2).any():
        low, high = np.zeros(2), np.array([width, height], dtype=float)
    (x1, y1), (x2, y2) = low.astype(int), high.astype(int)
    size = high - low
    scale = min(max_side_px / float(size.max()), 2.0)
    new_width, new_height = (max(1, round(float(side) * scale)) for side in size)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(image[y1:y2, x1:x2], (new_width, new_height), interpolation=method)
    factors = np.array([new_width, new_height]) / size
    # Resizing scales about the outer corner of the top left pixel, which has the pixel index -0.5.
    offset = (0.5 - low) * factors - 0.5
    return np.asarray(resized, dtype=np.uint8), np.column_stack([np.diag(factors), offset])


def transform_keypoints(keypoints: FloatArray, affine: FloatArray) -> FloatArray:
    """Apply an affine matrix (2, 3) to x and y of keypoints (K, 3); keep the third column, visibility or score."""
    return np.column_stack([apply_affine(affine, keypoints[:, :2]), keypoints[:, 2]])


def draw_contact_sheet(images: Sequence[Image], titles: Sequence[str], columns: int, tile_width: int) -> Image:
    """Lay images out in a grid of 4:3 tiles on a dark background, with the title of each image below its tile.

    Args:
        images: (H, W, 3) each, of any size.
        titles: one title per image; a title wider than the tile is cut.
        columns: maximum number of tiles per row.
        tile_width: width of a tile in pixels.

    Raises:
        ValueError: there are no images, the numbers of titles and images differ, or `columns` is below 1.
    """
    if not images or len(images) != len(titles) or columns < 1:
        counts = f"{len(images)} images, {len(titles)} titles, {columns} columns"
        raise ValueError(f"contact sheet: needs images, one title per image and a column (got {counts})")
    gap, band = max(4, tile_width // 40), max(18, tile_width // 11)
    tile_height = tile_width * 3 // 4
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    step_x, step_y = tile_width + gap, tile_height + band + gap
    sheet: Image = np.full((rows * step_y + gap, columns * step_x + gap, 3), _BACKGROUND, dtype=np.uint8)
    for index, (image, title) in enumerate(zip(images, titles, strict=True)):
        x, y = gap + index % columns * step_x, gap + index // columns * step_y
        scale = min(tile_width / image.shape[1], tile_height / image.shape[0])
        width, height = (max(1, int(side * scale)) for side in (image.shape[1], image.shape[0]))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        left, top = x + (tile_width - width) // 2, y + (tile_height - height) // 2
        sheet[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=method)
        _write_title(sheet[y + tile_height : y + tile_height + band, x : x + tile_width], title)
    return sheet


def _write_title(band: Image, title: str) -> None:
    """Write a centred title into a band (H, W, 3) of an image, in place."""
    font, size = cv2.FONT_HERSHEY_SIMPLEX, band.shape[0] / 50
    text = title.encode("ascii", "replace").decode()  # OpenCV's fonts have ASCII letters only
    while len(text) > 4 and cv2.getTextSize(text, font, size, 1)[0][0] > band.shape[1]:
        text = text.removesuffix("...")[:-1] + "..."
    (width, height), _ = cv2.getTextSize(text, font, size, 1)
    text_xy = ((band.shape[1] - width) // 2, (band.shape[0] + height) // 2)
    patch = np.ascontiguousarray(band)
    band[:] = cv2.putText(patch, text, text_xy, font, size, (225, 225, 225), 1, cv2.LINE_AA)
