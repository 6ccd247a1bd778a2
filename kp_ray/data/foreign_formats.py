"""Describe label files of other tools, for messages about a file that is neither COCO keypoints JSON nor native CSV."""

from collections.abc import Mapping, Sequence
from typing import Any

EXPECTED_JSON = "COCO keypoints JSON with images, annotations and categories"

# Keys of a JSON object -> its description. The first entry whose keys are all in the object describes it.
_OBJECTS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"shapes", "imagePath"}), "a labelme file of one image"),
    (frozenset({"shapes", "flags", "version"}), "a labelme file of one image"),
    (frozenset({"people", "version"}), "an OpenPose file of one image"),
    (frozenset({"_via_img_metadata"}), "a project of the VGG Image Annotator (VIA)"),
    (frozenset({"categories", "items"}), "a Datumaro file, as CVAT exports it"),
    (frozenset({"skeletons", "videos"}), "a SLEAP file"),
    (frozenset({"objects", "size"}), "a Supervisely file of one image"),
    (frozenset({"type", "features"}), "a GeoJSON file"),
)
# Keys of the first entry of a JSON list -> description of the list.
_LISTS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"image_id", "keypoints"}), "a list of COCO results or annotations without images and categories"),
    (frozenset({"shapes", "tracks"}), "a backup of a CVAT task"),
    (frozenset({"data", "annotations"}), "a Label Studio export"),
    (frozenset({"data", "completions"}), "a Label Studio export"),
    (frozenset({"joints", "image"}), "a list of MPII annotations"),
    (frozenset({"image", "annotations"}), "a CreateML file"),
)
# A column that only one tool's CSV has -> description of that CSV.
_TABLES: dict[str, str] = {
    "region_shape_attributes": "a CSV of the VGG Image Annotator (VIA)",
    "annotation_id": "a CSV of Label Studio",
    "ImageID": "an Open Images CSV",
    "NPoints": "an MPII CSV",
}


def describe_json(value: Any) -> str:
    """Describe the value of a JSON file that is not COCO keypoints JSON, e.g. "a SLEAP file"."""
    if isinstance(value, Mapping):
        missing_keys = [key for key in ("images", "annotations", "categories") if key not in value]
        if len(missing_keys) < 3 and "items" not in value:
            return f"COCO JSON without the key {missing_keys[0]}" if missing_keys else "COCO JSON"
        description = _describe(value, _OBJECTS)
        if description:
            return description
        entry = next(iter(value.values()), None)
        if isinstance(entry, Mapping) and "regions" in entry:
            return "annotations of the VGG Image Annotator (VIA)"
        keys = ", ".join(str(key)[:40] for key in list(value)[:4])
        return f"a JSON object with the keys {keys}" if keys else "an empty JSON object"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if not value:
            return "an empty JSON list"
        description = _describe(value[0], _LISTS) if isinstance(value[0], Mapping) else ""
        return description or f"a JSON list of {len(value)} entries"
    return "a single JSON value"


def describe_table(header: Sequence[str]) -> str:
    """Describe another tool's CSV by the columns of its header; return "" if no tool is recognized."""
    return next((description for column, description in _TABLES.items() if column in header), "")


def _describe(entry: Mapping[str, Any], descriptions: Sequence[tuple[frozenset[str], str]]) -> str:
    """Return the first description whose keys are all in the entry; "" if there is none."""
    return next((description for keys, description in descriptions if keys <= entry.keys()), "")
