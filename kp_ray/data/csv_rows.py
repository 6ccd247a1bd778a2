"""Read the rows and cells of a CSV, and name the cause if the file or a cell cannot be used."""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from kp_ray.errors import DataError
from kp_ray.file_types import TEXT, UTF16, UTF16_WITHOUT_BOM, UTF32, describe_content
from kp_ray.storage import read_bytes

MAX_NUMBER = 1e9
"""Numbers from here on are refused: no coordinate is as large, and the store's 32-bit numbers cannot hold some."""
NumberedRow = tuple[int, list[str]]
"""Number of the line on which a row ends, counted from 1, and the row's cells without surrounding white space. A quoted
cell can span several lines."""


def iterate_rows(path: str, comment: str | None = None) -> Iterator[NumberedRow]:
    """Iterate over the rows of a CSV that are not blank.

    Args:
        path: a local path or URL.
        comment: beginning of the lines to skip; None: no line is a comment.

    Raises:
        DataError: the file is not a CSV in UTF-8; the message says what it looks like.
        StorageError: the file cannot be read.
    """
    content = read_bytes(path)
    refuse_unexpected_content(content, path)
    # The text is decoded piece by piece: the decoded text of a million rows takes half a gigabyte.
    lines: Iterable[str] = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")
    if comment is not None:  # a comment becomes a blank line, so that the rows below keep their numbers
        lines = ("\n" if line.lstrip().startswith(comment) else line for line in lines)
    reader = csv.reader(lines, strict=True)
    row = 1
    try:
        for cells in reader:
            row = reader.line_num + 1
            stripped_cells = [cell.strip() for cell in cells]
            if any(stripped_cells):
                yield reader.line_num, stripped_cells
    except csv.Error as error:
        reason = "a quote is not closed" if reader.line_num > row else str(error)
        raise DataError(f"{path}: row {row}: not CSV: {reason}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: save it as CSV UTF-8") from error


def refuse_unexpected_content(content: bytes, path: str, expected: str = "CSV") -> None:
    """Refuse a file whose bytes do not look like UTF-8 text of the expected kind.

    Args:
        content: the file's bytes.
        path: the file's path, with which the message begins.
        expected: kind of text, for the message: "CSV", or e.g. "a list of image names".

    Raises:
        DataError: the message says what the file looks like.
    """
    file_type = describe_content(content) if content else TEXT
    if file_type in (UTF16, UTF16_WITHOUT_BOM, UTF32):
        raise DataError(f"{path}: is {file_type}: save it as {'CSV UTF-8' if expected == 'CSV' else 'UTF-8'}")
    if expected != "CSV" and file_type != TEXT:
        raise DataError(
            f"{path}: holds {file_type}, not {expected}: a text file in UTF-8 with one name per line is expected"
        )
    if file_type == "JSON":
        raise DataError(f"{path}: holds JSON, not CSV: if it is COCO keypoints JSON, give it a name that ends in .json")
    if file_type != TEXT:
        raise DataError(f"{path}: holds {file_type}, not CSV: a text file in UTF-8 with one row per image is expected")


def check_num_cells(cells: Sequence[str], header: Sequence[str], where: str) -> None:
    """Refuse a row that repeats the header, or has more or fewer cells than the header.

    Raises:
        DataError: the message begins with `where` and names the cause.
    """
    if len(cells) == len(header):
        if list(cells) == list(header):
            raise DataError(f"{where}: repeats the header, as if two files were joined: delete this row")
        return
    if len(cells) > len(header) and not any(cells[len(header) :]):
        raise DataError(
            f"{where}: ends in {count_separators(len(cells) - len(header))} too many, unlike the header: delete the "
            "separators at the end of the rows"
        )
    if len(cells) - 1 == 2 * (len(header) - 1) and all(cell.isdigit() for cell in cells[2::2]):
        raise DataError(
            f"{where}: {len(cells)} cells where the header has {len(header)}, as if the numbers had decimal commas: "
            "write 1.5, not 1,5"
        )
    raise DataError(f"{where}: {len(cells)} cells where the header has {len(header)}: write one cell per column")


def count_separators(number: int) -> str:
    """Return "1 separator", or e.g. "3 separators"."""
    return f"{number} separator{'' if number == 1 else 's'}"


def parse_number(text: str, where: str) -> float:
    """Parse a cell as a finite number; an empty cell gives NaN.

    Raises:
        DataError: the text is not a finite number; the message begins with `where`.
    """
    if not text:
        return math.nan
    value = parse_finite(text)
    if math.isnan(value):
        if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text):
            number = text.replace(",", "")
            raise DataError(
                f"{where}: {text[:40]!r} has a comma: write {number[:40]} if it separates thousands, and a point if it "
                "is a decimal comma"
            )
        if not math.isnan(parse_finite(text.replace(",", "."))):
            raise DataError(f"{where}: {text[:40]!r} has a decimal comma: write {text.replace(',', '.')[:40]}")
        raise DataError(
            f"{where}: {text[:40]!r} is not a number: write a number, or leave the cell empty if it is unknown"
        )
    return value


def parse_finite(text: str) -> float:
    """Return the number that a text holds, else NaN.

    These count as no number: infinity, numbers beyond `MAX_NUMBER`, and `1_000`, which Python accepts.
    """
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan
    return value if abs(value) < MAX_NUMBER else math.nan
