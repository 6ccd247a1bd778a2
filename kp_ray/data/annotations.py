"""Labelled images: the table in memory, and what an image's name tells."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kp_ray.errors import DataError
from kp_ray.keypoints import FloatArray, Skeleton

_NAME = re.compile(r"(?P<scene>.+)_(?P<camera>[A-Z])-(?P<frame>[0-9]{1,18})\.\w+")


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
    return stem(image), "", -1


def reorder_keypoints(labels: Annotations, skeleton: Skeleton, path: str) -> Annotations:
    """The labels with their keypoints in this skeleton's order.

    Args:
        path: of the labels, named in the message.

    Raises:
        DataError: they are of other keypoints.
    """
    different = sorted(set(labels.skeleton.names) ^ set(skeleton.names))
    if different:
        raise DataError(
            f"{path}: {different[0]!r} and {len(different) - 1} more are keypoints of one side only: use the "
            "labels of the same data set"
        )
    order = [labels.skeleton.names.index(name) for name in skeleton.names]
    return replace(labels, skeleton=skeleton, keypoints=labels.keypoints[:, order])


def stem(image: str) -> str:
    """An image's name without its suffix."""
    head, dot, tail = image.rpartition(".")
    return head if dot and head and "/" not in tail else image


Table = tuple[list[str], list[str], FloatArray, list[str]]
"""K names, N images, (N, K, 3) keypoints, N groups ("" for none)."""


def check_image_name(image: str, where: str) -> str:
    """An image's name as it is, if it cannot lead out of the image folder.

    Raises:
        DataError: it can; the line begins with `where`.
    """
    parts = image.split("/")
    if "\\" in image or not image.isprintable() or {"", ".", ".."} & set(parts) or re.match("[A-Za-z]:", image):
        raise DataError(
            f"{where}: image {image[:80]!r} is not a plain name inside the image folder: write e.g. a/b.jpg"
        )
    return image
