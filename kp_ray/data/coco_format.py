"""Read and write labels as COCO keypoints JSON.

Coordinates are pixel indices, as everywhere in kp_ray. COCO's own are continuous; no half pixel is added or removed.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kp_ray.data.annotations import Annotations, LabelTable, check_image_name, parse_name
from kp_ray.errors import DataError, one_line
from kp_ray.keypoints import FloatArray, visible_box
from kp_ray.storage import read_bytes


def to_coco(annotations: Annotations, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Make COCO keypoints JSON as plain values.

    `bbox` is x, y, width, height of the labelled points' box. An image without a labelled point gets no annotation. An
    image whose scene is not the one its name gives gets the key `group`.

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
                "id": len(people) + 1,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "num_keypoints": int(labelled.sum()),
                "keypoints": [value for point in flat for value in point],
            }
        )
    limbs = [[a + 1, b + 1] for a, b in skeleton.limb_indices]
    person = {"id": 1, "name": "person", "keypoints": list(skeleton.names), "skeleton": limbs}
    return {"images": images, "annotations": people, "categories": [person]}


def read_coco(path: str) -> LabelTable:
    """Read a COCO keypoints JSON with one category that has keypoints and at most one person per image.

    Annotations of other categories, and crowds, are left out.

    Raises:
        DataError: it is not such a JSON; the message names the file and, if it can, the image.
        StorageError: the file cannot be read.
    """
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {one_line(error)}") from error
    try:
        return _parse_coco(content, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not COCO keypoints JSON: {type(error).__name__}: {error}") from error


def _parse_coco(content: Any, path: str) -> LabelTable:
    """Parse the JSON value; one that lacks a key or has another structure raises what Python raises."""
    categories = [category for category in content["categories"] if category.get("keypoints")]
    if len(categories) != 1:
        raise DataError(f"{path}: {len(categories)} categories have keypoints: keep exactly one, e.g. person")
    names = [str(name) for name in categories[0]["keypoints"]]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: the keypoint {name!r} is listed {count} times: give each its own name")
    image_names = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
    if len(image_names) != len(content["images"]):
        raise DataError(f"{path}: two images share an id: give each its own")
    people = _people_by_image(content["annotations"], categories[0]["id"], image_names, path)
    unlabelled = [0] * (3 * len(names))
    points = [
        _parse_points(people.get(image_id, unlabelled), len(names), f"{path}: {image}")
        for image_id, image in image_names.items()
    ]
    return LabelTable(
        names=names,
        images=[check_image_name(image, path) for image in image_names.values()],
        keypoints=np.array(points, dtype=np.float64).reshape(-1, len(names), 3),
        groups=[str(entry.get("group", "")) for entry in content["images"]],
    )


def _people_by_image(
    annotations: Sequence[Mapping[str, Any]], category_id: Any, image_names: Mapping[Any, str], path: str
) -> dict[Any, Sequence[Any]]:
    """Return the flat keypoints of each image's person by image id."""
    people: dict[Any, Sequence[Any]] = {}
    for person in annotations:
        if person["category_id"] != category_id or person.get("iscrowd"):
            continue
        image = image_names.get(person["image_id"])
        if image is None:
            raise DataError(f"{path}: annotation {person.get('id')}: no image has its id {person['image_id']}")
        if person["image_id"] in people:
            raise DataError(f"{path}: {image}: two people are annotated: keep one person per image")
        people[person["image_id"]] = person["keypoints"]
    return people


def _parse_points(flat: Sequence[Any], num_keypoints: int, where: str) -> FloatArray:
    """Return the keypoints (K, 3) of x, y, v listed one after the other; unlabelled ones become NaN, NaN, 0."""
    if len(flat) != 3 * num_keypoints:
        raise DataError(f"{where}: {len(flat)} keypoint numbers where {3 * num_keypoints} are expected")
    if not all(isinstance(value, int | float) and abs(value) < 1e9 for value in flat):
        raise DataError(f"{where}: a keypoint is not a finite number: write numbers, and v 0 for an unlabelled point")
    points = np.array(flat, dtype=np.float64).reshape(-1, 3)
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise DataError(f"{where}: a keypoint's v is not 0, 1 or 2")
    points[points[:, 2] == 0, :2] = np.nan
    return points
