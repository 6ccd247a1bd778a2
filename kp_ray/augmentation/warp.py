"""Resample one window of a source by an affine map, and change its brightness and contrast.

Images are (H, W, 4) BGRX; the fourth channel is not used (see `kp_ray.images`).
"""

import threading
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from kp_ray.augmentation.recipes import RECIPES
from kp_ray.augmentation.sampling import VariantParameters
from kp_ray.errors import DataError
from kp_ray.images import MAX_PIXELS, Image
from kp_ray.keypoints import FloatArray

MAX_PADDED_PIXELS = 15 * MAX_PIXELS
"""Largest padded image, 6 GB. A square is padded to twice its pixels, a long image to many times its pixels."""
_TILE = 256
"""Side in pixels of the square tiles in which a window is resampled."""
_MAX_ROTATE_DEG = max(recipe.rotate_deg for recipe in RECIPES.values())
"""Largest rotation of any built-in recipe, in degrees."""


class _Scratch(threading.local):
    """Image buffers that are reused per thread, because the first write to a new memory page is slow."""

    MIN_BYTES = 4 << 20
    """Smallest buffer: from this size NumPy requests huge pages, which make sampling along rotated rows faster."""
    MAX_BYTES = 64 << 20
    """Largest buffer that is kept, so that a worker does not hold the memory of a huge image forever."""

    def __init__(self) -> None:
        self.buffers: dict[str, npt.NDArray[np.uint8]] = {}

    def image(self, purpose: str, height: int, width: int) -> Image:
        """Return an uninitialised image (height, width, 4), valid until the next call with the same purpose."""
        num_bytes = height * width * 4
        if num_bytes > self.MAX_BYTES:
            return np.empty((height, width, 4), dtype=np.uint8)
        if purpose not in self.buffers or self.buffers[purpose].size < num_bytes:
            self.buffers[purpose] = np.empty(max(num_bytes, self.MIN_BYTES), dtype=np.uint8)
        return self.buffers[purpose][:num_bytes].reshape(height, width, 4)


_SCRATCH = _Scratch()


class PaddedSource:
    """A source image (H, W, 4), padded by reflection as far as a rotated frame can reach.

    Buffers are reused per thread: `padded_image` is valid until the next source is padded, and a window until the next
    call of `window`. The padding affects rounding, so it must not depend on the list of recipes: another recipe in the
    list would change a variant's pixels.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        height, width = image.shape[:2]
        self.pad_x, self.pad_y = _padding_px(width, height), _padding_px(height, width)

    @cached_property
    def padded_image(self) -> Image:
        """The padded image, made when the first variant needs it; a DataError if it would be too large."""
        pads = self.pad_y, self.pad_y, self.pad_x, self.pad_x
        height, width = self.image.shape[:2]
        padded_pixels = (height + 2 * self.pad_y) * (width + 2 * self.pad_x)
        if padded_pixels > MAX_PADDED_PIXELS:
            raise DataError(
                f"{width}x{height} px is too long to be rotated or rescaled: with its padding it has {padded_pixels} "
                f"pixels, more than {MAX_PADDED_PIXELS}: crop the image"
            )
        padded_image = _SCRATCH.image("padded", height + 2 * self.pad_y, width + 2 * self.pad_x)
        cv2.copyMakeBorder(self.image, *pads, cv2.BORDER_REFLECT_101, dst=padded_image)
        return padded_image

    def window(self, parameters: VariantParameters) -> Image:
        """Return the window (height, width, 4) of a variant, before `change_brightness_contrast`."""
        offset = parameters.affine[:, 2]
        if np.array_equal(parameters.affine[:, :2], np.eye(2)) and np.array_equal(offset, np.round(offset)):
            x, y = (-offset).astype(int)  # a crop at whole pixels is a view of the source
            return self.image[y : y + parameters.height, x : x + parameters.width]
        inverse = np.linalg.inv(np.vstack([parameters.affine, [0, 0, 1]]))[:2]
        inverse[:, 2] += self.pad_x, self.pad_y
        return _resample(self.padded_image, inverse, parameters.width, parameters.height)


def _resample(image: Image, inverse: FloatArray, width: int, height: int) -> Image:
    """Resample a window of `width` x `height` pixels with linear interpolation.

    Each tile of the window needs one region of `image`. If the window is rotated, the tile is sampled from a copy of
    this region, which fits the cache. Without tiles a rotated row crosses the whole image and misses the cache at every
    pixel (1080p: 10 ns per pixel without tiles, 4 to 8 ns with tiles).

    Args:
        image: (H, W, 4).
        inverse: affine (2, 3) from the window's pixel indices to the image's.
        width, height: size of the window in pixels.
    """
    window = _SCRATCH.image("window", height, width)
    (a, b, c), (d, e, f) = inverse.tolist()
    is_rotated = b != 0 or d != 0
    from_tile = inverse.copy()
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            tile = window[top : top + _TILE, left : left + _TILE]
            tile_h, tile_w = tile.shape[:2]
            x, y = a * left + b * top + c, d * left + e * top + f
            x0, x1 = _sampled_range(x, a * (tile_w - 1), b * (tile_h - 1))
            y0, y1 = _sampled_range(y, d * (tile_w - 1), e * (tile_h - 1))
            region = image[y0:y1, x0:x1]
            if is_rotated:
                copied_region = _SCRATCH.image("region", y1 - y0, x1 - x0)
                np.copyto(copied_region, region)
                region = copied_region
            from_tile[:, 2] = x - x0, y - y0
            cv2.warpAffine(region, from_tile, (tile_w, tile_h), dst=tile, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return window


def _sampled_range(start: float, change_along_row: float, change_along_column: float) -> tuple[int, int]:
    """Return the range [first, end) of pixels that a tile samples on one axis of the image.

    Args:
        start: coordinate in the image of the tile's first pixel.
        change_along_row, change_along_column: change of this coordinate along the tile's first row and first column.
    """
    low = start + (min(change_along_row, 0) + min(change_along_column, 0))
    high = start + (max(change_along_row, 0) + max(change_along_column, 0))
    return int(low), int(high) + 2  # linear interpolation also reads the next pixel, and the end is exclusive


def _padding_px(length: int, other_length: int) -> int:
    """Return the padding in pixels that rotations by up to _MAX_ROTATE_DEG degrees need on one axis.

    Args:
        length: size of the frame on this axis, in pixels.
        other_length: size of the frame on the other axis, in pixels.
    """
    # A frame rotated by t extends over length * cos(t) + other_length * sin(t), which is largest at this angle.
    worst_angle = min(np.deg2rad(_MAX_ROTATE_DEG), np.arctan2(other_length, length))
    extent = length * np.cos(worst_angle) + other_length * np.sin(worst_angle)
    return int(np.ceil((extent - length) / 2)) + 2


def change_brightness_contrast(image: Image, parameters: VariantParameters) -> Image:
    """Apply a variant's contrast and brightness to its pixels (H, W, 4)."""
    if parameters.contrast == 1 and parameters.brightness == 0:
        return image
    table = np.arange(256, dtype=np.float32) * np.float32(parameters.contrast) + np.float32(255 * parameters.brightness)
    return np.asarray(cv2.LUT(image, np.rint(table.clip(0, 255)).astype(np.uint8)), dtype=np.uint8)
