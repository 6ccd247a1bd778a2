"""Labels in and out: the native wide CSV and COCO keypoints JSON, corrections, and the data set's lint.

Both files hold OpenCV pixel indices. COCO's keypoints are indices too, although its boxes and masks are continuous:
Detectron2's own JSON loader says so and adds the half pixel itself. So nothing is added or taken off here.
"""

import csv
import io
import json
import math
import operator
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import simplejpeg
from PIL import ExifTags, Image

from kp_ray.config import InputError, file_sizes, join, one_line, read_bytes, write_bytes
from kp_ray.keypoints import FloatArray, Skeleton, inside, skeleton_for, visible_box

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
"""What is decoded; Pillow knows more, some of them by running other programs."""
_NAME = re.compile(r"(?P<scene>.+)_(?P<camera>[A-Z])-(?P<frame>[0-9]{1,18})\.\w+")
_TURNED = (5, 6, 7, 8)

# A jump, in body sizes. Set on 4195 real labels (265 clips of 16 coarse frames, 5 cameras): leg raises and jumping
# jacks move a point by a whole body size from frame to frame and back, so other cameras decide where there are any.
_JUMP_FLOOR = 0.2
_JUMP_RATIO = 3.0  # of the frame's distance to that between its neighbours; also to the other cameras', or the body's
_ALONE_RATIO = 6.0  # without other cameras: to what is usual in the clip
_NOISE = 0.02  # a labeller's hand
_SWAP_FLOOR = 0.25
_SWAP_RATIO = 0.35
_FOREIGN_FLOOR = 0.1
_FOREIGN_RATIO = 3.0
_MAX_REFERENCES = 64


@dataclass(frozen=True, eq=False)
class Annotations:
    """N labelled images of one person each, in file order.

    Attributes:
        skeleton: K keypoints.
        images: N unique names inside the image folder, "a/b.jpg" for one in a sub-folder.
        keypoints: (N, K, 3) x, y, v in pixels; an unlabelled point is NaN, NaN, 0; a CSV's labelled points have v 2.
        scenes: N; images of one scene must not stand on both sides of a split.
        cameras: N; "" when the name has none.
        frames: N frame numbers; -1 when the name has none.
        corrected: what a corrections file changed, one line each.
        rows: N places among the images of the file, those counted that a selection left out; empty stands for 0 to N-1.
    """

    skeleton: Skeleton
    images: tuple[str, ...]
    keypoints: FloatArray
    scenes: tuple[str, ...]
    cameras: tuple[str, ...]
    frames: tuple[int, ...]
    corrected: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> "Annotations":
        """The rows at `indices`, in that order."""
        rows = [int(index) for index in indices]
        return replace(
            self,
            images=tuple(self.images[row] for row in rows),
            keypoints=self.keypoints[rows],
            scenes=tuple(self.scenes[row] for row in rows),
            cameras=tuple(self.cameras[row] for row in rows),
            frames=tuple(self.frames[row] for row in rows),
            rows=tuple(self.rows[row] for row in rows) if self.rows else tuple(rows),
        )


def parse_name(image: str) -> tuple[str, str, int]:
    """Scene, camera and frame of `001-1-1-01-Z17_A-0000001.jpg`: ("001-1-1-01-Z17", "A", 1).

    A sub-folder belongs to the scene. A name of another form is a scene of its own: its stem, "" and -1.
    """
    match = _NAME.fullmatch(image)
    if match:
        return match["scene"], match["camera"], int(match["frame"])
    return _stem(image), "", -1


def load_annotations(
    path: str,
    *,
    corrections: str | None = None,
    flip_pairs: Sequence[tuple[str, str]] | None = None,
    sigmas: Sequence[float] | None = None,
) -> Annotations:
    """The labels of a COCO keypoints JSON (`.json`) or of a native wide CSV (anything else).

    The CSV has `image`, `<name>_x`, `<name>_y` per keypoint in any order, and may have `group`, which replaces the
    scene. The JSON may have `group` in an entry of `images`. An image without an annotation in the JSON is a row
    without labels.

    Args:
        path: a local path or URL.
        corrections: CSV of image, action (drop | point), keypoint, x, y; empty x and y remove the label.
        flip_pairs, sigmas: of a skeleton other than the competition's 24 points.

    Raises:
        InputError: one line with the file, the row (its line in the file, the header being 1) or image, and the fix.
    """
    read = _read_coco if path.lower().endswith(".json") else _read_csv
    names, images, keypoints, groups = read(path)
    repeated = [image for image, count in Counter(images).items() if count > 1]
    if repeated:
        raise InputError(
            f"{path}: the image name {repeated[0]} stands there {Counter(images)[repeated[0]]} times: keep one"
        )
    if not images:
        raise InputError(f"{path}: holds no labelled image: a header alone is not enough")
    try:
        skeleton = skeleton_for(names, flip_pairs, sigmas)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    parsed = [parse_name(image) for image in images]
    labels = Annotations(
        skeleton=skeleton,
        images=tuple(images),
        keypoints=keypoints if names == [*skeleton.names] else keypoints[:, [*map(names.index, skeleton.names)]],
        scenes=tuple(group or scene for group, (scene, _, _) in zip(groups, parsed, strict=True)),
        cameras=tuple(camera for _, camera, _ in parsed),
        frames=tuple(frame for _, _, frame in parsed),
    )
    return _correct(labels, corrections) if corrections else labels


def in_order_of(labels: Annotations, skeleton: Skeleton, path: str) -> Annotations:
    """The labels with their keypoints in this skeleton's order.

    Args:
        path: of the labels, named in the message.

    Raises:
        InputError: they are of other keypoints.
    """
    different = sorted(set(labels.skeleton.names) ^ set(skeleton.names))
    if different:
        raise InputError(
            f"{path}: {different[0]!r} and {len(different) - 1} more are keypoints of one side only: use the "
            "labels of the same data set"
        )
    order = [labels.skeleton.names.index(name) for name in skeleton.names]
    return replace(labels, skeleton=skeleton, keypoints=labels.keypoints[:, order])


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
        f"{_stem(str(images[number]['file_name']))}.txt": "".join(f"{x}\n" for x in of) for number, of in lines.items()
    }


def write_yolo(folder: str) -> int:
    """Write `labels/<name>.txt` beside an export's `images/<name>.jpg`, from its `annotations.json`; returns how many.

    Raises:
        InputError: `folder` holds no `annotations.json`.
    """
    texts = to_yolo(json.loads(read_bytes(join(folder, "annotations.json"))))
    for name, text in texts.items():
        write_bytes(join(folder, "labels", name), text.encode())
    return len(texts)


def _stem(image: str) -> str:
    """An image's name without its suffix."""
    head, dot, tail = image.rpartition(".")
    return head if dot and head and "/" not in tail else image


_Table = tuple[list[str], list[str], FloatArray, list[str]]
"""K names, N images, (N, K, 3) keypoints, N groups ("" for none)."""


def _rows(path: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
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
            raise InputError(f"{path}: row {reader.line_num}: not CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is not UTF-8 text: save it as CSV UTF-8") from error

    rows = parse()
    _, header = next(rows, (0, []))
    if not header:
        raise InputError(f"{path}: is empty: a header row and a row per image are expected")
    if "image" not in header:
        hint = "separate the columns by commas" if len(header) == 1 else "name the column of file names `image`"
        raise InputError(f"{path}: the header has no `image` column: {hint}")
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise InputError(f"{path}: the header has the column {twice[0]!r} twice: keep one")
    return header, rows


def _read_csv(path: str) -> _Table:
    header, rows = _rows(path)
    columns = [name for name in header if name not in ("image", "group")]
    names = list(dict.fromkeys(name[:-2] for name in columns if name.endswith(("_x", "_y")) and len(name) > 2))
    if not names:
        raise InputError(f"{path}: the header has no keypoint columns: <name>_x and <name>_y are expected")
    expected = [f"{name}_{axis}" for name in names for axis in "xy"]
    for column in sorted(set(columns) ^ set(expected)):
        problem = (
            "is missing: add it"
            if column in expected
            else "is not known: image, group, <name>_x, <name>_y are; drop it"
        )
        raise InputError(f"{path}: the column {column!r} {problem}")
    where = {name: header.index(name) for name in header}
    numbers_of = operator.itemgetter(*(where[column] for column in expected))
    images, groups, values = [], [], array("d")
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(
                f"{path}: row {line}: {len(cells)} cells where the header has {len(header)}: make them equal"
            )
        images.append(checked_name(cells[where["image"]], f"{path}: row {line}"))
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
    numbers = [_number(cell, f"{where}: {column}") for cell, column in zip(cells, columns, strict=True)]
    for column, x, y in zip(columns[::2], cells[::2], cells[1::2], strict=True):
        if (not x) != (not y):
            raise InputError(f"{where}: {column[:-2]} has only one of x and y: give both, or neither")
    return numbers


def _read_coco(path: str) -> _Table:
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {one_line(error)}") from error
    try:
        kinds = [kind for kind in content["categories"] if kind.get("keypoints")]
        if len(kinds) != 1:
            raise InputError(f"{path}: {len(kinds)} categories have keypoints: keep exactly one, e.g. person")
        names = [str(name) for name in kinds[0]["keypoints"]]
        people: dict[Any, list[Any]] = {}
        listed = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
        for person in content["annotations"]:
            if person["category_id"] != kinds[0]["id"] or person.get("iscrowd"):
                continue
            image = listed.get(person["image_id"])
            if image is None:
                raise InputError(f"{path}: annotation {person.get('id')}: no image has its id {person['image_id']}")
            if person["image_id"] in people:
                raise InputError(
                    f"{path}: {image}: two people are annotated: one person an image is expected, drop one"
                )
            people[person["image_id"]] = person["keypoints"]
        images = [checked_name(str(entry["file_name"]), path) for entry in content["images"]]
        groups = [str(entry.get("group", "")) for entry in content["images"]]
        empty = [0] * (3 * len(names))
        points = [_coco_points(people.get(i, empty), len(names), f"{path}: {listed[i]}") for i in listed]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not COCO keypoints JSON: {type(error).__name__}: {error}") from error
    if len(images) != len(points):
        raise InputError(f"{path}: two images share an id: give each its own")
    return names, images, np.array(points, dtype=np.float64).reshape(-1, len(names), 3), groups


def _coco_points(flat: Sequence[Any], num_keypoints: int, where: str) -> FloatArray:
    if len(flat) != 3 * num_keypoints:
        raise InputError(f"{where}: {len(flat)} keypoint numbers where {3 * num_keypoints} are expected")
    if not all(isinstance(value, int | float) and abs(value) < 1e9 for value in flat):
        raise InputError(f"{where}: a keypoint is not a finite number: write numbers, and v 0 for an unlabelled point")
    points = np.array(flat, dtype=np.float64).reshape(-1, 3)
    if not np.isin(points[:, 2], (0, 1, 2)).all():
        raise InputError(f"{where}: a keypoint's v is not 0, 1 or 2")
    points[points[:, 2] == 0, :2] = np.nan
    return points


def _number(text: str, where: str) -> float:
    """The number of a cell, NaN for an empty one."""
    if not text:
        return math.nan
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {text[:40]!r} is not a number: write one, or leave the cell empty if unlabelled")
    return value


def checked_name(image: str, where: str) -> str:
    """An image's name as it is, if it cannot lead out of the image folder.

    Raises:
        InputError: it can; the line begins with `where`.
    """
    parts = image.split("/")
    if "\\" in image or not image.isprintable() or {"", ".", ".."} & set(parts) or re.match("[A-Za-z]:", image):
        raise InputError(
            f"{where}: image {image[:80]!r} is not a plain name inside the image folder: write e.g. a/b.jpg"
        )
    return image


def _correct(labels: Annotations, path: str) -> Annotations:
    """The labels with a corrections file applied."""
    header, rows = _rows(path)
    if "action" not in header or set(header) - {"image", "action", "keypoint", "x", "y"}:
        raise InputError(f"{path}: the header is {','.join(header)[:80]}: it should be image,action,keypoint,x,y")
    row_of = {image: row for row, image in enumerate(labels.images)}
    keypoints, dropped, done = labels.keypoints.copy(), set(), []
    for line, cells in rows:
        where = f"{path}: row {line}"
        if len(cells) != len(header):
            raise InputError(f"{where}: {len(cells)} cells where the header has {len(header)}: make them equal")
        cell = {"keypoint": "", "x": "", "y": "", **dict(zip(header, cells, strict=True))}
        image, name = cell["image"], cell["keypoint"]
        if image not in row_of:
            raise InputError(f"{where}: no labelled image is named {image[:80]!r}")
        if cell["action"] == "drop":
            if name or cell["x"] or cell["y"]:
                raise InputError(
                    f"{where}: drop takes a whole image: leave keypoint, x and y empty, or use action point"
                )
            dropped.add(row_of[image])
            done.append(f"{image}: dropped")
        elif cell["action"] == "point":
            if name not in labels.skeleton.names:
                raise InputError(f"{where}: no keypoint is named {name[:80]!r}")
            x, y = (_number(cell[axis], f"{where}: {axis}") for axis in "xy")
            if math.isnan(x) != math.isnan(y):
                raise InputError(f"{where}: only one of x and y: give both, or neither to remove the label")
            keypoints[row_of[image], labels.skeleton.names.index(name)] = (x, y, 0 if math.isnan(x) else 2)
            done.append(f"{image}: {name} " + ("unlabelled" if math.isnan(x) else f"moved to {x:g}, {y:g}"))
        else:
            raise InputError(f"{where}: the action {cell['action'][:40]!r} is not known: use drop or point")
    kept = [row for row in range(len(labels)) if row not in dropped]
    if not kept:
        raise InputError(f"{path}: drops every image: keep some")
    return replace(labels, keypoints=keypoints, corrected=tuple(done)).select(kept)


@dataclass(frozen=True)
class Finding:
    """One thing `check` found: an error cannot be used, a warning should be looked at."""

    level: Literal["error", "warning"]
    kind: str
    image: str
    message: str
    fix: str


Sizes = Mapping[str, tuple[int, int]] | tuple[int, int] | None
"""(width, height) of each image by name, or of all of them; None or a missing name: not known."""


def check_labels(annotations: Annotations, sizes: Sizes = None) -> list[Finding]:
    """What looks wrong in the labels themselves, in file order; all of it warnings.

    Kinds: unlabelled (no point at all), repeated (the same labels as an earlier image), outside (points out of the
    frame; needs `sizes`), coincident (two points at one place), left_right (a body half or pair mirrored), jump (the
    person, or one point, is elsewhere in one frame of a clip). Clips are (scene, camera), ordered by frame number.
    """
    found = [*_row_findings(annotations, sizes), *_motion_findings(annotations)]
    place = {image: row for row, image in enumerate(annotations.images)}
    return sorted(found, key=lambda finding: place[finding.image])


def _warning(kind: str, image: str, message: str, fix: str) -> Finding:
    return Finding("warning", kind, image, message, fix)


def _listed(names: Sequence[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _row_findings(annotations: Annotations, sizes: Sizes) -> Iterator[Finding]:
    """What one row shows, or two rows that are equal."""
    names = np.array(annotations.skeleton.names)
    first: dict[bytes, str] = {}
    for image, points in zip(annotations.images, annotations.keypoints, strict=True):
        xy = points[:, :2]
        if not np.isfinite(xy).any():
            yield _warning("unlabelled", image, "no point is labelled", "label it, or drop the row")
            continue
        twin = first.setdefault(xy.tobytes(), image)
        if twin != image:
            yield _warning(
                "repeated", image, f"its labels repeat those of {twin}", "drop the row whose picture they do not fit"
            )
        size = sizes.get(image) if isinstance(sizes, Mapping) else sizes
        if size is not None:
            out = names[np.isfinite(xy).all(axis=1) & ~inside(xy, *size)]
            if len(out):
                fix = "correct the points, or leave them empty; they count as not visible"
                yield _warning("outside", image, f"outside the {size[0]}x{size[1]} frame: {_listed(list(out))}", fix)
        places: dict[tuple[float, float], list[str]] = defaultdict(list)
        for name, (x, y) in zip(annotations.skeleton.names, xy.tolist(), strict=True):
            if math.isfinite(x):
                places[x, y].append(name)
        same = [" = ".join(together) for together in places.values() if len(together) > 1]
        if same:
            yield _warning(
                "coincident", image, f"at the same place: {_listed(same)}", "correct one of each, or leave it empty"
            )
        if _is_crossed(annotations.skeleton, xy):
            fix = "unless the body is twisted, exchange the left and right points of the wrong half"
            yield _warning("left_right", image, "shoulders and hips point opposite ways", fix)


def _is_crossed(skeleton: Skeleton, xy: FloatArray) -> bool:
    """Whether left-to-right runs one way in the shoulders and the other way in the hips, both seen wide.

    A body can twist, but hardly by half a turn: both must be wider than 0.15 of the torso and more than 143 degrees
    apart. Eight of 400 photographs of athletes are: some clearly mislabelled, some a twisted leap, so look first.
    """
    needed = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
    if not set(needed) <= set(skeleton.names):
        return False
    shoulder_l, shoulder_r, hip_l, hip_r = (xy[skeleton.names.index(name)] for name in needed)
    shoulders, hips = shoulder_l - shoulder_r, hip_l - hip_r
    wide = 0.15 * np.linalg.norm((shoulder_l + shoulder_r - hip_l - hip_r) / 2)
    lengths = np.linalg.norm(shoulders), np.linalg.norm(hips)
    return bool(min(lengths) > wide and shoulders @ hips < -0.8 * lengths[0] * lengths[1])


@dataclass(frozen=True)
class _Clip:
    """T >= 3 frames of one camera, in body sizes; what the ends of a clip cannot tell is NaN.

    Attributes:
        rows, frames: T places in the table, and frame numbers.
        xy: (T, K, 2) points.
        body_px: the median over the clip of the square root of the labels' box area.
        away: (T, 1 + K) how far the frame lies from its neighbours: the whole person (median point, nearer neighbour),
            then each point from the line between them.
        usual: (T, 1 + K) how far the neighbours lie from each other.
        exchange: (T, P) for each flip pair, how much nearer that line left and right come when exchanged: 0 is all
            the way, 1 not at all.
    """

    rows: list[int]
    frames: list[int]
    xy: FloatArray
    body_px: float
    away: FloatArray
    usual: FloatArray
    exchange: FloatArray


def _clips(annotations: Annotations) -> dict[tuple[str, str], _Clip]:
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    keys = zip(annotations.scenes, annotations.cameras, strict=True)
    for row, (key, frame) in enumerate(zip(keys, annotations.frames, strict=True)):
        if frame >= 0:
            members[key].append(row)
    clips = {}
    for key, rows in members.items():
        rows.sort(key=lambda row: annotations.frames[row])
        frames = [annotations.frames[row] for row in rows]
        xy = annotations.keypoints[rows, :, :2]
        sides = [np.ptp(points[np.isfinite(points[:, 0])], axis=0) for points in xy if np.isfinite(points).any()]
        body_px = float(np.median([math.sqrt(width * height) for width, height in sides])) if sides else 0.0
        if len(rows) >= 3 and body_px > 0 and len(set(frames)) == len(frames):
            clips[key] = _clip(annotations.skeleton, rows, frames, body_px, xy / body_px)
    return clips


def _clip(skeleton: Skeleton, rows: list[int], frames: list[int], body_px: float, xy: FloatArray) -> _Clip:
    """A clip from its points (T, K, 2) in body sizes."""
    before, here, after = xy[:-2], xy[1:-1], xy[2:]
    numbers = np.array(frames, dtype=np.float64)
    share = ((numbers[1:-1] - numbers[:-2]) / (numbers[2:] - numbers[:-2]))[:, None, None]
    line = before * (1 - share) + after * share
    off, apart = np.linalg.norm(here - line, axis=2), np.linalg.norm(after - before, axis=2)
    step = _median(np.linalg.norm(np.diff(xy, axis=0), axis=2), axis=1)
    whole = np.concatenate([step[:1], np.minimum(step[:-1], step[1:]), step[-1:]])
    whole_usual = np.concatenate([step[1:2], _median(apart, axis=1), step[-2:-1]])
    ends = ((1, 1), (0, 0))
    flip = skeleton.flip_indices
    left = [a for a, b in enumerate(flip) if a < b]
    crossed = np.linalg.norm(here[:, flip] - line, axis=2)
    keep, swap = off + off[:, flip], crossed + crossed[:, flip]
    with np.errstate(invalid="ignore", divide="ignore"):
        exchange = np.where(keep > _SWAP_FLOOR, swap / keep, 1.0)[:, left]
    return _Clip(
        rows, frames, xy, body_px,
        away=np.column_stack([whole, np.pad(off, ends, constant_values=np.nan)]),
        usual=np.column_stack([whole_usual, np.pad(apart, ends, constant_values=np.nan)]),
        exchange=np.pad(exchange, ends, constant_values=np.nan),
    )  # fmt: skip


def _median(values: FloatArray, axis: int) -> FloatArray:
    """The median of the numbers that are not NaN; NaN where there is none."""
    ordered = np.sort(values, axis=axis)  # NaN last
    count = np.isfinite(ordered).sum(axis=axis, keepdims=True)
    low, high = (
        np.take_along_axis(ordered, place, axis)
        for place in (np.maximum(count - 1, 0) // 2, count // 2 % values.shape[axis])
    )
    return np.asarray(np.squeeze((low + high) / 2, axis=axis))


def _foreign_rows(clips: Mapping[tuple[str, str], _Clip]) -> dict[int, int]:
    """The rows whose points belong to another frame, and that frame, by the scene's other cameras.

    How far a pose is from the poses of the other frames looks alike from every side, up to a factor a camera. A row
    whose distances are far from the other cameras' median at its frame, and close to it at another one, was filled
    with that one's points. Needs three cameras and six frames.
    """
    scenes: dict[str, list[_Clip]] = defaultdict(list)
    for (scene, _), clip in clips.items():
        scenes[scene].append(clip)
    foreign: dict[int, int] = {}
    for views in scenes.values():
        frames = sorted({frame for clip in views for frame in clip.frames})
        if len(views) < 3 or len(frames) < 6:
            continue
        references = frames[:: -(-len(frames) // _MAX_REFERENCES)]
        far = np.stack([_distances(clip, frames, references) for clip in views])
        at = [frames.index(frame) for frame in references]
        for view, clip in enumerate(views):
            expected = _median(np.delete(far, view, axis=0), axis=0)
            moved = (expected > 0.05) & (far[view] > 0)
            mine = far[view] / (float(np.median(far[view][moved] / expected[moved])) if moved.any() else 1.0)
            here = _median(np.abs(mine - expected), axis=1)
            there = _median(np.abs(mine[:, None] - expected[at][None]), axis=2)
            there = np.where(np.isnan(there), np.inf, there)
            bar = np.maximum(there.min(axis=1), _median(here, axis=0)) + _NOISE / 2
            for row, t in zip(clip.rows, map(frames.index, clip.frames), strict=True):
                if here[t] > _FOREIGN_FLOOR and here[t] > _FOREIGN_RATIO * bar[t]:
                    foreign[row] = references[int(there[t].argmin())]
    return foreign


def _distances(clip: _Clip, frames: Sequence[int], references: Sequence[int]) -> FloatArray:
    """The median point's distance (T, R) between the clip's `frames` and `references`; NaN for one it lacks."""
    place = {frame: t for t, frame in enumerate(clip.frames)}
    nothing = np.full_like(clip.xy[0], np.nan)
    stack = np.stack([clip.xy[place[frame]] if frame in place else nothing for frame in frames])
    against = [stack[frames.index(frame)] for frame in references]
    return np.stack([_median(np.linalg.norm(stack - reference, axis=2), axis=1) for reference in against], axis=1)


def _motion_findings(annotations: Annotations) -> Iterator[Finding]:
    """One-frame jumps and exchanges, unless the scene's other cameras saw the same at that frame: then it is motion."""
    clips = _clips(annotations)
    foreign = _foreign_rows(clips)
    seen: dict[tuple[str, int], list[tuple[str, _Clip, int]]] = defaultdict(list)
    for (scene, camera), clip in clips.items():
        for t, frame in enumerate(clip.frames):
            seen[scene, frame].append((camera, clip, t))
    for (scene, camera), clip in clips.items():
        typical = _median(clip.away, axis=0)
        for t, frame in enumerate(clip.frames):
            others = [(other, s) for name, other, s in seen[scene, frame] if name != camera]
            away, image = clip.away[t], annotations.images[clip.rows[t]]
            with np.errstate(invalid="ignore"):
                jumps = (away > _JUMP_FLOOR) & (away > _JUMP_RATIO * (clip.usual[t] + _NOISE))
                swaps = clip.exchange[t] < _SWAP_RATIO
                if len(others) >= 2:
                    jumps &= ~(np.median([other.away[s] for other, s in others], axis=0) > away / _JUMP_RATIO)
                    swaps &= ~(np.median([other.exchange[s] for other, s in others], axis=0) < 2 * _SWAP_RATIO)
                else:
                    jumps &= away > _ALONE_RATIO * (typical + _NOISE)
                jumps[1:] &= away[1:] > _JUMP_RATIO * (away[0] + _NOISE)
            like = foreign.get(clip.rows[t])
            yield from _told(annotations.skeleton, image, away * clip.body_px, jumps, swaps, like)


def _told(
    skeleton: Skeleton,
    image: str,
    away_px: FloatArray,
    jumps: npt.NDArray[np.bool_],
    swaps: npt.NDArray[np.bool_],
    like: int | None,
) -> Iterator[Finding]:
    """The findings of one frame: the whole person (as in frame `like`), else exchanged pairs and single points."""
    left = [a for a, b in enumerate(skeleton.flip_indices) if a < b]
    mirrored = len(left) > 0 and swaps.mean() >= 0.5
    if not mirrored and (like is not None or jumps[0]):
        message = f"the person is {away_px[0]:.0f} px from where the frames before and after have it"
        if like is not None:
            message = f"by the scene's other cameras its points belong to another frame, like frame {like}"
        yield _warning("jump", image, message, "compare picture and labels; drop the row, or correct its points")
        return
    pairs = [(a, skeleton.flip_indices[a]) for a, swapped in zip(left, swaps, strict=True) if swapped]
    if pairs:
        message = "left and right are exchanged: " + _listed(
            [f"{skeleton.names[a]}/{skeleton.names[b]}" for a, b in pairs]
        )
        yield _warning("left_right", image, f"{message}, by the frames before and after", "exchange the two points")
    told = {index for pair in pairs for index in pair}
    points = [k for k in range(len(skeleton)) if jumps[1 + k] and k not in told]
    if points:
        message = _listed([f"{skeleton.names[k]} by {away_px[1 + k]:.0f} px" for k in points])
        yield _warning("jump", image, f"out of line with the frames before and after: {message}", "correct the points")


def check_images(
    annotations: Annotations,
    images_dir: str,
    *,
    progress: Callable[[int], None] | None = None,
    num_threads: int = 8,
) -> tuple[list[Finding], dict[str, tuple[int, int]]]:
    """What is wrong with the picture files, in the labels' order, and the (width, height) of those that can be read.

    Errors: missing, misnamed (only upper and lower case differ), empty (no bytes), unreadable, truncated. Warnings:
    not_jpeg (a picture of another kind than its name says), size (where nine in ten share one size, the others),
    unlabelled_files (pictures in the folder without labels, once). A size is that of the upright picture, after EXIF.

    Args:
        annotations: N images.
        images_dir: a local folder or URL.
        progress: called with 1 as each picture is done, from the calling thread.
        num_threads: pictures read at once.

    Raises:
        InputError: the folder is not there.
    """
    present = set(file_sizes(images_dir))
    by_lower = {name.lower(): name for name in present}

    def look(image: str) -> tuple[Finding | None, tuple[int, int] | None]:
        if image in present:
            return _look(image, join(images_dir, image))
        close = by_lower.get(image.lower())
        if close:
            return Finding(
                "error", "misnamed", image, f"the file is named {close}", "rename the file or the label"
            ), None
        return Finding("error", "missing", image, f"no such file in {images_dir}", "add it, or drop the row"), None

    found: list[Finding] = []
    sizes: dict[str, tuple[int, int]] = {}
    with ThreadPoolExecutor(num_threads) as pool:
        for image, (finding, size) in zip(annotations.images, pool.map(look, annotations.images), strict=True):
            if finding:
                found.append(finding)
            if size:
                sizes[image] = size
            if progress:
                progress(1)
    most, count = Counter(sizes.values()).most_common(1)[0] if sizes else ((0, 0), 0)
    if count >= 0.9 * len(sizes):
        for image, size in sizes.items():
            if size != most:
                message = f"is {size[0]}x{size[1]}; most are {most[0]}x{most[1]}"
                found.append(_warning("size", image, message, "see whether it belongs here; recipes scale with it"))
    labelled = set(annotations.images)
    extra = sorted(name for name in present if _is_picture(name) and name not in labelled)
    if extra:
        message = f"{len(extra)} pictures in {images_dir} have no labels: {_listed(extra, 3)}"
        found.append(_warning("unlabelled_files", "", message, "label them, or leave them: they are not used"))
    place = {image: row for row, image in enumerate([*annotations.images, ""])}
    return sorted(found, key=lambda finding: place[finding.image]), sizes


def _look(image: str, path: str) -> tuple[Finding | None, tuple[int, int] | None]:
    """What is wrong with one picture file, and its upright (width, height)."""
    fix = "replace the file, or drop the row"
    try:
        content = read_bytes(path)
    except InputError as error:
        return Finding("error", "unreadable", image, str(error), fix), None
    if not content:
        return Finding("error", "empty", image, "the file has no bytes", fix), None
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        kind, (width, height) = picture.format or "", picture.size
    except Exception:  # Pillow's readers raise many kinds on foreign bytes
        return Finding("error", "unreadable", image, "the file is not a picture", fix), None
    try:
        if kind == "JPEG" and picture.mode in ("RGB", "L"):
            simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, strict=True)  # at an eighth of the size
        else:
            picture.load()
        turned = picture.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except Exception as error:
        message = f"the picture is truncated or damaged: {one_line(error)}"
        return Finding("error", "truncated", image, message, fix), None
    size = (height, width) if turned else (width, height)
    if image.lower().endswith((".jpg", ".jpeg")) and kind not in ("JPEG", "MPO"):
        return _warning("not_jpeg", image, f"the file is a {kind} picture, not a JPEG", "save it as JPEG"), size
    return None, size


def list_images(folder: str) -> list[str]:
    """The sorted names of the picture files in a local folder or URL, "a/b.jpg" for one in a sub-folder.

    Raises:
        InputError: the folder is not there.
    """
    return sorted(name for name in file_sizes(folder) if _is_picture(name))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def findings_table(findings: Sequence[Finding]) -> pd.DataFrame:
    """One row per finding: level, kind, image, message, fix."""
    columns = [field.name for field in fields(Finding)]
    return pd.DataFrame([[getattr(finding, name) for name in columns] for finding in findings], columns=columns)
