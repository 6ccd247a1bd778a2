"""YOLO-pose label files out of a COCO export."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from kp_ray.data.annotations import stem
from kp_ray.storage import join, read_bytes, write_bytes


def to_yolo(coco: Mapping[str, Any]) -> dict[str, str]:
    """YOLO-pose label texts of a COCO keypoints dict, by image name with its suffix replaced by `.txt`.

    A line a person: class 0, then the box's centre and size and every keypoint's x, y, all as shares of the picture's
    width and height, each keypoint followed by its v. As Ultralytics' own converter has it: coordinates are divided by
    the size as they are, and an image without people has an empty file.
    """
    images = {entry["id"]: entry for entry in coco["images"]}
    lines: dict[Any, list[str]] = {number: [] for number in images}
    for person in coco["annotations"]:
        size = np.array([images[person["image_id"]][side] for side in ("width", "height")], dtype=float)
        corner, extent = np.array(person["bbox"], dtype=float).reshape(2, 2)
        points = np.array(person["keypoints"], dtype=float).reshape(-1, 3) / [*size, 1]
        box = np.concatenate([(corner + extent / 2) / size, extent / size])
        cells = [*(f"{value:.6f}" for value in box), *(f"{x:.6f} {y:.6f} {v:.0f}" for x, y, v in points)]
        lines[person["image_id"]].append(" ".join(["0", *cells]))
    return {
        f"{stem(str(images[number]['file_name']))}.txt": "".join(f"{x}\n" for x in of) for number, of in lines.items()
    }


def write_yolo(folder: str) -> int:
    """Write `labels/<name>.txt` beside an export's `images/<name>.jpg`, from its `annotations.json`; returns how many.

    Raises:
        DataError: `folder` holds no `annotations.json`.
    """
    texts = to_yolo(json.loads(read_bytes(join(folder, "annotations.json"))))
    for name, text in texts.items():
        write_bytes(join(folder, "labels", name), text.encode())
    return len(texts)
