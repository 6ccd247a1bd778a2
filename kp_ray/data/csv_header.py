"""Check the header of a CSV with a column `image`, and name the cause if the header cannot be used."""

import math
import re
from collections import Counter
from collections.abc import Sequence

from kp_ray.data.csv_rows import NumberedRow, count_separators, parse_finite
from kp_ray.data.foreign_formats import describe_table
from kp_ray.errors import DataError

_NAME_COLUMNS = ("image", "images", "img", "filename", "file_name", "file", "image_name", "name", "path", "image_path")
"""Lower-case names that other tools give to the column of file names."""
_MAX_NAME_CHARS = 200
"""Maximum length of a column's name. A longer name comes from a damaged file, and would make a message unreadable."""


def check_header(header: Sequence[str], next_rows: Sequence[NumberedRow], path: str) -> None:
    """Refuse a header that lacks `image`, has a column twice, or has a column name that is empty or very long.

    Args:
        header: the cells of the first row.
        next_rows: the first rows below the header, which help to name the cause.
        path: path of the CSV; an error message begins with it.

    Raises:
        DataError: the message names the cause: another separator, a line above the header, an index column and so on.
    """
    if not header:
        raise DataError(f"{path}: is empty: a header row and a row per image are expected")
    _refuse_excel_separator(header, path)
    if "image" not in header:
        raise DataError(f"{path}: {_explain_no_image_column(header, next_rows)}")
    _refuse_unnamed_columns(header, path)
    longest_name = max(header, key=len)
    if len(longest_name) > _MAX_NAME_CHARS:
        raise DataError(
            f"{path}: a column's name has {len(longest_name)} characters, at most {_MAX_NAME_CHARS} are allowed (got "
            f"{longest_name[:40]!r}...): shorten it"
        )
    repeated_names = [name for name, count in Counter(header).items() if count > 1]
    if repeated_names:
        raise DataError(
            f"{path}: the header has the column {repeated_names[0]!r} twice: delete one if both hold the same, else "
            "give each its own name"
        )
    for column in header:
        base_name = re.sub(r"\.[0-9]+$", "", column)
        if base_name != column and base_name in header and base_name.endswith(("_x", "_y")):
            raise DataError(
                f"{path}: the column {column!r} looks like a second {base_name!r} that pandas renamed: delete it if "
                "both hold the same values, else give it its own name"
            )


def _refuse_excel_separator(header: Sequence[str], path: str) -> None:
    """Refuse a first line such as `sep=;`, in which Excel stores the separator."""
    line = ",".join(header).replace('"', "")
    if not line.lower().startswith("sep="):
        return
    separator = line[4:5]
    second_fix = "" if separator in ("", ",") else f", and separate the columns by commas (now {separator!r})"
    raise DataError(f"{path}: row 1 is Excel's line {line[:8]!r}, not a header: delete this line{second_fix}")


def _explain_no_image_column(header: Sequence[str], next_rows: Sequence[NumberedRow]) -> str:
    """Explain why a header lacks the column `image`, and how to fix that."""
    line = ",".join(header)
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        cells = [cell.strip() for cell in line.split(separator)]
        if len(cells) > 2 and (set(cells) & set(_NAME_COLUMNS) or any(cell.endswith("_x") for cell in cells)):
            return (
                f"the columns are separated by {name}: save the file as a CSV whose columns are separated by commas "
                "and whose numbers have decimal points"
            )
    for number, cells in next_rows:
        if "image" in cells:
            return f"row {number} is the header, but other rows precede it: delete the rows above row {number}"
    table_type = describe_table(header)
    if table_type:
        return (
            f"looks like {table_type}: write a CSV with the columns image, <name>_x and <name>_y, or COCO keypoints "
            "JSON"
        )
    name_column = next((column for column in header if column.lower() in _NAME_COLUMNS), None)
    if name_column is not None:
        return f"the header has no `image` column: name the column of file names `image` (now {name_column!r})"
    if len(header) > 2 and all(cell == "" or not math.isnan(parse_finite(cell)) for cell in header[1:]):
        return "row 1 holds numbers, not a header: add a header row image,<name>_x,<name>_y,..."
    fix = "separate the columns by commas" if len(header) == 1 else "name the column of file names `image`"
    return f"the header has no `image` column: {fix}"


def _refuse_unnamed_columns(header: Sequence[str], path: str) -> None:
    """Refuse columns without a name: an index that pandas wrote, or separators at the end of the row."""
    if header[-1] == "":
        num_columns = max(index for index, column in enumerate(header) if column) + 1
        raise DataError(
            f"{path}: the header ends in {count_separators(len(header) - num_columns)} too many: delete the separators "
            "at the end of row 1 and of the other rows"
        )
    for number, column in enumerate(header, start=1):
        if column == "" or re.fullmatch(r"Unnamed: [0-9.]+|level_0", column) or (number == 1 and column == "index"):
            raise DataError(
                f"{path}: column {number} of the header is {column!r}, an index that pandas or a spreadsheet wrote: "
                "delete this column, in pandas by to_csv(..., index=False)"
            )
