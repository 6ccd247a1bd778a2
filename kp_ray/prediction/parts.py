"""Parts that `predict` writes: files with the members' detections in a few images each.

`merge_parts` merges the parts into `predictions.parquet`.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from kp_ray.config.schema import Config
from kp_ray.data.annotations import parse_name
from kp_ray.ensemble.people import choose_people
from kp_ray.errors import RunStateError
from kp_ray.keypoints import BoolArray, FloatArray, Skeleton
from kp_ray.prediction.images import ImageRef, digest_images
from kp_ray.prediction.predictions import PREDICT_AGAIN, PersonChoices, prediction_schema, write_predictions
from kp_ray.prediction.settings import prediction_fields
from kp_ray.storage import exists, file_sizes, join, read_parquet


def part_schema(num_keypoints: int) -> pa.Schema:
    """Return the schema of a part.

    A part has one row per detection, and one row with score 0 per member and image where the member found nobody.
    """
    shared_fields = [field for field in prediction_schema(num_keypoints) if field.name not in ("found", "num_people")]
    return pa.schema([*shared_fields, ("version", pa.string())])


def is_found(scores: FloatArray, config: Config) -> BoolArray:
    """Return True where a score reaches `predict.score_threshold`; a score of 0 means that nobody was found."""
    return np.asarray((scores > 0) & (scores >= config.predict.score_threshold))


def read_parts(folder: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Read the parts in the order of their file names.

    Raises:
        StorageError: a part is damaged.
    """
    if not exists(folder):
        return
    names = [name for name in sorted(file_sizes(folder)) if name.endswith(".parquet") and not name.startswith(".")]
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda name: read_parquet(join(folder, name), PREDICT_AGAIN, columns), names)


def find_missing_images(folder: str, refs: Sequence[ImageRef]) -> list[ImageRef]:
    """List the images to predict: first the images without a part, then the unusable images, which are tried again."""
    is_usable: dict[tuple[str, str], bool] = {}
    for table in read_parts(folder, ["image", "version", "reason"]):
        for image, version, reason in zip(*(column.to_pylist() for column in table.columns), strict=True):
            is_usable[image, version] = is_usable.get((image, version), False) or not reason
    missing_refs = [ref for ref in refs if not is_usable.get((ref.image, ref.version), False)]
    return sorted(missing_refs, key=lambda ref: (ref.image, ref.version) in is_usable)


def merge_parts(
    config: Config, folder: str, refs: Sequence[ImageRef], members: Sequence[str], skeleton: Skeleton, target: str
) -> None:
    """Choose one detection per image and member, and write the chosen ones in the order of `refs` and `members`.

    Args:
        config: `predict.person` and `predict.score_threshold` decide which detection is chosen.
        folder: folder of the parts.
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
    image_indices = np.array([index_by_key[key] for key in keys], dtype=int)
    # The rows of one image and member form a group. Groups are numbered in the order of the rows to write.
    member_indices = np.array([members.index(name) for name in table["member"].to_pylist()], dtype=int)
    groups = image_indices * len(members) + member_indices
    scores = table["score"].to_numpy()
    detection_rows = np.flatnonzero(scores > 0)
    boxes = np.asarray(table["bbox_xyxy"].combine_chunks().flatten()).reshape(-1, 4)
    scenes, cameras, frames = zip(*(parse_name(ref.image) for ref in refs), strict=True)
    chosen_people = choose_people(
        image_indices[detection_rows].tolist(),
        groups[detection_rows].tolist(),
        boxes[detection_rows],
        scores[detection_rows],
        scenes,
        cameras,
        frames,
        person_rule=config.predict.person,
        threshold=config.predict.score_threshold,
    )
    row_by_group = dict(zip(groups.tolist(), range(len(groups)), strict=True))
    row_by_group |= {int(groups[row]): row for row in detection_rows[chosen_people.people].tolist()}
    if len(row_by_group) != len(refs) * len(members):
        raise RunStateError(f"{folder}: the parts of some images are missing: run predict again")
    order = [row_by_group[group] for group in range(len(row_by_group))]
    num_people = np.bincount(groups[detection_rows], minlength=len(order)).astype(np.int32)
    table = table.take(order).drop_columns(["version"])
    table = table.append_column("found", pa.array(is_found(scores[order], config)))
    table = table.append_column("num_people", pa.array(num_people))
    choices = PersonChoices(config.predict.person, chosen_people.several, chosen_people.other_than_best_score)
    write_predictions(target, table, skeleton.names, choices, prediction_fields(config), digest_images(refs))


def _read_rows(folder: str, refs: Sequence[ImageRef]) -> pa.Table:
    """Read the rows of the images from all parts.

    If several parts hold an image, its rows come from one of them, preferably a part in which the image is usable.
    """
    keys = {(ref.image, ref.version) for ref in refs}
    tables = list(read_parts(folder))
    keys_by_part = [
        list(zip(table["image"].to_pylist(), table["version"].to_pylist(), strict=True)) for table in tables
    ]
    part_by_key: dict[tuple[str, str], int] = {}
    for part, table in enumerate(tables):
        for key, reason in zip(keys_by_part[part], table["reason"].to_pylist(), strict=True):
            if key in keys and (key not in part_by_key or not reason):
                part_by_key[key] = part
    filtered_tables = [
        table.filter(pa.array([part_by_key.get(key) == part for key in keys_by_part[part]]))
        for part, table in enumerate(tables)
    ]
    return pa.concat_tables(filtered_tables)
