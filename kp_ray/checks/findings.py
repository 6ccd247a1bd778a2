"""One thing that `check` found, and the table of all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import pandas as pd


@dataclass(frozen=True)
class Finding:
    """One thing `check` found: an error cannot be used, a warning should be looked at."""

    level: Literal["error", "warning"]
    kind: str
    image: str
    message: str
    fix: str


Sizes = Mapping[str, tuple[int, int]] | tuple[int, int] | None
"""(width, height) of each image by name, or of all of them; None or a missing name: not known."""


def warning(kind: str, image: str, message: str, fix: str) -> Finding:
    return Finding("warning", kind, image, message, fix)


def list_names(names: Sequence[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def findings_table(findings: Sequence[Finding]) -> pd.DataFrame:
    """One row per finding: level, kind, image, message, fix."""
    columns = [field.name for field in fields(Finding)]
    return pd.DataFrame([[getattr(finding, name) for name in columns] for finding in findings], columns=columns)
