"""One source image and its recipes -> augmented rows: decode once, one affine per variant, encode.

Only the output window of a variant is resampled, once, from the source padded by reflection; the padded source is
shared by all of its variants. A picture that a recipe leaves as it is (`Original`) keeps the source's own bytes.
"""

import io
import json
import threading
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import simplejpeg
from PIL import ExifTags, ImageOps, UnidentifiedImageError
from PIL import Image as PilImage

from kp_ray.annotations import FORMATS
from kp_ray.config import InputError, one_line
from kp_ray.keypoints import FloatArray, inside, visible_box
from kp_ray.recipes import RECIPES, Draw, Recipe, albumentations, apply_affine, draw, variant_seed

MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded."""
MAX_SIDE = 65500
"""Pixels a side of a JPEG that libjpeg writes (JPEG_MAX_DIMENSION in its jmorecfg.h)."""
_TILE = 256
"""Side of the squares, in pixels, in which a window is resampled."""

_STEEPEST_DEG = max(recipe.rotate_deg for recipe in RECIPES.values())

Image = npt.NDArray[np.uint8]
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Source:
    """An original image and its labels; `keypoints` is (K, 3) x, y, v with NaN where unlabelled."""

    name: str
    scene: str
    camera: str
    frame: int
    split: str
    keypoints: FloatArray


def row_schema(num_keypoints: int) -> pa.Schema:
    """The columns of a store's rows."""
    return pa.schema(
        [
            ("source", pa.string()),
            ("scene", pa.string()),
            ("camera", pa.string()),
            ("frame", pa.int64()),
            ("split", pa.string()),
            ("recipe", pa.string()),
            ("copy", pa.int32()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("image", pa.binary()),
            ("keypoints", pa.list_(pa.float32(), 3 * num_keypoints)),
            ("bbox_xyxy", pa.list_(pa.float32(), 4)),
            ("num_visible", pa.int32()),
            ("affine", pa.list_(pa.float64(), 6)),
            ("seed", pa.uint64()),
        ]
    )


def decode(content: bytes) -> tuple[Image, bool]:
    """Decode a picture as its viewer shows it.

    Args:
        content: a file of one of FORMATS.

    Returns:
        (H, W, 4) BGRX, and whether `content` can stand for the picture as it is: a JPEG in grey or colour that no
        EXIF tag rotates.

    Raises:
        InputError: with the reason, if it is no picture, is cut short, or has a depth that 8 bits cannot hold.
    """
    if not content:
        raise InputError("the file is empty")
    try:
        with PilImage.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise InputError(f"{picture.width}x{picture.height} px is more than {MAX_PIXELS} pixels")
            upright = picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
            if picture.format == "JPEG" and upright and picture.mode in ("L", "RGB"):
                return simplejpeg.decode_jpeg(content, "BGRX", strict=True), True
            return _decode_other(picture), False
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise InputError("is not a picture in a format that is known here") from error
    except Exception as error:  # decoders raise whatever they stumble over
        raise InputError(f"cannot be decoded: {one_line(error)[:200]}") from error


def _decode_other(picture: PilImage.Image) -> Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        rgb = np.repeat(grey[..., None], 3, axis=2)
    elif picture.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        rgb = np.asarray(picture.convert("RGB"))
    else:
        raise InputError(f"pictures of mode {picture.mode} are not supported; convert it to 8-bit RGB")
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA), dtype=np.uint8)


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


class _Padded:
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


def augment_source(
    content: bytes,
    source: Source,
    recipes: Sequence[tuple[Recipe, int]],
    *,
    seed: int,
    jpeg_quality: int,
    scale_with_frame: bool,
    box_margin_px: float,
) -> tuple[list[Row], dict[str, str]]:
    """The rows of one source, every recipe's copies in order, and the reasons of recipes that cannot be applied to it.

    A recipe gives all of its copies or none, whatever other recipes do.

    Args:
        content: the source's encoded bytes.
        recipes: recipes with their number of copies.
        seed: the store's seed.
        jpeg_quality: of every picture that is encoded anew (4:2:0).
        scale_with_frame: scale the recipes' sizes when the frame is not 1920x1080.
        box_margin_px: added around the labelled points.

    Raises:
        InputError: the picture cannot be used, with the reason.
    """
    image, plain_jpeg = decode(content)
    height, width = image.shape[:2]
    padded = _Padded(image)

    def rows_of(recipe: Recipe, copies: int) -> Iterator[Row]:
        for copy in range(copies):
            seed_of_variant = variant_seed(seed, source.name, recipe.fingerprint, copy)
            if recipe.user is not None:
                picture, keypoints, affine = _run_user(recipe.user, image, source.keypoints, seed_of_variant)
                encoded = _encode(picture, jpeg_quality)
                out_h, out_w = picture.shape[:2]
            else:
                drawn = draw(recipe, width, height, seed_of_variant, scale_with_frame=scale_with_frame)
                keypoints = source.keypoints.copy()
                keypoints[:, :2] = apply_affine(drawn.affine, keypoints[:, :2])
                affine, out_w, out_h = drawn.affine, drawn.width, drawn.height
                untouched = (out_w, out_h) == (width, height) and np.array_equal(affine, np.eye(2, 3))
                if untouched and plain_jpeg and not recipe.brightness_contrast:
                    encoded = content
                else:
                    encoded = _encode(_relight(padded.window(drawn), drawn), jpeg_quality)
            yield {
                **_labels(keypoints, out_w, out_h, box_margin_px),
                "source": source.name,
                "scene": source.scene,
                "camera": source.camera,
                "frame": source.frame,
                "split": source.split,
                "recipe": recipe.name,
                "copy": copy,
                "width": out_w,
                "height": out_h,
                "image": encoded,
                "affine": affine.ravel(),
                "seed": seed_of_variant,
            }

    rows: list[Row] = []
    refused: dict[str, str] = {}
    for recipe, copies in recipes:
        try:
            rows += list(rows_of(recipe, copies))
        except InputError as error:
            refused[recipe.name] = str(error)
    return rows, refused


def _labels(keypoints: FloatArray, width: int, height: int, box_margin_px: float) -> Row:
    stored = keypoints.astype(np.float32)  # visibility is decided on the numbers that are stored
    stored[~inside(stored[:, :2].astype(np.float64), width, height), 2] = 0
    box = visible_box(stored.astype(np.float64), width, height, box_margin_px)
    return {
        "keypoints": stored.ravel(),
        "bbox_xyxy": box.astype(np.float32),
        "num_visible": int((stored[:, 2] > 0).sum()),
    }


def _relight(picture: Image, drawn: Draw) -> Image:
    if drawn.contrast == 1 and drawn.brightness == 0:
        return picture
    table = np.arange(256, dtype=np.float32) * np.float32(drawn.contrast) + np.float32(255 * drawn.brightness)
    return np.asarray(cv2.LUT(picture, np.rint(table.clip(0, 255)).astype(np.uint8)), dtype=np.uint8)


def _encode(picture: Image, jpeg_quality: int) -> bytes:
    if max(picture.shape[:2]) > MAX_SIDE:
        raise InputError(f"{picture.shape[1]}x{picture.shape[0]} px is more than a JPEG's {MAX_SIDE} on a side")
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(picture), jpeg_quality, colorspace="BGRX", colorsubsampling="420")
    )


@lru_cache(maxsize=64)
def _user_pipelines(serialised: str) -> tuple[Any, Any]:
    """A user's pipeline for the picture, and its twin with constant borders for the keypoints.

    A reflect border makes Albumentations return mirrored copies of every keypoint; the twin draws the same numbers
    and returns each keypoint once.
    """
    A = albumentations()  # noqa: N806
    loaded = A.from_dict(json.loads(serialised))
    whole = isinstance(loaded, A.Compose)
    steps, chance = (list(loaded.transforms), loaded.p) if whole else ([loaded], 1.0)
    twin = deepcopy(steps)
    for step in _all_steps(twin):
        if hasattr(step, "border_mode"):
            step.border_mode = cv2.BORDER_CONSTANT
    points = A.KeypointParams(format="xy", remove_invisible=False)
    return A.Compose(steps, p=chance), A.Compose(twin, p=chance, keypoint_params=points)


def _all_steps(steps: Sequence[Any]) -> list[Any]:
    """The steps and those inside them, outer ones first."""
    return [inner for step in steps for inner in (step, *_all_steps(getattr(step, "transforms", ())))]


def _reseed(pipeline: Any, seed: int) -> None:
    """Seed a pipeline and each of its steps apart.

    `set_random_seed` gives every step the same numbers, so that a large angle always comes with a large scale.
    """
    pipeline.set_random_seed(seed % 2**32)
    steps = _all_steps(pipeline.transforms)
    for step, own in zip(steps, np.random.SeedSequence(seed).generate_state(len(steps)), strict=True):
        step.set_random_seed(int(own))


def _run_user(serialised: str, image: Image, keypoints: FloatArray, seed: int) -> tuple[Image, FloatArray, FloatArray]:
    """A user's recipe by Albumentations; its affine is NaN if the pipeline is not an affine map."""
    height, width = image.shape[:2]
    labelled = np.isfinite(keypoints[:, :2]).all(axis=1)
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], dtype=float)
    everything = np.vstack([corners, keypoints[labelled, :2]])
    for_picture, for_points = _user_pipelines(serialised)
    _reseed(for_picture, seed)
    _reseed(for_points, seed)
    rgb = cv2.cvtColor(image, cv2.COLOR_BGRA2RGB)
    try:
        picture = for_picture(image=rgb)["image"]
        moved = for_points(image=rgb, keypoints=everything)["keypoints"]
    except Exception as error:  # whatever a transform stumbles over, a crop larger than the picture, say
        reason = one_line(f"{type(error).__name__}: {error}")[:200]
        raise InputError(f"the user recipe fails on it: {reason}") from error
    if len(moved) != 4 + labelled.sum() or picture.dtype != np.uint8 or picture.ndim != 3:
        raise InputError("the user recipe must keep every keypoint and give an 8-bit colour picture")
    result = keypoints.copy()
    result[labelled, :2] = moved[4:]
    origin, right, down = np.asarray(moved[:3], dtype=float)
    affine = np.column_stack([(right - origin) / width, (down - origin) / height, origin])
    if not np.allclose(apply_affine(affine, everything), moved, atol=1e-2):
        affine = np.full((2, 3), np.nan)
    elif np.linalg.det(affine[:, :2]) < 0:
        raise InputError("the user recipe mirrors it and leaves left and right keypoints as they are")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2BGRA), dtype=np.uint8), result, affine
