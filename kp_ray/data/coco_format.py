"""COCO keypoints JSON in and out."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from kp_ray.data.annotations import Annotations, Table, check_image_name, parse_name
from kp_ray.errors import DataError, one_line
from kp_ray.keypoints import FloatArray, visible_box
from kp_ray.storage import read_bytes


def to_coco(annotations: Annotations, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """COCO keypoints JSON as a dict: keypoints as pixel indices, `bbox` as x, y, width, height of the labelled points.

    An image without a labelled point has no annotation.

    Args:
        annotations: N images.
        sizes: N (width, height) in pixels.
    """
    skeleton = annotations.skeleton
    images: list[dict[str, Any]] = []
    people: list[dict[str, Any]] = []
    for number, (image, (width, height)) in enumerate(zip(annotations.images, sizes, strict=True), start=1):
        entry: dict[str, Any] = {"id": number, "file_name": image, "width": int(width), "height": int(height)}
        scene, points = annotations.scenes[number - 1], annotations.keypoints[number - 1]
        images.append(entry if scene == parse_name(image)[0] else {**entry, "group": scene})
        labelled = points[:, 2] > 0
        if not labelled.any():
            continue
        x1, y1, x2, y2 = (float(value) for value in visible_box(points, width, height))
        flat = [(float(x), float(y), int(v)) if v > 0 else (0.0, 0.0, 0) for x, y, v in points]
        people.append(
            {
                "id": len(people) + 1, "image_id": number, "category_id": 1, "iscrowd": 0,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
                "num_keypoints": int(labelled.sum()), "keypoints": [value for point in flat for value in point],
            }
        )  # fmt: skip
    limbs = [[a + 1, b + 1] for a, b in skeleton.limb_indices]
    person = {"id": 1, "name": "person", "keypoints": list(skeleton.names), "skeleton": limbs}
    return {"images": images, "annotations": people, "categories": [person]}


def read_coco(path: str) -> Table:
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {one_line(error)}") from error
    try:
        kinds = [kind for kind in content["categories"] if kind.get("keypoints")]
        if len(kinds) != 1:
            raise DataError(f"{path}: {len(kinds)} categories have keypoints: keep exactly one, e.g. person")
        names = [str(name) for name in kinds[0]["keypoints"]]
        people: dict[Any, list[Any]] = {}
        listed = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        for person in content["annotations"]:
            if person["category_id"] != kinds[0]["id"] or person.get("iscrowd"):
                continue
            image = listed.get(person["image_id"])
            if image is None:
                raise DataError(f"{path}: annotation {person.get('id')}: no image has its id {person['image_id']}")
            if person["image_id"] in people:
                raise DataError(f"{path}: {image}: two people are annotated: one person an image is expected, drop one")
            people[person["image_id"]] = person["keypoints"]
        images = [check_image_name(str(entry["file_name"]), path) for entry in content["images"]]
        groups = [str(entry.get("group", "")) for entry in content["images"]]
        empty = [0] * (3 * len(names))
        points = [_coco_points(people.get(i, empty), len(names), f"{path}: {listed[i]}") for i in listed]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not COCO keypoints JSON: {type(error).__name__}: {error}") from error
    if len(images) != len(points):
        raise DataError(f"{path}: two images share an id: give each its own")
    return names, images, np.array(points, dtype=np.float64).reshape(-1, len(names), 3), groups


def _coco_points(flat: Sequence[Any], num_keypoints: int, where: str) -> FloatArray:
    if len(flat) != 3 * num_keypoints:
        raise DataError(f"{where}: {len(flat)} keypoint numbers where {3 * num_keypoints} are expected")
    if not all(isinstance(value, int | float) and abs(value) < 1e9 for value in flat):
        raise DataError(f"{where}: a keypoint is not a finite number: write numbers, and v 0 for an unlabelled point")
    points = np.array(flat, dtype=np.float64).reshape(-1, 3)
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise DataError(f"{where}: a keypoint's v is not 0, 1 or 2")
    points[points[:, 2] == 0, :2] = np.nan
    return points
