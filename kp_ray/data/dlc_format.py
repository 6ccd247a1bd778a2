"""Read labels and predictions in the CSV of DeepLabCut and Lightning Pose.

The header has three rows, `scorer`, `bodyparts` and `coords`, or four with `individuals` after `scorer`. Images are
named by the first column, or by the first three (folder, video, file). A point has x, y and perhaps `likelihood` (of a
prediction) or `visible` (of a Lightning Pose label, in COCO's codes 0, 1, 2). x and y count pixels from 0; an
integer is a pixel's centre.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from kp_ray.data.annotations import LabelTable, parse_name
from kp_ray.data.csv_rows import NumberedRow, check_num_cells, parse_number
from kp_ray.data.visibility import label_point, parse_likelihood, parse_visible
from kp_ray.errors import DataError

_HEADER_ROWS = ("scorer", "individuals", "bodyparts", "coords")
_COORDS = ("x", "y", "likelihood", "visible")
_PARSERS = {"likelihood": parse_likelihood, "visible": parse_visible}

_Columns = dict[tuple[str, str], dict[str, int]]
"""(individual, body part) -> coordinate -> index of the column; the individual is "" in a file of one person."""


def is_dlc_header(cells: Sequence[str]) -> bool:
    """Return whether the first row of a CSV begins a header of DeepLabCut or Lightning Pose."""
    return bool(cells) and cells[0].lower() == "scorer"


def read_dlc(rows: Iterator[NumberedRow], path: str) -> LabelTable:
    """Read the rows of a CSV of DeepLabCut or Lightning Pose.

    `label_point` decides which points are labelled. Unless an image's name states scene and camera, its folder becomes
    its group, so that the frames of one video, which are alike, are on one side of a split. Each individual with a
    labelled point becomes a row of the table; an image without labelled points becomes one row without labelled points.

    Args:
        rows: all rows of the file, the header first.
        path: path of the file; messages begin with it.

    Raises:
        DataError: the header or a cell is wrong, or a row names a frame of a video by its number instead of an image.
    """
    header, rows = _read_header(rows, path)
    coords = [coord.lower() for coord in header["coords"]]
    num_image_columns = next((i for i, coord in enumerate(coords[1:], start=1) if coord in _COORDS), len(coords))
    columns = _find_columns(header, coords, num_image_columns, path)
    individuals = list(dict.fromkeys(individual for individual, _ in columns))
    names = list(dict.fromkeys(name for _, name in columns))
    images: list[str] = []
    row_numbers: list[int] = []
    people: list[list[tuple[float, float, float]]] = []
    for number, cells in rows:
        where = f"{path}: row {number}"
        check_num_cells(cells, header["coords"], where)
        image = _image_name(cells[:num_image_columns], where)
        poses = [
            [_read_point(cells, columns.get((individual, name), {}), f"{where}: {name[:80]}") for name in names]
            for individual in individuals
        ]
        labelled_poses = [pose for pose in poses if any(v > 0 for _, _, v in pose)]
        for pose in labelled_poses or poses[:1]:
            images.append(image)
            row_numbers.append(number)
            people.append(pose)
    keypoints = np.array(people, dtype=np.float64).reshape(-1, len(names), 3)
    groups = ["" if parse_name(image)[1] else image.rpartition("/")[0] for image in images]
    return LabelTable(names, images, keypoints, groups, row_numbers, "row")


def _read_header(rows: Iterator[NumberedRow], path: str) -> tuple[dict[str, list[str]], Iterator[NumberedRow]]:
    """Return the header's rows by the word in their first cell, and the rows below the header."""
    header: dict[str, list[str]] = {}
    for number, cells in rows:
        word = cells[0].lower()
        if word not in _HEADER_ROWS:
            rows = itertools.chain([(number, cells)], rows)
            break
        if word in header:
            raise DataError(f"{path}: row {number}: the header row {word!r} is there twice: delete this row")
        header[word] = cells
    missing_words = [word for word in ("bodyparts", "coords") if word not in header]
    if missing_words:
        raise DataError(
            f"{path}: begins like a CSV of DeepLabCut, but its header has no row {missing_words[0]!r}: write the rows "
            "scorer, bodyparts and coords"
        )
    for word, cells in header.items():
        if len(cells) != len(header["coords"]):
            raise DataError(
                f"{path}: the header row {word!r} has {len(cells)} cells and the row 'coords' {len(header['coords'])}: "
                "write one cell per column in each"
            )
    return header, rows


def _find_columns(
    header: Mapping[str, Sequence[str]], coords: Sequence[str], num_image_columns: int, path: str
) -> _Columns:
    """Return the columns of each individual's body parts; skip the column of Lightning Pose whose scorer is `set`."""
    columns: _Columns = {}
    for index in range(num_image_columns, len(coords)):
        name, coord = header["bodyparts"][index], coords[index]
        if header["scorer"][index] == "set" or (not coord and not name):
            continue
        where = f"{path}: column {index + 1} ({name[:80] or 'without a body part'}, "
        where += f"{coord[:80] or 'without a coordinate'})"
        if not name or coord not in _COORDS:
            raise DataError(
                f"{where}: is not known: delete it; a column holds x, y, likelihood or visible of a body part"
            )
        individual = header["individuals"][index] if "individuals" in header else ""
        index_by_coord = columns.setdefault((individual, name), {})
        if coord in index_by_coord:
            raise DataError(
                f"{where}: occurs a second time, under the scorer {header['scorer'][index][:80]!r}: keep the columns "
                "of one scorer"
            )
        index_by_coord[coord] = index
    for (_, name), index_by_coord in columns.items():
        if "x" not in index_by_coord or "y" not in index_by_coord:
            raise DataError(f"{path}: the body part {name[:80]!r} lacks its column x or y: add it")
    if not columns:
        raise DataError(f"{path}: the header names no body parts: a pair of columns x, y per body part is expected")
    return columns


def _image_name(cells: Sequence[str], where: str) -> str:
    """Join the cells that name an image into one path with slashes."""
    image = "/".join(cell.replace("\\", "/") for cell in cells if cell)
    if image.isdigit():
        raise DataError(
            f"{where}: the image is named {image!r}, the number of a video's frame: extract the frames as images and "
            "write the file names in the first column"
        )
    return image


def _read_point(cells: Sequence[str], index_by_coord: Mapping[str, int], where: str) -> tuple[float, float, float]:
    """Return x, y, v of one body part; NaN, NaN, 0 if it is unlabelled."""
    numbers = dict.fromkeys(_COORDS, math.nan)
    for coord, index in index_by_coord.items():
        numbers[coord] = _PARSERS.get(coord, parse_number)(cells[index], f"{where}_{coord}")
    if math.isnan(numbers["x"]) != math.isnan(numbers["y"]):
        raise DataError(f"{where} has only one of x and y: give both, or neither")
    return label_point(**numbers)
