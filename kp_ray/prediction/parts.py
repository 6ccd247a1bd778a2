"""What members said, in parts and merged: `predictions.parquet`."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from kp_ray.config.schema import Config
from kp_ray.data.annotations import parse_name
from kp_ray.ensemble.people import choose_people
from kp_ray.errors import RunStateError
from kp_ray.keypoints import BoolArray, FloatArray, Skeleton
from kp_ray.prediction.images import ImageRef
from kp_ray.prediction.predictions import PersonChoices, prediction_schema, write_predictions
from kp_ray.storage import exists, file_sizes, join, read_parquet


def part_schema(num_keypoints: int) -> pa.Schema:
    """A part's rows: an image, member and person each; one row with score 0 where a member found nobody."""
    shared = [field for field in prediction_schema(num_keypoints) if field.name not in ("found", "num_people")]
    return pa.schema([*shared, ("version", pa.string())])


def is_found(scores: FloatArray, config: Config) -> BoolArray:
    """Who a member is sure of; a score of 0 is nobody's, whatever the threshold."""
    return np.asarray((scores > 0) & (scores >= config.predict.score_threshold))


def lower_threshold(config: Config) -> float:
    return min(config.predict.score_threshold, config.predict.fallback_threshold)


def read_parts(folder: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The tables of the finished parts, in the order of their names."""
    if not exists(folder):
        return
    names = [name for name in sorted(file_sizes(folder)) if name.endswith(".parquet") and not name.startswith(".")]
    with ThreadPoolExecutor() as pool:
        fix = "delete it and run predict again"
        yield from pool.map(lambda name: read_parquet(join(folder, name), fix, columns), names)


def merge_parts(
    config: Config, folder: str, asked: Sequence[ImageRef], names: Sequence[str], skeleton: Skeleton, target: str
) -> None:
    """Write the chosen person of every image and member, in the order of `asked` and the members."""
    section = config.predict
    table = _rows_asked(folder, asked)
    row_of = {(one.image, one.version): i for i, one in enumerate(asked)}
    keys = zip(table["image"].to_pylist(), table["version"].to_pylist(), strict=True)
    images = np.array([row_of[key] for key in keys])
    answers = images * len(names) + np.array([names.index(name) for name in table["member"].to_pylist()])
    scores = table["score"].to_numpy()
    chosen = dict(zip(answers.tolist(), range(len(answers)), strict=True))
    people = np.flatnonzero(scores > 0)
    boxes = np.asarray(table["bbox_xyxy"].combine_chunks().flatten()).reshape(-1, 4)
    scenes, cameras, frames = zip(*(parse_name(one.image) for one in asked), strict=True)
    best, several, changed = choose_people(
        images[people].tolist(), boxes[people], scores[people], scenes, cameras, frames,
        asked=answers[people].tolist(), rule=section.person, threshold=section.score_threshold,
    )  # fmt: skip
    chosen |= {int(answers[row]): row for row in people[best].tolist()}
    if len(chosen) != len(asked) * len(names):
        raise RunStateError(f"{folder}: parts are missing: run predict again")
    order = [chosen[answer] for answer in range(len(chosen))]
    counts = np.bincount(answers[people], minlength=len(chosen)).astype(np.int32)
    picked = table.take(order).drop_columns(["version"])
    picked = picked.append_column("found", pa.array(is_found(scores[order], config)))
    picked = picked.append_column("num_people", pa.array(counts))
    choices = PersonChoices(section.person, several, changed)
    write_predictions(target, picked, skeleton.names, choices)


def _rows_asked(folder: str, asked: Sequence[ImageRef]) -> pa.Table:
    """The parts' rows of these images, each image's of one part: of one that could use it, if there is any."""
    wanted = {(one.image, one.version) for one in asked}
    tables = list(read_parts(folder))
    keys = [list(zip(*(t[name].to_pylist() for name in ("image", "version")), strict=True)) for t in tables]
    part_of: dict[tuple[str, str], int] = {}
    for number, table in enumerate(tables):
        for key, reason in zip(keys[number], table["reason"].to_pylist(), strict=True):
            if key in wanted and (key not in part_of or not reason):
                part_of[key] = number
    return pa.concat_tables(
        [table.filter(pa.array([part_of.get(key) == i for key in keys[i]])) for i, table in enumerate(tables)]
    )
