"""Read and write `predictions.parquet`: the chosen detection of each member in each image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from kp_ray.data.annotations import parse_name
from kp_ray.errors import StorageError
from kp_ray.keypoints import FloatArray
from kp_ray.storage import exists, read_parquet, write_parquet

METADATA_KEY = b"kp_ray"
"""Key in the file's metadata. Its value is a JSON text: the keypoints' names, the `PersonChoices`, the settings
and the digest of the images."""
PREDICT_AGAIN = "delete it and run predict again"


@dataclass(frozen=True)
class PersonChoices:
    """The rule that chose one of several detections, and counts of the choices.

    Attributes:
        rule: value of `predict.person`.
        several: number of (image, member) pairs with several candidate detections.
        other_than_best_score: number of (image, member) pairs in which the rule did not choose the best score.
    """

    rule: str
    several: int
    other_than_best_score: int


@dataclass(frozen=True, eq=False)
class Predictions:
    """The chosen detection of each of M members in each of N images, with K keypoints.

    Attributes:
        members: M names.
        images: N names.
        keypoint_names: K names.
        keypoints: (M, N, K, 3) x, y, score in pixel indices; NaN where a member found nobody.
        scores: (M, N) scores of the detections; 0 where a member found nobody.
        reasons: N texts that say why an image could not be used; "" for a usable image.
        sizes: N pairs (width, height) in pixels; (0, 0) for an unusable image.
        person_choices: rule and counts of the choices among several detections.
        settings: settings that decided the rows, see `settings.prediction_fields`; empty if they were not recorded.
        images_digest: digest of the images' files, see `images.digest_images`; "" if it was not recorded.
    """

    members: tuple[str, ...]
    images: tuple[str, ...]
    keypoint_names: tuple[str, ...]
    keypoints: FloatArray
    scores: FloatArray
    reasons: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    person_choices: PersonChoices
    settings: Mapping[str, Any]
    images_digest: str = ""

    @cached_property
    def scenes_cameras_frames(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
        """Scenes, cameras and frame numbers (-1 for none) of the N images, parsed from their names."""
        scenes, cameras, frames = zip(*map(parse_name, self.images), strict=True)
        return scenes, cameras, frames


def prediction_schema(num_keypoints: int) -> pa.Schema:
    """Return the schema of `predictions.parquet`, which has one row per image and member.

    The columns:

    - `num_people`: number of detections that reach `settings.lowest_threshold`; one of them is chosen for the row.
    - `score`, `bbox_xyxy`, `keypoints` (x, y, score): the chosen detection in pixel indices. If nobody was found, the
      score is 0 and the other numbers are NaN.
    - `found`: whether `score` reaches `predict.score_threshold`.
    - `width`, `height`: size of the image in pixels.
    - `reason`: why the image could not be used; "" for a usable image.
    """
    return pa.schema(
        [
            ("image", pa.string()),
            ("member", pa.string()),
            ("found", pa.bool_()),
            ("score", pa.float64()),
            ("num_people", pa.int32()),
            ("bbox_xyxy", pa.list_(pa.float64(), 4)),
            ("keypoints", pa.list_(pa.float64(), 3 * num_keypoints)),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("reason", pa.string()),
        ]
    )


def write_predictions(
    path: str,
    table: pa.Table,
    keypoint_names: Sequence[str],
    choices: PersonChoices,
    settings: Mapping[str, Any],
    images_digest: str = "",
) -> None:
    """Write `predictions.parquet`, whole or not at all.

    Args:
        path: local or remote.
        table: columns as in `prediction_schema`; rows ordered by image, and within an image by member.
        keypoint_names: K names.
        choices: rule and counts of the choices among several detections.
        settings: settings that decided the rows, as JSON values.
        images_digest: digest of the images' files; "" if they are unknown.
    """
    schema = prediction_schema(len(keypoint_names))
    metadata = {
        "people": asdict(choices),
        "keypoints": list(keypoint_names),
        "settings": dict(settings),
        "images": images_digest,
    }
    table = table.select(schema.names).cast(schema)
    write_parquet(path, table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata)}))


def read_predictions(path: str) -> Predictions:
    """Read `predictions.parquet`.

    Raises:
        StorageError: the file does not exist, is damaged, or was written by another program.
    """
    if not exists(path):
        raise StorageError(f"{path}: there is no such file: run predict first")
    table = read_parquet(path, PREDICT_AGAIN).combine_chunks()
    if METADATA_KEY not in (table.schema.metadata or {}):
        raise StorageError(f"{path}: is not a predictions.parquet of kp_ray: name another file, or run predict")
    try:
        metadata = json.loads(table.schema.metadata[METADATA_KEY])
        names, choices = tuple(metadata["keypoints"]), PersonChoices(**metadata["people"])
        # Versions before 0.2.0 did not record these.
        settings, images_digest = dict(metadata.get("settings", {})), str(metadata.get("images", ""))
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path}: damaged: {PREDICT_AGAIN}") from error
    if not table.schema.equals(prediction_schema(len(names))):
        raise StorageError(f"{path}: does not have the columns of predictions: {PREDICT_AGAIN}")
    images, members = (tuple(dict.fromkeys(table[name].to_pylist())) for name in ("image", "member"))
    rows = list(zip(table["image"].to_pylist(), table["member"].to_pylist(), strict=True))
    if not rows or rows != [(image, member) for image in images for member in members]:
        raise StorageError(f"{path}: does not have one row per image and member: {PREDICT_AGAIN}")
    shape = (len(images), len(members))
    points = np.asarray(table["keypoints"].combine_chunks().flatten()).reshape(*shape, len(names), 3)
    widths, heights, reasons = (table[name].to_pylist()[:: len(members)] for name in ("width", "height", "reason"))
    return Predictions(
        members=members,
        images=images,
        keypoint_names=names,
        keypoints=points.swapaxes(0, 1),
        scores=table["score"].to_numpy().reshape(shape).T,
        reasons=tuple(reasons),
        sizes=tuple(zip(widths, heights, strict=True)),
        person_choices=choices,
        settings=settings,
        images_digest=images_digest,
    )
