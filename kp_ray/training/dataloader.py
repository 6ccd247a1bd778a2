"""Which rows a member trains on, and batches of them as the model's inputs."""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from detectron2.config import CfgNode

from kp_ray.config.schema import Config, MemberConfig
from kp_ray.keypoints import Skeleton
from kp_ray.models.inputs import to_dataset_dict
from kp_ray.store.read import RowReader, read_part, select_parts

WHOLE_SHARD = 10_000_000
"""Rows of the shuffle buffer: it holds places of rows, not pictures, so the whole shard fits."""
BATCHES_AHEAD = 3
_COLUMNS = ("image", "width", "height", "keypoints", "bbox_xyxy")


def usable_rows(config: Config, member: MemberConfig) -> pa.Table:
    """`path` and `row` of the store's rows that a member trains on: enough visible keypoints, a box with an area."""
    _, paths = select_parts(config.path("store"), split="train", recipes=_recipes(config, member))
    least = max(1, config.augment.min_visible)

    def look(path: str) -> pa.Table:
        table = read_part(path, ["num_visible", "bbox_xyxy"])
        box = np.array(table["bbox_xyxy"].to_pylist()).reshape(-1, 4)
        has_area = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
        rows = np.flatnonzero((table["num_visible"].to_numpy() >= least) & has_area)
        return pa.table({"path": pa.array([path] * len(rows), pa.string()), "row": pa.array(rows, pa.int64())})

    with ThreadPoolExecutor() as pool:
        return pa.concat_tables(
            [pa.table({"path": pa.array([], pa.string()), "row": pa.array([], pa.int64())}), *pool.map(look, paths)]
        )


def _recipes(config: Config, member: MemberConfig) -> tuple[str, ...] | None:
    return member.recipes or config.train.recipes


def iter_batches(
    shard: ray.data.DataIterator,
    cfg: CfgNode,
    skeleton: Skeleton,
    *,
    size: int,
    seed: int,
    rank: int,
    start: int = 0,
) -> Iterator[list[dict[str, Any]]]:
    """Endless batches of a model's inputs, read from the store and mapped a few iterations ahead in a thread.

    Args:
        shard: a worker's share of the places (`path`, `row`) of the training rows.
        size: rows a batch.
        seed, rank: with the iteration they decide a batch's rows, sizes and flips, so a resumed run goes on with those
            that come next.
        start: the first iteration.
    """
    reader = RowReader(_COLUMNS)

    def read(places: list[dict[str, Any]], iteration: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng([seed, rank, iteration])
        return [to_dataset_dict(reader.read(**place), cfg, skeleton, rng) for place in places]

    numbered = zip(itertools.islice(_batches(shard, size, seed), start, None), itertools.count(start))
    with ThreadPoolExecutor(1) as thread:
        ahead = deque(thread.submit(read, *batch) for batch in itertools.islice(numbered, BATCHES_AHEAD))
        for batch in numbered:
            yield ahead.popleft().result()
            ahead.append(thread.submit(read, *batch))


def _batches(shard: ray.data.DataIterator, size: int, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Endless batches of full size, each epoch in another order of the whole shard."""
    for epoch in itertools.count():
        batches = shard.iter_batches(
            batch_size=size,
            batch_format="pyarrow",
            drop_last=True,
            local_shuffle_buffer_size=WHOLE_SHARD,
            local_shuffle_seed=seed + epoch,
        )
        for batch in batches:
            yield batch.to_pylist()
