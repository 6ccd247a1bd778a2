"""The native wide CSV in and out."""

import csv
import io
import math
import operator
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from kp_ray.data.annotations import Annotations, Table, check_image_name, parse_name
from kp_ray.errors import DataError
from kp_ray.storage import read_bytes


def to_csv(annotations: Annotations) -> bytes:
    """The native wide CSV, UTF-8; a float's text reads back as the same float, an unlabelled cell is empty.

    Visibility 1 and 2 are both "labelled" there. `group` is written only when a scene differs from its name's.
    """
    grouped = any(s != parse_name(image)[0] for s, image in zip(annotations.scenes, annotations.images, strict=True))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", *(["group"] if grouped else []), *annotations.skeleton.columns])
    for image, scene, points in zip(annotations.images, annotations.scenes, annotations.keypoints, strict=True):
        cells = ["" if math.isnan(value) else repr(float(value)) for value in points[:, :2].ravel()]
        writer.writerow([image, *([scene] if grouped else []), *cells])
    return out.getvalue().encode()


def read_csv_rows(path: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header of a CSV and its (line number, stripped cells)."""
    # Decoded as it is read: a million rows are half a gigabyte.
    reader = csv.reader(io.TextIOWrapper(io.BytesIO(read_bytes(path)), "utf-8-sig", newline=""))

    def parse() -> Iterator[tuple[int, list[str]]]:
        try:
            for cells in reader:
                stripped = [cell.strip() for cell in cells]
                if any(stripped):
                    yield reader.line_num, stripped
        except csv.Error as error:
            raise DataError(f"{path}: row {reader.line_num}: not CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: is not UTF-8 text: save it as CSV UTF-8") from error

    rows = parse()
    _, header = next(rows, (0, []))
    if not header:
        raise DataError(f"{path}: is empty: a header row and a row per image are expected")
    if "image" not in header:
        hint = "separate the columns by commas" if len(header) == 1 else "name the column of file names `image`"
        raise DataError(f"{path}: the header has no `image` column: {hint}")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{path}: the header has the column {twice[0]!r} twice: keep one")
    return header, rows


def read_csv(path: str) -> Table:
    header, rows = read_csv_rows(path)
    columns = [name for name in header if name not in ("image", "group")]
    names = list(dict.fromkeys(name[:-2] for name in columns if name.endswith(("_x", "_y")) and len(name) > 2))
    if not names:
        raise DataError(f"{path}: the header has no keypoint columns: <name>_x and <name>_y are expected")
    expected = [f"{name}_{axis}" for name in names for axis in "xy"]
    for column in sorted(set(columns) ^ set(expected)):
        problem = (
            "is missing: add it"
            if column in expected
            else "is not known: image, group, <name>_x, <name>_y are; drop it"
        )
        raise DataError(f"{path}: the column {column!r} {problem}")
    where = {name: header.index(name) for name in header}
    numbers_of = operator.itemgetter(*(where[column] for column in expected))
    images, groups, values = [], [], array("d")
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{path}: row {line}: {len(cells)} cells where the header has {len(header)}: make them equal"
            )
        images.append(check_image_name(cells[where["image"]], f"{path}: row {line}"))
        groups.append(cells[where["group"]] if "group" in where else "")
        values.extend(_numbers(numbers_of(cells), expected, f"{path}: row {line}"))
    keypoints = np.empty((len(images), len(names), 3))
    keypoints[..., :2] = np.frombuffer(values, dtype=np.float64).reshape(-1, len(names), 2)
    keypoints[..., 2] = np.where(np.isfinite(keypoints[..., 0]), 2.0, 0.0)
    return names, images, keypoints, groups


def _numbers(cells: Sequence[str], columns: Sequence[str], where: str) -> list[float]:
    """The numbers of a row's cells, NaN for empty ones; all at once unless something about the row is unusual."""
    try:
        numbers = [*map(float, cells)]
        if math.isfinite(sum(numbers)) and "_" not in "".join(cells):
            return numbers
    except ValueError:
        pass
    numbers = [parse_number(cell, f"{where}: {column}") for cell, column in zip(cells, columns, strict=True)]
    for column, x, y in zip(columns[::2], cells[::2], cells[1::2], strict=True):
        if (not x) != (not y):
            raise DataError(f"{where}: {column[:-2]} has only one of x and y: give both, or neither")
    return numbers


def parse_number(text: str, where: str) -> float:
    """The number of a cell, NaN for an empty one."""
    if not text:
        return math.nan
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {text[:40]!r} is not a number: write one, or leave the cell empty if unlabelled")
    return value
