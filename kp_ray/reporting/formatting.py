"""Format numbers, texts and images for the page."""

import base64
from dataclasses import dataclass

from kp_ray.images import Image, encode_preview
from kp_ray.storage import URL_CREDENTIALS

MAX_ROWS = 100
"""Maximum number of rows of a table in the page; the files of the run folder hold all rows."""


@dataclass(frozen=True)
class Figure:
    """An image of the page.

    Attributes:
        uri: `data:` URI with the whole content.
        alt: description for readers who cannot see the image.
    """

    uri: str
    alt: str


def format_number(value: float | int | str | None) -> str:
    """Format a number with four significant digits and commas between thousands.

    None becomes "-"; a text is returned unchanged.
    """
    if value is None:
        return "-"
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def hide_credentials(text: str) -> str:
    """Replace user and password in every URL by `***`, because reports are shared."""
    return URL_CREDENTIALS.sub("***@", text)


def svg_figure(svg: bytes, alt: str) -> Figure:
    """Make a figure that embeds an SVG."""
    return Figure(f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}", alt)


def jpeg_uri(image: Image) -> str:
    """Encode an image (H, W, 3), BGR, as a `data:` URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(encode_preview(image)).decode()}"
