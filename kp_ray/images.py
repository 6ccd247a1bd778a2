"""List, probe, decode and encode images; no other module of kp_ray opens an image file.

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
    ".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm",
)  # fmt: skip
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Formats that are decoded, whatever the file's suffix; only the first image of a file is used. "JPEG" includes MPO,
which phones write. Pillow's other formats are left out, because Pillow runs other programs to decode some of them."""
_FORMAT_DESCRIPTIONS = (
    file_types.JPEG,
    file_types.PNG,
    file_types.WEBP,
    file_types.BMP,
    file_types.GIF,
    file_types.TIFF,
    file_types.AVIF,
    file_types.JPEG2000,
)
MAX_PIXELS = 100_000_000
"""Images with more pixels are refused before they are decoded."""
MAX_SIDE = 65500
"""Largest width and height, in pixels, of a JPEG that libjpeg writes (JPEG_MAX_DIMENSION in its jmorecfg.h)."""
_8_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's image modes that are decoded, beside 16-bit grey."""
_TRANSPOSED_ORIENTATIONS = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Properties of an image that its header gives.

    Attributes:
        format: Pillow's name of the file format, e.g. "JPEG"; "MPO" is a JPEG file with several images.
        width, height: size in pixels after the EXIF orientation is applied.
        is_upright_jpeg: True if the file is a grey or color JPEG whose pixels are stored upright, as `decode_resized`
            requires.
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
    """Read an image's header, without its pixels: damaged or missing pixels raise no error.

    Raises:
        DataError: the bytes are not an image in one of FORMATS.
    """
    with _open(content) as pil_image:
        orientation: object = None
        with contextlib.suppress(Exception):  # `decode` and `require_decodable` report a damaged tag
            orientation = _orientation(pil_image)
        width, height = pil_image.size
        # Pillow gives the upright size of a TIFF, but the stored size of any other format.
        if orientation in _TRANSPOSED_ORIENTATIONS and pil_image.format != "TIFF":
            width, height = height, width
        return ImageInfo(
            pil_image.format or "", width, height, _has_grey_or_color_jpeg_data(pil_image) and orientation == 1
        )


def require_supported(content: bytes) -> None:
    """Refuse an image by its header if it is too large, or has a mode that kp_ray does not read.

    Raises:
        DataError: see above, or the bytes are not an image in one of FORMATS.
    """
    with _open(content) as pil_image:
        _refuse_unsupported(pil_image)


def require_decodable(content: bytes) -> None:
    """Refuse an image that cannot be decoded. A JPEG is decoded at an eighth of its size, which is faster.

    Raises:
        DataError: see `decode`.
    """
    with _open(content) as pil_image:
        _refuse_unsupported(pil_image)
        if pil_image.format == "JPEG" and _has_grey_or_color_jpeg_data(pil_image):
            simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, strict=True)
        else:
            pil_image.load()
        _orientation(pil_image)


def decode(content: bytes) -> tuple[Image, bool]:
    """Decode an image as a viewer shows it: upright, in color.

    Args:
        content: a file in one of FORMATS.

    Returns:
        The image (H, W, 4) BGRX, and True if `content` is a grey or color JPEG (not MPO) whose pixels are upright: such
        a file can be stored unchanged, so the image need not be encoded again.

    Raises:
        DataError: the image is truncated, damaged or too large, or its format or mode is not supported.
    """
    with _open(content) as pil_image:
        _refuse_unsupported(pil_image)
        if _orientation(pil_image) == 1 and pil_image.format == "JPEG" and _has_grey_or_color_jpeg_data(pil_image):
            return simplejpeg.decode_jpeg(content, "BGRX", strict=True), True
        return _decode_with_pillow(pil_image), False


def decode_preview(content: bytes) -> Image | None:
    """Decode an image as (H, W, 3) BGR, upright, for a preview; return None if it cannot be decoded."""
    try:
        return np.ascontiguousarray(decode(content)[0][..., :3])
    except DataError:
        return None


def decode_resized(image: bytes | Image, size: tuple[int, int], new_size: tuple[int, int]) -> Image:
    """Resize an image as Detectron2's ResizeTransform does; decode it first if it is a JPEG.

    The JPEG is decoded at the smallest of 1/8, 1/4 and 1/2 of its size that is at least `new_size`, else at full size:
    libjpeg's other scales are no faster than the full size.

    Args:
        image: bytes of a JPEG that is upright (`ImageInfo.is_upright_jpeg`), or a decoded (H, W, 4) BGRX image.
        size: (width, height) of the image in pixels.
        new_size: (width, height) of the result.

    Returns:
        The resized image (new height, new width, 3) BGR.

    Raises:
        DataError: the JPEG is too large, or cannot be decoded.
    """
    scale = 1.0
    if not isinstance(image, bytes):
        pixels = image
    else:
        _refuse_too_many_pixels(*size)
        for scale in (1 / 8, 1 / 4, 1 / 2, 1.0):
            if size[0] * scale >= new_size[0] and size[1] * scale >= new_size[1]:
                break
        width, height = (math.ceil(side * scale) for side in size)
        try:
            pixels = simplejpeg.decode_jpeg(image, "BGRX", min_width=width, min_height=height)
        except ValueError as error:
            raise DataError(f"cannot be decoded: {one_line(error)}") from error
    # libjpeg rounds a scaled size up, so the last column and row can reach past the image's edge: `box` cuts them.
    box = (0, 0, size[0] * scale, size[1] * scale)
    # Pillow stores colors with four bytes per pixel: in this mode it uses the array itself, else a converted copy.
    pil_image = PIL.Image.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)
    return np.asarray(pil_image.resize(new_size, PIL.Image.Resampling.BILINEAR, box))[..., :3]


def encode(image: Image, jpeg_quality: int) -> bytes:
    """Encode an image (H, W, 3) BGR or (H, W, 4) BGRX as JPEG with 4:2:0 chroma subsampling.

    Raises:
        DataError: a side is longer than MAX_SIDE.
    """
    height, width, num_channels = image.shape
    if max(height, width) > MAX_SIDE:
        raise DataError(f"{width}x{height} px is larger than a JPEG can be ({MAX_SIDE} px per side): crop the image")
    colorspace = "BGRX" if num_channels == 4 else "BGR"
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(image), jpeg_quality, colorspace=colorspace, colorsubsampling="420")
    )


def encode_preview(image: Image, quality: int = 82) -> bytes:
    """Encode an image (H, W, 3) BGR as JPEG, for a preview."""
    is_encoded, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not is_encoded:
        raise ValueError(f"an image of shape {image.shape} cannot be encoded")
    return bytes(content.tobytes())


@contextlib.contextmanager
def _open(content: bytes) -> Iterator[PIL.Image.Image]:
    """Open an image with Pillow; an error of a decoder inside the `with` block becomes a `DataError`."""
    if not content:
        raise DataError("the file is empty")
    try:
        with PIL.Image.open(io.BytesIO(content), formats=FORMATS) as pil_image:
            yield pil_image
    except (DataError, MemoryError):
        raise
    except PIL.Image.DecompressionBombError as error:  # Pillow's own limit, above MAX_PIXELS
        raise DataError(f"has more than {MAX_PIXELS} pixels: resize the image") from error
    except UnidentifiedImageError as error:  # Pillow's own message quotes only a memory address
        raise DataError(_describe_unidentified_file(content)) from error
    except Exception as error:  # Pillow's decoders raise many classes of errors on damaged bytes
        raise DataError(f"cannot be decoded: {one_line(error)}") from error


def _describe_unidentified_file(content: bytes) -> str:
    """Describe why Pillow cannot open a file, and the fix."""
    content_type = file_types.describe_content(content)
    if content_type in _FORMAT_DESCRIPTIONS:
        return f"is not an image that can be opened: {content_type} with a damaged header: replace the file"
    return f"is not an image in a format that kp_ray reads (found {content_type}): save it as JPEG or PNG"


def _refuse_unsupported(pil_image: PIL.Image.Image) -> None:
    """Raise a DataError if an open image is too large or has a mode that kp_ray does not read."""
    _refuse_too_many_pixels(*pil_image.size)
    if not pil_image.mode.startswith("I;16") and pil_image.mode not in _8_BIT_MODES:
        raise DataError(f"image mode {pil_image.mode} is not supported: convert the image to 8-bit RGB")


def _refuse_too_many_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"{width}x{height} px is more than {MAX_PIXELS} pixels: resize the image")


def _has_grey_or_color_jpeg_data(pil_image: PIL.Image.Image) -> bool:
    """Return whether an image's data are a JPEG in grey or color, which simplejpeg decodes as Pillow does."""
    return pil_image.format in ("JPEG", "MPO") and pil_image.mode in ("L", "RGB")


def _orientation(pil_image: PIL.Image.Image) -> object:
    """Return the EXIF orientation: 1 (upright, also without a tag) to 8, or any value of a damaged tag."""
    return pil_image.getexif().get(ExifTags.Base.Orientation, 1)


def _decode_with_pillow(pil_image: PIL.Image.Image) -> Image:
    """Decode an open image of any supported mode as (H, W, 4) BGRX, upright."""
    upright_image = ImageOps.exif_transpose(pil_image)
    if upright_image.mode.startswith("I;16"):
        grey = (np.asarray(upright_image) >> 8).astype(np.uint8)
        rgb = np.repeat(grey[..., None], 3, axis=2)
    else:
        rgb = np.asarray(upright_image.convert("RGB"))
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA), dtype=np.uint8)
