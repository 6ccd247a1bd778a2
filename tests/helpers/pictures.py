"""Encoded pictures of every kind that kp_ray reads."""

import io
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

BGR = npt.NDArray[np.uint8]


def encode_with_pillow(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Encode a picture in one of Pillow's formats."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def to_png(bgr: BGR) -> bytes:
    """Encode a picture (H, W, 3) without loss."""
    return encode_with_pillow(Image.fromarray(np.ascontiguousarray(bgr[..., ::-1])), "PNG")


def to_jpeg(bgr: BGR, quality: int = 98) -> bytes:
    """Encode a picture (H, W, 3) with full colour resolution (4:4:4)."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(bgr), quality, "BGR", "444"))


def decode_upright_rgb(content: bytes) -> npt.NDArray[np.uint8]:
    """Decode a picture with Pillow alone, as (H, W, 3) RGB after its EXIF orientation."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def exif_orientation(orientation: int) -> Image.Exif:
    """Make EXIF data with this orientation, 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def corner_picture(mode: str = "RGB") -> Image.Image:
    """Draw a 96x64 picture whose corners are red, green, blue and yellow."""
    corners = np.array([[(230, 20, 20), (20, 220, 30)], [(30, 30, 210), (220, 210, 20)]], np.uint8)
    return Image.fromarray(cv2.resize(corners, (96, 64), interpolation=cv2.INTER_LINEAR)).convert(mode)


PICTURE_FILES = {
    "JPEG": encode_with_pillow(corner_picture(), "JPEG", quality=95),
    "progressive JPEG": encode_with_pillow(corner_picture(), "JPEG", quality=95, progressive=True),
    "4:4:4 JPEG": encode_with_pillow(corner_picture(), "JPEG", quality=95, subsampling=0),
    "grey JPEG": encode_with_pillow(corner_picture("L"), "JPEG", quality=95),
    "CMYK JPEG": encode_with_pillow(corner_picture("CMYK"), "JPEG", quality=95),
    **{
        f"JPEG with EXIF orientation {n}": encode_with_pillow(
            corner_picture(), "JPEG", quality=95, exif=exif_orientation(n)
        )
        for n in range(1, 9)
    },
    "grey JPEG with EXIF orientation 6": encode_with_pillow(
        corner_picture("L"), "JPEG", quality=95, exif=exif_orientation(6)
    ),
    "PNG": encode_with_pillow(corner_picture(), "PNG"),
    "PNG with alpha": encode_with_pillow(Image.merge("RGBA", [*corner_picture().split(), corner_picture("L")]), "PNG"),
    "PNG with a palette": encode_with_pillow(corner_picture().quantize(64), "PNG"),
    "PNG with EXIF orientation 8": encode_with_pillow(corner_picture(), "PNG", exif=exif_orientation(8)),
    "grey PNG": encode_with_pillow(corner_picture("L"), "PNG"),
    "black and white PNG": encode_with_pillow(corner_picture("1"), "PNG"),
    "lossless WEBP": encode_with_pillow(corner_picture(), "WEBP", lossless=True),
    "WEBP": encode_with_pillow(corner_picture(), "WEBP"),
    "BMP": encode_with_pillow(corner_picture(), "BMP"),
    "TIFF": encode_with_pillow(corner_picture(), "TIFF"),
    "GIF": encode_with_pillow(corner_picture(), "GIF"),
}
"""One file of each kind, by a description of it."""
UNCHANGED_KINDS = {"JPEG", "progressive JPEG", "4:4:4 JPEG", "grey JPEG", "JPEG with EXIF orientation 1"}
"""Kinds whose bytes a store keeps unchanged."""
