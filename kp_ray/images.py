"""Images: the only module that lists, probes, decodes and encodes them.

Arrays are (H, W, channels) uint8 in OpenCV's order: BGR, or BGRX with an unused fourth channel, which is faster to
resample and to encode.
"""

import contextlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import simplejpeg
from PIL import ExifTags, ImageOps, UnidentifiedImageError

from kp_ray import file_types
from kp_ray.errors import DataError, one_line
from kp_ray.storage import file_sizes

Image = npt.NDArray[np.uint8]
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".jp2", ".ppm", ".pgm"),
)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Formats that are decoded, whatever suffix the file's name has; of several frames the first. "JPEG" includes MPO,
which phones write. Pillow knows more formats, but runs other programs for some of them."""
_FORMAT_DESCRIPTIONS = (
    *(file_types.JPEG, file_types.PNG, file_types.WEBP, file_types.BMP, file_types.GIF),
    *(file_types.TIFF, file_types.AVIF, file_types.JPEG2000),
)
MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""
MAX_SIDE = 65500
"""Largest width and height, in pixels, of a JPEG that libjpeg writes (JPEG_MAX_DIMENSION in its jmorecfg.h)."""
_TRANSPOSED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Properties of an image that its header gives.

    Attributes:
        format: Pillow's name of the file format, e.g. "JPEG"; "MPO" is a JPEG file with several images.
        width, height: in pixels, of the upright image: after its EXIF orientation is applied.
        is_upright_jpeg: the data are a grey or color JPEG without an EXIF orientation, as `decode_resized` needs them.
    """

    format: str
    width: int
    height: int
    is_upright_jpeg: bool


def list_images(folder: str) -> list[str]:
    """List the image files in a local folder or URL and its sub-folders, sorted, as paths inside it ("a/b.jpg").

    Raises:
        StorageError: the folder does not exist.
    """
    return sorted(name for name in file_sizes(folder) if is_image_file(name))


def is_image_file(name: str) -> bool:
    """Return whether a file's name has an image's suffix and is not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def probe(content: bytes) -> ImageInfo:
    """Read an image's header; pixels that are damaged or cut off are not noticed.

    Raises:
        DataError: the bytes are not an image in one of FORMATS.
    """
    with _open(content) as opened:
        orientation: object = None
        with contextlib.suppress(Exception):  # `decode` and `require_whole` report a damaged tag
            orientation = _orientation(opened)
        width, height = opened.size
        if orientation in _TRANSPOSED:
            width, height = height, width
        return ImageInfo(opened.format or "", width, height, _is_jpeg(opened) and orientation == 1)


def require_whole(content: bytes) -> None:
    """Decode an image only to see whether it can be decoded; a JPEG at an eighth of its size, which is faster.

    Raises:
        DataError: the image is cut short or damaged.
    """
    with _open(content) as opened:
        if opened.format == "JPEG" and _is_jpeg(opened):
            simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, strict=True)
        else:
            opened.load()
        _orientation(opened)


def decode(content: bytes) -> tuple[Image, bool]:
    """Decode an image as a viewer shows it: upright, in color.

    Args:
        content: a file in one of FORMATS.

    Returns:
        The image (H, W, 4) BGRX, and whether `content` can be stored for it unchanged: a JPEG in grey or color that
        needs no EXIF orientation.

    Raises:
        DataError: the bytes are not an image, are cut short, or have a depth that 8 bits cannot hold.
    """
    with _open(content) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise DataError(f"{opened.width}x{opened.height} px is more than {MAX_PIXELS} pixels")
        if _orientation(opened) == 1 and opened.format == "JPEG" and _is_jpeg(opened):
            return simplejpeg.decode_jpeg(content, "BGRX", strict=True), True
        return _decode_with_pillow(opened), False


def decode_bgr(content: bytes) -> Image | None:
    """Decode an image for a preview as (H, W, 3) BGR, upright; None if it cannot be decoded."""
    try:
        return np.ascontiguousarray(decode(content)[0][..., :3])
    except DataError:
        return None


def decode_resized(image: bytes | Image, size: tuple[int, int], new_size: tuple[int, int]) -> Image:
    """Decode a JPEG and resize it as Detectron2's ResizeTransform does.

    The JPEG is decoded at 1/8, 1/4 or 1/2 of its size where that is still large enough: libjpeg's other scales are no
    faster than the full size.

    Args:
        image: bytes of a JPEG that is upright (`ImageInfo.is_upright_jpeg`), or a decoded (H, W, 3) image.
        size: (width, height) of the image in pixels.
        new_size: (width, height) of the result.

    Returns:
        (new height, new width, 3), BGR for a JPEG.

    Raises:
        DataError: the JPEG cannot be decoded.
    """
    scale = 1.0
    if isinstance(image, bytes):
        scales = [part for part in (1 / 8, 1 / 4, 1 / 2) if all(size[i] * part >= new_size[i] for i in (0, 1))]
        scale = scales[0] if scales else 1.0
        width, height = (math.ceil(side * scale) for side in size)
        try:
            image = simplejpeg.decode_jpeg(image, "BGR", min_width=width, min_height=height)
        except ValueError as error:
            raise DataError(f"cannot be decoded: {one_line(error)}") from error
    # The last column and row of a scaled image may reach past the frame: the box leaves that part out.
    box = (0, 0, size[0] * scale, size[1] * scale)
    bilinear = PIL.Image.Resampling.BILINEAR
    return np.asarray(PIL.Image.fromarray(np.asarray(image)).resize(new_size, bilinear, box))


def encode(image: Image, jpeg_quality: int) -> bytes:
    """Encode an image (H, W, 3) BGR or (H, W, 4) BGRX as JPEG with 4:2:0 chroma subsampling.

    Raises:
        DataError: a side is longer than a JPEG's can be.
    """
    height, width, num_channels = image.shape
    if max(height, width) > MAX_SIDE:
        raise DataError(f"{width}x{height} px is more than a JPEG's {MAX_SIDE} on a side")
    colorspace = "BGRX" if num_channels == 4 else "BGR"
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(image), jpeg_quality, colorspace=colorspace, colorsubsampling="420")
    )


def encode_bgr(image: Image, quality: int = 82) -> bytes:
    """Encode a preview (H, W, 3) BGR as JPEG."""
    is_encoded, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not is_encoded:
        raise ValueError(f"an image of shape {image.shape} cannot be encoded")
    return bytes(content.tobytes())


@contextlib.contextmanager
def _open(content: bytes) -> Iterator[PIL.Image.Image]:
    """Open an image with Pillow; an error of a decoder inside the block becomes a `DataError`."""
    if not content:
        raise DataError("the file is empty")
    try:
        with PIL.Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            yield opened
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its text holds a memory address
        raise DataError(_describe_unidentified(content)) from error
    except Exception as error:  # Pillow's decoders raise many classes on damaged bytes
        raise DataError(f"cannot be decoded: {one_line(error)}") from error


def _describe_unidentified(content: bytes) -> str:
    """Say why Pillow does not open a file, and what to do about it."""
    found = file_types.describe_content(content)
    if found in _FORMAT_DESCRIPTIONS:
        return f"is not an image that can be opened: {found} with a damaged header: replace the file"
    return f"is not an image in a format that kp_ray reads (found {found}): save it as JPEG or PNG"


def _is_jpeg(opened: PIL.Image.Image) -> bool:
    """Return whether an image's data are a JPEG in grey or color, which simplejpeg decodes as Pillow does."""
    return opened.format in ("JPEG", "MPO") and opened.mode in ("L", "RGB")


def _orientation(opened: PIL.Image.Image) -> object:
    """Return the EXIF orientation, 1 (upright) to 8; 1 without a tag; a damaged tag can hold any value."""
    return opened.getexif().get(ExifTags.Base.Orientation, 1)


def _decode_with_pillow(opened: PIL.Image.Image) -> Image:
    """Decode an open image of any supported mode as (H, W, 4) BGRX, upright."""
    upright = ImageOps.exif_transpose(opened)
    if upright.mode.startswith("I;16"):
        grey = (np.asarray(upright) >> 8).astype(np.uint8)
        rgb = np.repeat(grey[..., None], 3, axis=2)
    elif upright.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        rgb = np.asarray(upright.convert("RGB"))
    else:
        raise DataError(f"images of mode {upright.mode} are not supported: convert it to 8-bit RGB")
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA), dtype=np.uint8)
