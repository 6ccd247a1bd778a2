"""Write YOLO-pose label files beside an exported COCO keypoints JSON."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kp_ray.data.annotations import remove_suffix
from kp_ray.json_files import read_json
from kp_ray.storage import join, write_bytes


def to_yolo(coco: Mapping[str, Any]) -> dict[str, str]:
    """Make the texts of the label files.

    A line per person holds class 0, the box's centre and size, and x, y, v per keypoint. As in Ultralytics' converter,
    coordinates are divided by the image's width and height without any offset, and an image without a person has an
    empty file.

    Args:
        coco: COCO keypoints JSON as plain values, as from `to_coco`.

    Returns:
        Name of the label file -> its text. The name is the image name with the suffix `.txt`.
    """
    images = {entry["id"]: entry for entry in coco["images"]}
    lines: dict[Any, list[str]] = {image_id: [] for image_id in images}
    for person in coco["annotations"]:
        size = np.array([images[person["image_id"]][side] for side in ("width", "height")], dtype=float)
        corner, extent = np.array(person["bbox"], dtype=float).reshape(2, 2)
        points = np.array(person["keypoints"], dtype=float).reshape(-1, 3) / [*size, 1]
        box = np.concatenate([(corner + extent / 2) / size, extent / size])
        cells = [*(f"{value:.6f}" for value in box), *(f"{x:.6f} {y:.6f} {v:.0f}" for x, y, v in points)]
        lines[person["image_id"]].append(" ".join(["0", *cells]))
    return {
        f"{remove_suffix(str(images[image_id]['file_name']))}.txt": "".join(f"{line}\n" for line in person_lines)
        for image_id, person_lines in lines.items()
    }


def write_yolo(folder: str) -> int:
    """Write a label file for every image in the `annotations.json` of an export; return the number of files.

    The label of `images/<name>.jpg` is `labels/<name>.txt`. As Ultralytics' loader expects it, the last folder called
    `images` becomes `labels`, also if it is a part of the name.

    Raises:
        StorageError: the folder holds no `annotations.json`, or a file cannot be written.
    """
    texts = to_yolo(read_json(join(folder, "annotations.json"), "run export again"))
    for name, text in texts.items():
        path = "/labels/".join(f"/images/{name}".rsplit("/images/", 1))
        write_bytes(join(folder, path.removeprefix("/")), text.encode())
    return len(texts)
