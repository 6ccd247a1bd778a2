"""The findings of `check`, and the CSV that holds them."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

from kp_ray.errors import StorageError, one_line
from kp_ray.storage import read_bytes, write_bytes

FINDINGS_FILE = "check.csv"
"""Name of the file of findings in the run folder."""
Sizes = Mapping[str, tuple[int, int]] | tuple[int, int] | None
"""(width, height) in pixels by image name, or one (width, height) that all images have. The size of an image that the
mapping lacks is unknown; with None, every size is unknown."""
Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One problem in the labels or images.

    Attributes:
        level: "error" if the image cannot be used, "warning" if the user should look at it.
        kind: short name of the problem, e.g. "truncated"; findings are counted by kind.
        image: name of the image; "" for a finding about all images or the folder.
        message: the problem, on one line.
        fix: the remedy, on one line.
    """

    level: Level
    kind: str
    image: str
    message: str
    fix: str


_COLUMNS = [field.name for field in fields(Finding)]


def error(kind: str, image: str, message: str, fix: str) -> Finding:
    """Make a finding of level "error"."""
    return Finding("error", kind, image, message, fix)


def warning(kind: str, image: str, message: str, fix: str) -> Finding:
    """Make a finding of level "warning"."""
    return Finding("warning", kind, image, message, fix)


def list_names(names: Sequence[str], max_names: int = 4) -> str:
    """Join the first `max_names` names by commas and count the remaining names: "a, b and 3 more"."""
    num_left_out = len(names) - max_names
    return ", ".join(names[:max_names]) + (f" and {num_left_out} more" if num_left_out > 0 else "")


def write_findings(path: str, findings: Sequence[Finding]) -> None:
    """Write findings as a CSV with the columns level, kind, image, message, fix.

    Raises:
        StorageError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(finding) for finding in findings)
    write_bytes(path, text.getvalue().encode())


def read_findings(path: str) -> list[Finding]:
    """Read a CSV that `write_findings` wrote.

    Raises:
        StorageError: the file does not exist, cannot be read or is damaged.
    """
    levels: dict[str, Level] = {"error": "error", "warning": "warning"}
    try:
        rows = list(csv.reader(io.StringIO(read_bytes(path).decode(), newline=""), strict=True))
        header, *body = rows or [[]]
        if header != _COLUMNS:
            raise ValueError(f"its header is not {','.join(_COLUMNS)}")
        return [Finding(levels[level], *other_cells) for level, *other_cells in body]
    except (csv.Error, ValueError, KeyError, TypeError) as failure:
        raise StorageError(f"{path}: damaged ({one_line(failure)}): run check again") from failure
