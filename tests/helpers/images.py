"""Encoded images of every format that kp_ray reads."""

import io
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps

BGR = npt.NDArray[np.uint8]


def encode_with_pillow(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Encode an image in one of Pillow's formats, e.g. "PNG"."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def to_png(bgr: BGR) -> bytes:
    """Encode an image (H, W, 3), BGR, as PNG, which loses nothing."""
    return encode_with_pillow(Image.fromarray(np.ascontiguousarray(bgr[..., ::-1])), "PNG")


def to_jpeg(bgr: BGR, quality: int = 98) -> bytes:
    """Encode an image (H, W, 3), BGR, as JPEG with full color resolution (4:4:4)."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(bgr), quality, "BGR", "444"))


def decode_upright_rgb(content: bytes) -> npt.NDArray[np.uint8]:
    """Decode an image with Pillow alone to (H, W, 3) RGB, turned upright by its EXIF orientation."""
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def exif_orientation(orientation: int) -> Image.Exif:
    """Make EXIF data with an orientation from 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def corner_image(mode: str = "RGB") -> Image.Image:
    """Draw a 96x64 image whose corners are red, green, blue and yellow."""
    corners = np.array([[(230, 20, 20), (20, 220, 30)], [(30, 30, 210), (220, 210, 20)]], np.uint8)
    return Image.fromarray(cv2.resize(corners, (96, 64), interpolation=cv2.INTER_LINEAR)).convert(mode)


IMAGE_FILES = {
    "JPEG": encode_with_pillow(corner_image(), "JPEG", quality=95),
    "progressive JPEG": encode_with_pillow(corner_image(), "JPEG", quality=95, progressive=True),
    "4:4:4 JPEG": encode_with_pillow(corner_image(), "JPEG", quality=95, subsampling=0),
    "grey JPEG": encode_with_pillow(corner_image("L"), "JPEG", quality=95),
    "CMYK JPEG": encode_with_pillow(corner_image("CMYK"), "JPEG", quality=95),
    **{
        f"JPEG with EXIF orientation {n}": encode_with_pillow(
            corner_image(), "JPEG", quality=95, exif=exif_orientation(n)
        )
        for n in range(1, 9)
    },
    "grey JPEG with EXIF orientation 6": encode_with_pillow(
        corner_image("L"), "JPEG", quality=95, exif=exif_orientation(6)
    ),
    "PNG": encode_with_pillow(corner_image(), "PNG"),
    "PNG with alpha": encode_with_pillow(Image.merge("RGBA", [*corner_image().split(), corner_image("L")]), "PNG"),
    "PNG with a palette": encode_with_pillow(corner_image().quantize(64), "PNG"),
    "PNG with EXIF orientation 8": encode_with_pillow(corner_image(), "PNG", exif=exif_orientation(8)),
    "grey PNG": encode_with_pillow(corner_image("L"), "PNG"),
    "black and white PNG": encode_with_pillow(corner_image("1"), "PNG"),
    "lossless WEBP": encode_with_pillow(corner_image(), "WEBP", lossless=True),
    "WEBP": encode_with_pillow(corner_image(), "WEBP"),
    "BMP": encode_with_pillow(corner_image(), "BMP"),
    "TIFF": encode_with_pillow(corner_image(), "TIFF"),
    "AVIF": encode_with_pillow(corner_image(), "AVIF", quality=95),
    "AVIF with EXIF orientation 6": encode_with_pillow(corner_image(), "AVIF", quality=95, exif=exif_orientation(6)),
    "MPO": encode_with_pillow(corner_image(), "MPO", save_all=True, append_images=[corner_image("L")], quality=95),
    "MPO with EXIF orientation 6": encode_with_pillow(
        corner_image(), "MPO", save_all=True, append_images=[corner_image()], quality=95, exif=exif_orientation(6)
    ),
    "JPEG2000": encode_with_pillow(corner_image(), "JPEG2000"),
    "PPM": encode_with_pillow(corner_image(), "PPM"),
    "GIF": encode_with_pillow(corner_image(), "GIF"),
}
"""Kind of file (a format, perhaps with a property) -> content of one file of that kind."""
UNCHANGED_KINDS = {"JPEG", "progressive JPEG", "4:4:4 JPEG", "grey JPEG", "JPEG with EXIF orientation 1"}
"""The kinds in `IMAGE_FILES` whose bytes the recipe Original stores unchanged."""
