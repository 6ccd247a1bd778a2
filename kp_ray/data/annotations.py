"""The table of labelled images that every label format is read into, and the rules of image names."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kp_ray.errors import DataError
from kp_ray.keypoints import FloatArray, Skeleton

# A number of up to 18 digits fits the 64 bits of the column `frame` of a store.
_IMAGE_NAME = re.compile(r"(?P<scene>.+)_(?P<camera>[A-Z])-(?P<frame>[0-9]{1,18})\.\w+")


@dataclass(frozen=True, slots=True)
class StatedFacts:
    """Facts that a COCO JSON states about an image and its person, apart from the points; None where it states nothing.

    Attributes:
        size: (width, height) of the image in pixels.
        num_keypoints: value of the file's `num_keypoints`.
        num_labelled: number of points with v > 0, counted before `data.missing_values` and corrections are applied.
        bbox_xywh: the person's box: x, y, width, height in pixels.
    """

    size: tuple[int, int] | None = None
    num_keypoints: int | None = None
    num_labelled: int = 0
    bbox_xywh: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, eq=False)
class Annotations:
    """N labelled images with one person each, in the order of the labels' file.

    Attributes:
        skeleton: K keypoints.
        images: N unique names inside the image folder, e.g. "a/b.jpg" for an image in a sub-folder.
        keypoints: (N, K, 3) x, y, v. Coordinates are pixel indices: an integer is a pixel's centre. An unlabelled point
            is NaN, NaN, 0; a labelled point has v 2, or v 1 if the file marks it as hidden.
        scenes: N scene names; images of one scene are on the same side of a split.
        cameras: N camera names; "" if the image name has none.
        frames: N frame numbers; -1 if the image name has none.
        corrected: changes made by the corrections file, one line per change.
        rows: N positions of the images in the labels' file, counted from 0; empty stands for 0, 1, ..., N - 1. A
            store is divided into parts by these positions, so that leaving out an image changes only one part.
        stated: facts about each of the N images, as a COCO JSON states them; empty for a CSV.
        notes: lines about how the file was read, e.g. the number of people that were left out.
    """

    skeleton: Skeleton
    images: tuple[str, ...]
    keypoints: FloatArray
    scenes: tuple[str, ...]
    cameras: tuple[str, ...]
    frames: tuple[int, ...]
    corrected: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    stated: tuple[StatedFacts, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> "Annotations":
        """Return the images at `indices`, in that order, with copies of their keypoints."""
        positions = [int(index) for index in indices]
        return replace(
            self,
            images=tuple(self.images[index] for index in positions),
            keypoints=self.keypoints[positions],
            scenes=tuple(self.scenes[index] for index in positions),
            cameras=tuple(self.cameras[index] for index in positions),
            frames=tuple(self.frames[index] for index in positions),
            rows=tuple(self.rows[index] for index in positions) if self.rows else tuple(positions),
            stated=tuple(self.stated[index] for index in positions) if self.stated else (),
        )


@dataclass(frozen=True, eq=False)
class LabelTable:
    """Content of a labels' file as its format's reader returns it: R rows with one person each.

    Attributes:
        names: K keypoint names, in the order of the file.
        images: R image names, which the reader has not checked. A name is repeated if the image shows several people;
            an image without a person has one row without labelled points.
        keypoints: (R, K, 3), as in `Annotations`.
        groups: R names that replace the scene in the image name; "" where nothing replaces it.
        places: R positions in the file, for messages: numbers of rows, or ids of COCO annotations. None for an image
            without an annotation.
        place_kind: kind of the places, "row" or "annotation".
        stated: facts about each of the R rows; empty if the format states no facts.
    """

    names: list[str]
    images: list[str]
    keypoints: FloatArray
    groups: list[str]
    places: Sequence[Any]
    place_kind: Literal["row", "annotation"]
    stated: list[StatedFacts] = field(default_factory=list)

    def select(self, indices: Sequence[int]) -> "LabelTable":
        """Return the rows at `indices`, in that order."""
        return replace(
            self,
            images=[self.images[index] for index in indices],
            keypoints=self.keypoints[list(indices)],
            groups=[self.groups[index] for index in indices],
            places=[self.places[index] for index in indices],
            stated=[self.stated[index] for index in indices] if self.stated else [],
        )

    def describe_place(self, index: int, path: str) -> str:
        """Return the beginning of a message about the row at `index`: the file, and the row's place in it."""
        place = self.places[index]
        return path if place is None else f"{path}: {self.place_kind} {place}"


def parse_name(image: str) -> tuple[str, str, int]:
    """Split an image name into scene, camera and frame number.

    `001-1-1-01-Z17_A-0000001.jpg` gives ("001-1-1-01-Z17", "A", 1). A sub-folder is part of the scene. A name of
    another form gives (name without its suffix, "", -1), so that each image with such a name is its own scene.
    """
    match = _IMAGE_NAME.fullmatch(image)
    if match:
        return match["scene"], match["camera"], int(match["frame"])
    return remove_suffix(image), "", -1


def remove_suffix(image: str) -> str:
    """Return an image name without the suffix of its file format; folders stay."""
    head, dot, tail = image.rpartition(".")
    return head if dot and head and "/" not in tail else image


def is_inside_folder(image: str) -> bool:
    """Return whether an image name stays inside the image folder.

    A name that is empty or absolute, or that holds "..", a backslash, a drive letter, a line break or another control
    character, does not.
    """
    # Unicode's categories of control characters, halves of characters, and separators of lines and paragraphs.
    has_control = any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in image)
    name_parts = image.split("/")
    return not ("\\" in image or has_control or {"", ".", ".."} & set(name_parts) or re.match("[A-Za-z]:", image))


def check_image_name(image: str, where: str) -> str:
    """Return an image name unchanged if `is_inside_folder` accepts it.

    Args:
        image: a name, e.g. "a/b.jpg".
        where: file and row, with which the message begins.

    Raises:
        DataError: the name can lead out of the image folder, or begins or ends with white space.
    """
    if not is_inside_folder(image):
        raise DataError(
            f"{where}: image {image[:80]!r} is not a plain name inside the image folder: write e.g. a/b.jpg"
        )
    if image != image.strip():
        # A CSV cannot hold such a name, because white space around its cells is dropped.
        raise DataError(f"{where}: image {image[:80]!r} begins or ends with white space: rename the image")
    return image


def reorder_keypoints(labels: Annotations, skeleton: Skeleton, path: str) -> Annotations:
    """Return labels with their keypoints in the order of a skeleton.

    Args:
        labels: annotations whose skeleton has the same names in any order.
        skeleton: K keypoints.
        path: file of the labels, for the message.

    Raises:
        DataError: the names differ.
    """
    differences = sorted(set(labels.skeleton.names) ^ set(skeleton.names))
    if differences:
        raise DataError(
            f"{path}: its keypoints are not those of the run (differences: {len(differences)}, first "
            f"{differences[0]!r}): use labels of the run's data set"
        )
    order = [labels.skeleton.names.index(name) for name in skeleton.names]
    return replace(labels, skeleton=skeleton, keypoints=labels.keypoints[:, order])
