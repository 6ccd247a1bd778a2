"""A corrections file applied to labels."""

import math
from dataclasses import replace

from kp_ray.data.annotations import Annotations
from kp_ray.data.csv_format import parse_number, read_csv_rows
from kp_ray.errors import DataError


def apply_corrections(labels: Annotations, path: str) -> Annotations:
    """The labels with a corrections file applied."""
    header, rows = read_csv_rows(path)
    if "action" not in header or set(header) - {"image", "action", "keypoint", "x", "y"}:
        raise DataError(f"{path}: the header is {','.join(header)[:80]}: it should be image,action,keypoint,x,y")
    row_of = {image: row for row, image in enumerate(labels.images)}
    keypoints, dropped, done = labels.keypoints.copy(), set(), []
    for line, cells in rows:
        where = f"{path}: row {line}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells where the header has {len(header)}: make them equal")
        cell = {"keypoint": "", "x": "", "y": "", **dict(zip(header, cells, strict=True))}
        image, name = cell["image"], cell["keypoint"]
        if image not in row_of:
            raise DataError(f"{where}: no labelled image is named {image[:80]!r}")
        if cell["action"] == "drop":
            if name or cell["x"] or cell["y"]:
                raise DataError(
                    f"{where}: drop takes a whole image: leave keypoint, x and y empty, or use action point"
                )
            dropped.add(row_of[image])
            done.append(f"{image}: dropped")
        elif cell["action"] == "point":
            if name not in labels.skeleton.names:
                raise DataError(f"{where}: no keypoint is named {name[:80]!r}")
            x, y = (parse_number(cell[axis], f"{where}: {axis}") for axis in "xy")
            if math.isnan(x) != math.isnan(y):
                raise DataError(f"{where}: only one of x and y: give both, or neither to remove the label")
            keypoints[row_of[image], labels.skeleton.names.index(name)] = (x, y, 0 if math.isnan(x) else 2)
            done.append(f"{image}: {name} " + ("unlabelled" if math.isnan(x) else f"moved to {x:g}, {y:g}"))
        else:
            raise DataError(f"{where}: the action {cell['action'][:40]!r} is not known: use drop or point")
    kept = [row for row in range(len(labels)) if row not in dropped]
    if not kept:
        raise DataError(f"{path}: drops every image: keep some")
    return replace(labels, keypoints=keypoints, corrected=tuple(done)).select(kept)
