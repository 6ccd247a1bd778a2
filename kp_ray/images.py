"""Pictures: the one place where they are opened, decoded, encoded and listed."""

import io
import math

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import simplejpeg
from PIL import ExifTags, ImageOps, UnidentifiedImageError
from PIL import Image as PilImage

from kp_ray.errors import DataError, KpRayError, one_line
from kp_ray.storage import file_sizes

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What is decoded; Pillow knows more, some of them by running other programs."""


def list_images(folder: str) -> list[str]:
    """The sorted names of the picture files in a local folder or URL, "a/b.jpg" for one in a sub-folder.

    Raises:
        DataError: the folder is not there.
    """
    return sorted(name for name in file_sizes(folder) if is_picture(name))


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded."""
MAX_SIDE = 65500
"""Pixels a side of a JPEG that libjpeg writes (JPEG_MAX_DIMENSION in its jmorecfg.h)."""
Image = npt.NDArray[np.uint8]


def decode(content: bytes) -> tuple[Image, bool]:
    """Decode a picture as its viewer shows it.

    Args:
        content: a file of one of FORMATS.

    Returns:
        (H, W, 4) BGRX, and whether `content` can stand for the picture as it is: a JPEG in grey or colour that no
        EXIF tag rotates.

    Raises:
        DataError: with the reason, if it is no picture, is cut short, or has a depth that 8 bits cannot hold.
    """
    if not content:
        raise DataError("the file is empty")
    try:
        with PilImage.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{picture.width}x{picture.height} px is more than {MAX_PIXELS} pixels")
            upright = picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
            if picture.format == "JPEG" and upright and picture.mode in ("L", "RGB"):
                return simplejpeg.decode_jpeg(content, "BGRX", strict=True), True
            return _decode_other(picture), False
    except (KpRayError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its own text holds a memory address
        raise DataError("is not a picture in a format that is known here") from error
    except Exception as error:  # decoders raise whatever they stumble over
        raise DataError(f"cannot be decoded: {one_line(error)[:200]}") from error


def _decode_other(picture: PilImage.Image) -> Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        rgb = np.repeat(grey[..., None], 3, axis=2)
    elif picture.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        rgb = np.asarray(picture.convert("RGB"))
    else:
        raise DataError(f"pictures of mode {picture.mode} are not supported; convert it to 8-bit RGB")
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA), dtype=np.uint8)


def encode(picture: Image, jpeg_quality: int) -> bytes:
    if max(picture.shape[:2]) > MAX_SIDE:
        raise DataError(f"{picture.shape[1]}x{picture.shape[0]} px is more than a JPEG's {MAX_SIDE} on a side")
    return bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(picture), jpeg_quality, colorspace="BGRX", colorsubsampling="420")
    )


def decode_bgr(content: bytes) -> Image | None:
    """The picture (H, W, 3) of a JPEG or PNG file's bytes; None when they are not a picture."""
    if not content:
        return None
    image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(image, dtype=np.uint8)


def encode_bgr(image: Image, quality: int = 82) -> bytes:
    """A picture (H, W, 3) as JPEG."""
    done, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"a picture of shape {image.shape} cannot be encoded")
    return bytes(content.tobytes())


def decode_resized(picture: bytes | Image, size: tuple[int, int], new_size: tuple[int, int]) -> Image:
    """A JPEG or (H, W, 3) picture of `size` (width, height) at `new_size`, as Detectron2's ResizeTransform makes it.

    A JPEG is decoded at 1/8, 1/4 or 1/2 where that is still large enough (its other scales are no faster than 1).
    """
    scale = 1.0
    if isinstance(picture, bytes):
        fits = [part for part in (1 / 8, 1 / 4, 1 / 2) if all(size[i] * part >= new_size[i] for i in (0, 1))]
        scale = fits[0] if fits else 1.0
        width, height = (math.ceil(side * scale) for side in size)
        picture = simplejpeg.decode_jpeg(picture, "BGR", min_width=width, min_height=height)
    # A scaled picture's last column and row may reach past the frame, hence a box that ends within them.
    box = (0, 0, size[0] * scale, size[1] * scale)
    bilinear = PIL.Image.Resampling.BILINEAR
    return np.asarray(PIL.Image.fromarray(np.asarray(picture)).resize(new_size, bilinear, box))
