"""Resample one window of a source by an affine map."""

import threading
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from kp_ray.augmentation.recipes import RECIPES
from kp_ray.augmentation.sampling import Draw
from kp_ray.images import Image
from kp_ray.keypoints import FloatArray

_TILE = 256
"""Side of the squares, in pixels, in which a window is resampled."""
_STEEPEST_DEG = max(recipe.rotate_deg for recipe in RECIPES.values())


class _Scratch(threading.local):
    """Memory for pictures that is used again, since fresh pages cost time.

    Never less than 4 MiB at once: from there on NumPy asks for huge pages, which rotated sampling needs. More than
    64 MiB is not kept: one giant picture would hold it to the worker's end.
    """

    def __init__(self) -> None:
        self.blocks: dict[str, npt.NDArray[np.uint8]] = {}

    def picture(self, use: str, height: int, width: int) -> Image:
        """An (height, width, 4) picture of any content, which the next one for this `use` overwrites."""
        size = height * width * 4
        if size > 64 << 20:
            return np.empty((height, width, 4), dtype=np.uint8)
        if use not in self.blocks or self.blocks[use].size < size:
            self.blocks[use] = np.empty(max(size, 4 << 20), dtype=np.uint8)
        return self.blocks[use][:size].reshape(height, width, 4)


_SCRATCH = _Scratch()


class PaddedSource:
    """A source, padded by reflection as far as a rotated frame can reach.

    Only a thread's latest one is valid, and of its windows the latest. The padding is the same whatever recipes are
    asked for: it shifts where sampling rounds, so a variant's bytes would depend on the recipes beside it.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        height, width = image.shape[:2]
        self.pad_x, self.pad_y = _reach(width, height, _STEEPEST_DEG), _reach(height, width, _STEEPEST_DEG)

    @cached_property
    def padded(self) -> Image:
        pads = self.pad_y, self.pad_y, self.pad_x, self.pad_x
        height, width = self.image.shape[:2]
        whole = _SCRATCH.picture("padded", height + 2 * self.pad_y, width + 2 * self.pad_x)
        cv2.copyMakeBorder(self.image, *pads, cv2.BORDER_REFLECT_101, dst=whole)
        return whole

    def window(self, drawn: Draw) -> Image:
        """The variant's picture (height, width, 4)."""
        offset = drawn.affine[:, 2]
        if np.array_equal(drawn.affine[:, :2], np.eye(2)) and np.array_equal(offset, np.round(offset)):
            x, y = (-offset).astype(int)
            return self.image[y : y + drawn.height, x : x + drawn.width]
        inverse = np.linalg.inv(np.vstack([drawn.affine, [0, 0, 1]]))[:2]
        inverse[:, 2] += self.pad_x, self.pad_y
        return _resample(self.padded, inverse, drawn.width, drawn.height)


def _resample(image: Image, inverse: FloatArray, width: int, height: int) -> Image:
    """Sample a window linearly; `inverse` (2, 3) leads from its pixels to those of `image`.

    Tile by tile, each from a copy of the piece of `image` that it needs: a rotated row crosses the whole picture, and
    sampling that in place waits for memory at every pixel (1080p: 10 ns a pixel against 4 to 8 in tiles).
    """
    window = _SCRATCH.picture("window", height, width)
    (a, b, c), (d, e, f) = inverse.tolist()
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            tile = window[top : top + _TILE, left : left + _TILE]
            tile_h, tile_w = tile.shape[:2]
            x, y = a * left + b * top + c, d * left + e * top + f
            x0, x1 = _span(x, a * (tile_w - 1), b * (tile_h - 1))
            y0, y1 = _span(y, d * (tile_w - 1), e * (tile_h - 1))
            piece = _SCRATCH.picture("piece", y1 - y0, x1 - x0)
            np.copyto(piece, image[y0:y1, x0:x1])
            from_tile = np.array([[a, b, x - x0], [d, e, y - y0]])
            cv2.warpAffine(piece, from_tile, (tile_w, tile_h), dst=tile, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return window


def _span(start: float, across: float, down: float) -> tuple[int, int]:
    """The pixels of an axis that a tile samples which starts at `start` and is so long in its two directions."""
    low, high = start + min(across, 0) + min(down, 0), start + max(across, 0) + max(down, 0)
    return int(low), int(high) + 2


def _reach(along: int, across: int, rotate_deg: float) -> int:
    """How far beyond its edge a frame rotated by up to `rotate_deg` samples, on the axis of length `along`."""
    worst = min(np.deg2rad(rotate_deg), np.arctan2(across, along))
    return int(np.ceil((along * np.cos(worst) + across * np.sin(worst) - along) / 2)) + 2


def relight(picture: Image, drawn: Draw) -> Image:
    if drawn.contrast == 1 and drawn.brightness == 0:
        return picture
    table = np.arange(256, dtype=np.float32) * np.float32(drawn.contrast) + np.float32(255 * drawn.brightness)
    return np.asarray(cv2.LUT(picture, np.rint(table.clip(0, 255)).astype(np.uint8)), dtype=np.uint8)
