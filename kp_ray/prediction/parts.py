"""Parts of a prediction: what the members found in a few images each, and how parts become `predictions.parquet`."""

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
from kp_ray.prediction.predictions import PREDICT_AGAIN, PersonChoices, prediction_schema, write_predictions
from kp_ray.storage import exists, file_sizes, join, read_parquet


def part_schema(num_keypoints: int) -> pa.Schema:
    """Return the columns of a part: one row per image, member and person, one with score 0 where nobody was found."""
    shared = [field for field in prediction_schema(num_keypoints) if field.name not in ("found", "num_people")]
    return pa.schema([*shared, ("version", pa.string())])


def is_found(scores: FloatArray, config: Config) -> BoolArray:
    """Return which persons' scores reach `predict.score_threshold`; 0 never does, because it stands for nobody."""
    return np.asarray((scores > 0) & (scores >= config.predict.score_threshold))


def lowest_threshold(config: Config) -> float:
    """Return the score below which a person is dropped."""
    return min(config.predict.score_threshold, config.predict.fallback_threshold)


def read_parts(folder: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Read the finished parts in the order of their file names.

    Raises:
        StorageError: a part is damaged.
    """
    if not exists(folder):
        return
    names = [name for name in sorted(file_sizes(folder)) if name.endswith(".parquet") and not name.startswith(".")]
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda name: read_parquet(join(folder, name), PREDICT_AGAIN, columns), names)


def find_missing(folder: str, refs: Sequence[ImageRef]) -> list[ImageRef]:
    """List the images that no part holds, then those that no part could use: they are tried again."""
    usable: dict[tuple[str, str], bool] = {}
    for table in read_parts(folder, ["image", "version", "reason"]):
        for image, version, reason in zip(*(column.to_pylist() for column in table.columns), strict=True):
            usable[image, version] = usable.get((image, version), False) or not reason
    missing = [ref for ref in refs if not usable.get((ref.image, ref.version), False)]
    return sorted(missing, key=lambda ref: (ref.image, ref.version) in usable)


def merge_parts(
    config: Config, folder: str, refs: Sequence[ImageRef], members: Sequence[str], skeleton: Skeleton, target: str
) -> None:
    """Choose one person per image and member, and write them in the order of `refs` and `members`.

    Args:
        config: `predict` in it says how to choose.
        folder: of the parts.
        refs: N images.
        members: M names.
        skeleton: K keypoints.
        target: path of `predictions.parquet`.

    Raises:
        RunStateError: an image is in no part.
    """
    table = _read_rows(folder, refs)
    index_by_key = {(ref.image, ref.version): i for i, ref in enumerate(refs)}
    keys = zip(table["image"].to_pylist(), table["version"].to_pylist(), strict=True)
    images = np.array([index_by_key[key] for key in keys], dtype=int)
    # The rows of one image and member are a group: groups are numbered in the order of the rows to write.
    groups = images * len(members) + np.array([members.index(name) for name in table["member"].to_pylist()], dtype=int)
    scores = table["score"].to_numpy()
    people = np.flatnonzero(scores > 0)
    boxes = np.asarray(table["bbox_xyxy"].combine_chunks().flatten()).reshape(-1, 4)
    scenes, cameras, frames = zip(*(parse_name(ref.image) for ref in refs), strict=True)
    chosen = choose_people(
        images[people].tolist(),
        groups[people].tolist(),
        boxes[people],
        scores[people],
        scenes,
        cameras,
        frames,
        rule=config.predict.person,
        threshold=config.predict.score_threshold,
    )
    row_by_group = dict(zip(groups.tolist(), range(len(groups)), strict=True))
    row_by_group |= {int(groups[row]): row for row in people[chosen.people].tolist()}
    if len(row_by_group) != len(refs) * len(members):
        raise RunStateError(f"{folder}: parts are missing: run predict again")
    order = [row_by_group[group] for group in range(len(row_by_group))]
    num_people = np.bincount(groups[people], minlength=len(order)).astype(np.int32)
    merged = table.take(order).drop_columns(["version"])
    merged = merged.append_column("found", pa.array(is_found(scores[order], config)))
    merged = merged.append_column("num_people", pa.array(num_people))
    choices = PersonChoices(config.predict.person, chosen.several, chosen.other_than_best_score)
    write_predictions(target, merged, skeleton.names, choices)


def _read_rows(folder: str, refs: Sequence[ImageRef]) -> pa.Table:
    """Read the rows of some images; where several parts hold an image, from one that could use it if there is any."""
    wanted = {(ref.image, ref.version) for ref in refs}
    tables = list(read_parts(folder))
    keys = [list(zip(*(t[name].to_pylist() for name in ("image", "version")), strict=True)) for t in tables]
    part_by_key: dict[tuple[str, str], int] = {}
    for part, table in enumerate(tables):
        for key, reason in zip(keys[part], table["reason"].to_pylist(), strict=True):
            if key in wanted and (key not in part_by_key or not reason):
                part_by_key[key] = part
    return pa.concat_tables(
        [table.filter(pa.array([part_by_key.get(key) == i for key in keys[i]])) for i, table in enumerate(tables)]
    )
