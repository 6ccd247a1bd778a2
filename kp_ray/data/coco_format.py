"""Read and write labels as COCO keypoints JSON.

Coordinates are pixel indices, as everywhere in kp_ray. They are read and written unchanged, although COCO's own
coordinates are continuous, with a pixel's centre at .5.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kp_ray.data.annotations import Annotations, LabelTable, StatedFacts, parse_name
from kp_ray.data.csv_rows import MAX_NUMBER
from kp_ray.data.foreign_formats import EXPECTED_JSON, describe_json
from kp_ray.errors import DataError, one_line
from kp_ray.file_types import TEXT, UTF16, UTF16_WITHOUT_BOM, UTF32, describe_content
from kp_ray.keypoints import labelled_box
from kp_ray.storage import read_bytes

_Person = tuple[str | None, Mapping[str, Any]]
"""Id of an annotation as text for messages, and the annotation. The id is None for an image without an annotation."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
"""A surrogate, escaped or in UTF-8: valid only as half of a pair that encodes a character."""


def to_coco(annotations: Annotations, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Make COCO keypoints JSON as plain values.

    `bbox` is x, y, width, height of the labelled points' box. An image without a labelled point gets no annotation. If
    the scene of an image is not the scene in its name, the key `group` of its entry holds the scene.

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
        is_labelled = points[:, 2] > 0
        if not is_labelled.any():
            continue
        x1, y1, x2, y2 = (float(value) for value in labelled_box(points, width, height))
        triples = [(float(x), float(y), int(v)) if v > 0 else (0.0, 0.0, 0) for x, y, v in points]
        people.append(
            {
                "id": len(people) + 1,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "num_keypoints": int(is_labelled.sum()),
                "keypoints": [value for triple in triples for value in triple],
            }
        )
    limbs = [[a + 1, b + 1] for a, b in skeleton.limb_indices]
    category = {"id": 1, "name": "person", "keypoints": list(skeleton.names), "skeleton": limbs}
    return {"images": images, "annotations": people, "categories": [category]}


def read_coco(path: str) -> LabelTable:
    """Read a COCO keypoints JSON with one category that has keypoints.

    Annotations of other categories, and crowds, are left out. An annotation without `keypoints` is a person without
    labelled points.

    Raises:
        DataError: the file is not a JSON of this form; the message names the file, the annotation and the image, or
            says what the file looks like.
        StorageError: the file cannot be read.
    """
    content = _parse_json(read_bytes(path), path)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise DataError(
            f"{path}: not COCO keypoints JSON: it looks like {describe_json(content)}: {EXPECTED_JSON} expected"
        )
    category_id, names = _keypoint_category(_entries(content, "categories", path), path)
    images = _images_by_id(_entries(content, "images", path), path)
    people = _people_by_image(_entries(content, "annotations", path), category_id, images, path)
    nobody: list[_Person] = [(None, {})]
    rows = [(image, *person) for image_id, image in images.items() for person in people.get(image_id, nobody)]
    poses = [
        _parse_points(person.get("keypoints"), len(names), f"{path}: annotation {place} of {image['file_name']}")
        for image, place, person in rows
    ]
    return LabelTable(
        names=names,
        images=[image["file_name"] for image, _, _ in rows],
        keypoints=np.array(poses, dtype=np.float64).reshape(-1, len(names), 3),
        groups=["" if image.get("group") is None else str(image["group"]) for image, _, _ in rows],
        places=[place for _, place, _ in rows],
        place_kind="annotation",
        stated=[
            _stated_facts(image, person, sum(v > 0 for _, _, v in pose))
            for (image, _, person), pose in zip(rows, poses, strict=True)
        ],
    )


def _parse_json(content: bytes, path: str) -> Any:
    """Parse a JSON file; text in UTF-16 is read as well."""
    file_type = describe_content(content)
    if file_type not in ("JSON", TEXT, UTF16, UTF16_WITHOUT_BOM, UTF32):
        raise DataError(f"{path}: not COCO keypoints JSON: it looks like {file_type}: {EXPECTED_JSON} expected")
    try:
        parsed = json.loads(content)
        if _SURROGATE.search(content):
            json.dumps(parsed, ensure_ascii=False).encode()
        return parsed
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise DataError(f"{path}: {half} is only half of a character: correct the name that holds it") from error
    except (ValueError, RecursionError) as error:
        first_line = content[:1000].splitlines()[0].lower()
        if file_type == TEXT and b"," in first_line and (b"image" in first_line or b"scorer" in first_line):
            raise DataError(f"{path}: not valid JSON but a CSV: give it a name that ends in .csv") from error
        raise DataError(f"{path}: not valid JSON: {one_line(error)}: {EXPECTED_JSON} expected") from error


def _entries(content: Mapping[str, Any], key: str, path: str) -> list[Mapping[str, Any]]:
    """Return the list of objects under a key of the JSON."""
    entries = content[key]
    if not isinstance(entries, list):
        raise DataError(f"{path}: {key} is {_describe_type(entries)}: a list of objects is expected")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {key}[{number}] is {_describe_type(entry)}: an object is expected")
    return entries


def _keypoint_category(categories: Sequence[Mapping[str, Any]], path: str) -> tuple[Any, list[str]]:
    """Return the id and the keypoint names of the category that has keypoints."""
    candidates = [category for category in categories if category.get("keypoints")]
    if not candidates:
        raise DataError(
            f"{path}: no category has keypoints, as in a file of boxes: export keypoints, or add their names to the "
            "category under `keypoints`"
        )
    if len(candidates) > 1:
        category_names = ", ".join(str(category.get("name"))[:40] for category in candidates[:3])
        raise DataError(f"{path}: {len(candidates)} categories have keypoints ({category_names}): keep exactly one")
    category = candidates[0]
    if not isinstance(category["keypoints"], list) or not _is_id(category.get("id")):
        raise DataError(f"{path}: the category {category.get('name')!r:.60} needs an id and a list of keypoint names")
    names = [str(name) for name in category["keypoints"]]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: the keypoint {name!r} is listed {count} times: give each keypoint its own name")
    return category["id"], names


def _images_by_id(entries: Sequence[Mapping[str, Any]], path: str) -> dict[Any, Mapping[str, Any]]:
    """Return the entries of `images` by id; each has a file name."""
    images: dict[Any, Mapping[str, Any]] = {}
    for number, entry in enumerate(entries):
        name, image_id = entry.get("file_name"), entry.get("id")
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: images[{number}]: file_name is {_describe_type(name)}: a file name is expected")
        if not _is_id(image_id):
            raise DataError(
                f"{path}: images[{number}] ({name[:80]}): id is {_describe_type(image_id)}: a number is expected"
            )
        first_entry = images.setdefault(image_id, entry)
        if first_entry is not entry and first_entry["file_name"] == name:
            raise DataError(f"{path}: the image {name[:80]} is listed twice with the id {image_id}: delete one entry")
        if first_entry is not entry:
            raise DataError(
                f"{path}: the images {first_entry['file_name'][:80]} and {name[:80]} share an id ({image_id}), as if "
                "two files were joined: renumber the images of one file, in `images` and in each annotation's image_id"
            )
    return images


def _people_by_image(
    annotations: Sequence[Mapping[str, Any]], category_id: Any, images: Mapping[Any, Any], path: str
) -> dict[Any, list[_Person]]:
    """Group the annotations of a category by image id, without crowds; return each annotation as a `_Person`."""
    people: dict[Any, list[_Person]] = defaultdict(list)
    for number, person in enumerate(annotations):
        place = f"{person['id']!r:.40}" if "id" in person else f"no. {number}"
        where = f"{path}: annotation {place}"
        if "category_id" not in person:
            raise DataError(f"{where}: has no category_id: add it (the category with keypoints is {category_id!r:.40})")
        person_category = person["category_id"]
        if person_category != category_id and str(person_category) == str(category_id):
            raise DataError(
                f"{where}: category_id is {_describe_type(person_category)} ({person_category!r:.40}), but the "
                "category's id is not: write both as numbers"
            )
        if person_category == category_id and not person.get("iscrowd"):
            people[_image_id(person, images, where)].append((place, person))
    if annotations and not people and not any(person["category_id"] == category_id for person in annotations):
        raise DataError(
            f"{path}: no annotation belongs to the category with keypoints, whose id is {category_id!r:.40} (the first "
            f"has category_id {annotations[0]['category_id']!r:.40}): set category_id of the "
            "annotations to the id of the category"
        )
    return people


def _image_id(person: Mapping[str, Any], images: Mapping[Any, Any], where: str) -> Any:
    """Return the id of the image that an annotation belongs to."""
    image_id = person.get("image_id")
    if not _is_id(image_id):
        raise DataError(f"{where}: image_id is {_describe_type(image_id)}: the id of an image is expected")
    if image_id in images:
        return image_id
    if any(str(image_id) == str(known_id) for known_id in images):
        raise DataError(
            f"{where}: image_id is {_describe_type(image_id)} ({image_id!r:.40}), but the image's id is not: "
            "write both as numbers"
        )
    raise DataError(
        f"{where}: no image has the id {image_id!r:.40}: add the image to `images`, or correct the image_id"
    )


def _parse_points(values: Any, num_keypoints: int, where: str) -> list[tuple[float, float, float]]:
    """Split the list of 3K numbers of an annotation into K points x, y, v; an unlabelled point becomes NaN, NaN, 0."""
    unlabelled_point = (math.nan, math.nan, 0.0)
    if values is None or values == []:
        return [unlabelled_point] * num_keypoints
    if not isinstance(values, list):
        raise DataError(
            f"{where}: keypoints is {_describe_type(values)}: a list of {3 * num_keypoints} numbers x, y, v is expected"
        )
    if len(values) != 3 * num_keypoints:
        guess = ", as if v were missing" if len(values) == 2 * num_keypoints else ""
        raise DataError(
            f"{where}: {len(values)} keypoint numbers where {3 * num_keypoints} are expected{guess}: write x, y, v "
            f"for each of the {num_keypoints} keypoints"
        )
    points = list(zip(values[0::3], values[1::3], values[2::3], strict=True))
    for x, y, v in points:
        if not _is_finite(v) or v not in (0, 1, 2):
            raise DataError(f"{where}: a keypoint's v is {v!r:.20}: write 0 (unlabelled), 1 (hidden) or 2 (visible)")
        if v > 0 and not (_is_finite(x) and _is_finite(y)):
            raise DataError(
                f"{where}: a keypoint's x or y is not a finite number (got {x!r:.20}, {y!r:.20}): write numbers, and "
                "v 0 for an unlabelled point"
            )
    return [(x, y, v) if v > 0 else unlabelled_point for x, y, v in points]


def _stated_facts(image: Mapping[str, Any], person: Mapping[str, Any], num_labelled: int) -> StatedFacts:
    """Return size, keypoint count and box that a file gives for a person; a value of a wrong type counts as absent."""
    size: list[Any] = [image.get("width"), image.get("height")]
    num_keypoints, bbox = person.get("num_keypoints"), person.get("bbox")
    box = tuple(map(float, bbox)) if isinstance(bbox, list) and all(map(_is_finite, bbox)) else ()
    return StatedFacts(
        size=(int(size[0]), int(size[1])) if all(_is_finite(side) and side >= 1 for side in size) else None,
        num_keypoints=num_keypoints if isinstance(num_keypoints, int) else None,
        num_labelled=num_labelled,
        bbox_xywh=(box[0], box[1], box[2], box[3]) if len(box) == 4 else None,
    )


def _is_finite(value: Any) -> bool:
    """Return whether a JSON value is a number below `MAX_NUMBER`; a larger number counts as infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) or _is_finite(value)


def _describe_type(value: Any) -> str:
    """Name the type of a JSON value, with its article."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "absent or null")
