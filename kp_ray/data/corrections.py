"""Apply a corrections file to labels."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from kp_ray.data.annotations import Annotations
from kp_ray.data.csv_format import read_csv_rows
from kp_ray.data.csv_rows import check_num_cells, parse_number
from kp_ray.errors import DataError
from kp_ray.keypoints import FloatArray

COMMENT = "#"
"""Beginning of a comment line. Comment lines are skipped."""
CORRECTIONS_HEADER = "image,action,keypoint,x,y"
"""Header of a corrections CSV."""


def read_corrections(path: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Iterate over the rows of a corrections CSV that are not comments, as (place for messages, cells by column).

    Every row has the columns of `CORRECTIONS_HEADER`; a column that the file lacks is empty.

    Raises:
        DataError: the file is not a CSV of corrections, or a row has too few or too many cells.
        StorageError: the file cannot be read.
    """
    columns = CORRECTIONS_HEADER.split(",")
    header, rows = read_csv_rows(path, COMMENT)
    if "action" not in header or set(header) - set(columns):
        raise DataError(f"{path}: the header is {','.join(header)[:80]}: it should be {CORRECTIONS_HEADER}")
    for number, cells in rows:
        where = f"{path}: row {number}"
        check_num_cells(cells, header, where)
        yield where, dict.fromkeys(columns, "") | dict(zip(header, cells, strict=True))


def apply_corrections(labels: Annotations, path: str) -> Annotations:
    """Return labels with the corrections of a CSV applied in the order of its rows.

    Its columns are image, action, keypoint, x, y. The action `drop` removes the image. The action `point` moves one
    keypoint to x, y in pixels, or removes its label if both are empty. `Annotations.corrected` lists the changes. A
    line that begins with `#` is a comment; an image name that begins with `#` must be in quotes.

    Args:
        labels: annotations; they are not changed.
        path: a local path or URL of the CSV.

    Raises:
        DataError: a row cannot be applied, or no image is left; the message names the file and the row.
        StorageError: the file cannot be read.
    """
    index_of = {image: index for index, image in enumerate(labels.images)}
    keypoints = labels.keypoints.copy()
    dropped_indices: set[int] = set()
    changes: list[str] = []
    for where, row in read_corrections(path):
        image = row["image"]
        if image not in index_of:
            raise DataError(f"{where}: no labelled image is named {image[:80]!r}: write the name as in the labels")
        if row["action"] == "drop":
            if row["keypoint"] or row["x"] or row["y"]:
                raise DataError(
                    f"{where}: drop removes a whole image: leave keypoint, x and y empty, or use the action point"
                )
            dropped_indices.add(index_of[image])
            changes.append(f"{image}: dropped")
        elif row["action"] == "point":
            changes.append(_move_point(labels, keypoints[index_of[image]], row, where))
        else:
            raise DataError(f"{where}: the action {row['action'][:40]!r} is not known: use drop or point")
    kept_indices = [index for index in range(len(labels)) if index not in dropped_indices]
    if not kept_indices:
        raise DataError(f"{path}: drops every image: keep some")
    return replace(labels, keypoints=keypoints, corrected=tuple(changes)).select(kept_indices)


def _move_point(labels: Annotations, keypoints: FloatArray, row: Mapping[str, str], where: str) -> str:
    """Change one point of an image's keypoints (K, 3) in place and describe the change."""
    name = row["keypoint"]
    if name not in labels.skeleton.names:
        raise DataError(
            f"{where}: no keypoint is named {name[:80]!r}: write the name of a labelled keypoint, e.g. "
            f"{labels.skeleton.names[0]}"
        )
    x, y = (parse_number(row[axis], f"{where}: {axis}") for axis in "xy")
    if math.isnan(x) != math.isnan(y):
        raise DataError(f"{where}: only one of x and y is there: give both, or neither to remove the label")
    removed = math.isnan(x)
    keypoints[labels.skeleton.names.index(name)] = (x, y, 0 if removed else 2)
    return f"{row['image']}: {name} " + ("unlabelled" if removed else f"moved to {x:g}, {y:g}")
