"""Read a member's training rows as batches of the model's inputs."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from detectron2.config import CfgNode

from kp_ray.keypoints import Skeleton
from kp_ray.models.inputs import to_dataset_dict
from kp_ray.store.read import RowReader

PREFETCH_BATCHES = 2
"""Number of batches that are read ahead in addition to one per thread."""
Item = TypeVar("Item")
Batch = TypeVar("Batch")
_INPUT_COLUMNS = ("image", "width", "height", "keypoints", "bbox_xyxy")


def iter_batches(
    shard: ray.data.DataIterator,
    cfg: CfgNode,
    skeleton: Skeleton,
    *,
    batch_size: int,
    seed: int,
    rank: int,
    start: int = 0,
    num_threads: int = 1,
    locate_part: Callable[[str], str] = str,
) -> Iterator[list[dict[str, Any]]]:
    """Iterate endlessly over batches of dataset dicts, read and decoded a few iterations ahead in threads.

    Args:
        shard: this worker's references to rows, as `usable_rows` lists them.
        cfg: Detectron2's config, with the training sizes, the flip and DATALOADER.ASPECT_RATIO_GROUPING.
        skeleton: the store's keypoints.
        batch_size: rows per batch.
        seed, rank: decide, together with the iteration, a batch's rows, sizes and flips, so that a resumed run gets the
            batches that the stopped run would have got.
        start: the first iteration.
        num_threads: number of threads, each of which reads a whole batch; it does not change the batches.
        locate_part: returns the path from which a part is read, see `RowReader`.

    Raises:
        StorageError: a part is missing or damaged.
    """
    reader = RowReader(_INPUT_COLUMNS, locate=locate_part)

    def load(references: list[dict[str, Any]], iteration: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng([seed, rank, iteration])
        rows = (reader.read(reference["path"], reference["row"]) for reference in references)
        return [to_dataset_dict(row, cfg, skeleton, rng) for row in rows]

    reference_batches = _iter_reference_batches(shard, batch_size, seed)
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        reference_batches = _group_by_aspect_ratio(reference_batches, batch_size)
    batches = itertools.islice(reference_batches, start, None)
    return read_ahead(load, zip(batches, itertools.count(start)), num_threads)


def read_ahead(
    load: Callable[[Item, int], Batch], items: Iterable[tuple[Item, int]], num_threads: int
) -> Iterator[Batch]:
    """Iterate over the results of `load` in the order of `items`, computed a few items ahead in threads.

    Args:
        load: called with an item and its number, in one of the threads.
        items: items and their numbers; this iterable is read in the caller's thread.
        num_threads: number of threads.
    """
    with ThreadPoolExecutor(num_threads) as threads:
        pending: deque[Future[Batch]] = deque()
        for item in items:
            pending.append(threads.submit(load, *item))
            if len(pending) > num_threads + PREFETCH_BATCHES:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _iter_reference_batches(shard: ray.data.DataIterator, batch_size: int, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Iterate endlessly over full batches of references; every epoch shuffles the whole shard with another seed.

    The shard is read only once, because Ray Train makes each worker that begins a read wait until all workers begin
    one. With a read per epoch they would wait forever: their epochs end at different iterations, because grouping by
    aspect ratio delays some batches, and no worker finishes an iteration without the others.
    """
    references = pa.concat_tables(shard.iter_batches(batch_size=None, batch_format="pyarrow"))
    for epoch in itertools.count():
        order = np.random.default_rng(seed + epoch).permutation(len(references))
        for offset in range(0, len(order) - batch_size + 1, batch_size):
            yield references.take(order[offset : offset + batch_size]).to_pylist()


def _group_by_aspect_ratio(batches: Iterator[list[dict[str, Any]]], batch_size: int) -> Iterator[list[dict[str, Any]]]:
    """Regroup references so that all or none of a batch's images are wider than high, as Detectron2's loader does.

    A batch is padded to its largest height and width, so mixed batches would cost memory and time.
    """
    groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for reference in itertools.chain.from_iterable(batches):
        group = groups[reference["is_wide"]]
        group.append(reference)
        if len(group) == batch_size:
            yield group.copy()
            group.clear()
