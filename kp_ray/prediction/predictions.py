"""The predictions of a run, `predictions.parquet`: its schema, its writer and its only reader."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from kp_ray.data.annotations import parse_name
from kp_ray.errors import StorageError
from kp_ray.keypoints import FloatArray
from kp_ray.storage import exists, read_parquet, write_parquet

NOTE_KEY = b"kp_ray"
"""Key of the schema's metadata under which the keypoints' names and the person choices stand as JSON."""
PREDICT_AGAIN = "delete it and run predict again"


@dataclass(frozen=True)
class PersonChoices:
    """Counts of the images in which members found several people, and the rule that chose one.

    Attributes:
        rule: `predict.person`.
        several: number of (image, member) pairs with several people to choose from.
        other_than_best_score: number of those in which the rule chose another person than the best-scoring.
    """

    rule: str
    several: int
    other_than_best_score: int


@dataclass(frozen=True, eq=False)
class Predictions:
    """The person that each of M members chose in each of N images, with K keypoints.

    Attributes:
        members: M names.
        images: N names.
        keypoint_names: K names.
        keypoints: (M, N, K, 3) x, y, score in pixel indices; NaN where a member found nobody.
        scores: (M, N) of the persons, 0 where a member found nobody.
        reasons: N texts: why the image could not be used, "" if it could.
        sizes: N pairs (width, height) in pixels; (0, 0) for an image that could not be used.
        person_choices: how the persons were chosen.
    """

    members: tuple[str, ...]
    images: tuple[str, ...]
    keypoint_names: tuple[str, ...]
    keypoints: FloatArray
    scores: FloatArray
    reasons: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    person_choices: PersonChoices

    @cached_property
    def places(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]:
        """N scenes, N cameras and N frame numbers, parsed from the images' names."""
        scenes, cameras, frames = zip(*map(parse_name, self.images), strict=True)
        return scenes, cameras, frames


def prediction_schema(num_keypoints: int) -> pa.Schema:
    """Return the columns of `predictions.parquet`: one row per image and member.

    `score`, `bbox_xyxy` and `keypoints` (x, y, score) are those of the person chosen of `num_people`, 0 and NaN if
    there is none above the fallback threshold; `found` tells whether the score reaches `score_threshold`; `reason` why
    an image could not be used.
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


def write_predictions(path: str, table: pa.Table, keypoint_names: Sequence[str], choices: PersonChoices) -> None:
    """Write `predictions.parquet`, whole or not at all.

    Args:
        path: local or remote.
        table: the columns of `prediction_schema`; the rows image by image, in each the members in their order.
        keypoint_names: K names.
        choices: how the persons were chosen.
    """
    schema = prediction_schema(len(keypoint_names))
    note = json.dumps({"people": asdict(choices), "keypoints": list(keypoint_names)})
    write_parquet(path, table.select(schema.names).cast(schema).replace_schema_metadata({NOTE_KEY: note}))


def read_predictions(path: str) -> Predictions:
    """Read `predictions.parquet`.

    Raises:
        StorageError: it is not there, is damaged, or was written by another program.
    """
    if not exists(path):
        raise StorageError(f"{path}: there are no predictions: run predict first")
    table = read_parquet(path, PREDICT_AGAIN).combine_chunks()
    try:
        note = json.loads((table.schema.metadata or {})[NOTE_KEY])
        names, choices = tuple(note["keypoints"]), PersonChoices(**note["people"])
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path}: another program wrote it: {PREDICT_AGAIN}") from error
    if not table.schema.equals(prediction_schema(len(names))):
        raise StorageError(f"{path}: its columns are not those of predictions: {PREDICT_AGAIN}")
    rows = list(zip(table["image"].to_pylist(), table["member"].to_pylist(), strict=True))
    images, members = (tuple(dict.fromkeys(column)) for column in zip(*rows, strict=True)) if rows else ((), ())
    if not rows or rows != [(image, member) for image in images for member in members]:
        raise StorageError(f"{path}: its rows are not one per image and member: {PREDICT_AGAIN}")
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
    )
