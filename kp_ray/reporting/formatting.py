"""Numbers, text and pictures as they stand in the page."""

import base64
import csv
import io
import math
import re
from collections.abc import Mapping
from typing import Any

from kp_ray.images import Image, encode_bgr
from kp_ray.storage import exists, read_json, read_text

NUM_ROWS = 100
"""The longest a list in the page gets; the files hold the rest."""


def read_optional_json(path: str) -> dict[str, Any] | None:
    return read_json(path, "run the stage that writes it again") if exists(path) else None


def read_csv_table(path: str) -> tuple[list[str], list[dict[str, str]]] | None:
    """The column names and rows of a CSV, as text."""
    text = read_text(path)
    if text is None:
        return None
    reader = csv.DictReader(io.StringIO(text), restval="")
    return list(reader.fieldnames or []), [{key: value for key, value in row.items() if key} for row in reader]


def dig(row: Mapping[str, Any] | None, key: str, nan: bool = False) -> float | None:
    """A number under a key, or under its two halves as in `pck.0.05`; None when it is absent or not finite."""
    outer, _, inner = key.partition(".")
    nested = (row or {}).get(outer)
    value = nested.get(inner) if isinstance(nested, Mapping) else (row or {}).get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if nan or math.isfinite(value) else None


def parse_float(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def format_number(value: Any) -> str:
    """A figure for people: thousands apart, four significant digits; what is not a number stays as it is."""
    if value is None:
        return "-"
    number = parse_float(str(value))
    if number is None or (isinstance(value, str) and not re.search(r"[.e]", value)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def without_secrets(text: str) -> str:
    """Text without the user and password of a URL: a report is made to be passed on."""
    return re.sub(r"(://)[^/\s@]+@", r"\1***@", text)


def figure(svg: bytes, alt: str) -> dict[str, str]:
    return {"uri": f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}", "alt": alt}


def jpeg_uri(image: Image) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(encode_bgr(image)).decode()}"
