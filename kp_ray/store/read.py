"""Read rows of a store: a part, a table of selected rows, single rows, or all rows in order."""

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from kp_ray.errors import StoreError
from kp_ray.storage import filesystem, join, open_input, parquet_errors, read_parquet
from kp_ray.store.manifest import Manifest, StoredRow, read_manifest, row_schema
from kp_ray.store.parts import ROWS_PER_GROUP

REBUILD_PART_FIX = "run verify, then augment"
"""The fix in messages about a damaged or missing part."""


RowReference = tuple[str, int]
"""The path of a part, as `select_parts` returns it, and the number of a row in it, from 0."""


def read_part(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one part of a store.

    Args:
        path: local path or URL of the part, as `select_parts` returns it.
        columns: names of the columns to read; None reads all.

    Raises:
        StorageError: the part is missing or damaged.
    """
    return read_parquet(path, REBUILD_PART_FIX, columns)


def select_parts(
    store: str, *, split: str | None = None, recipes: Sequence[str] | None = None
) -> tuple[Manifest, list[str]]:
    """Select parts of a finished store.

    Args:
        store: local path or URL of the store.
        split: "train" or "val"; None selects both.
        recipes: names of recipes; None selects all.

    Returns:
        The manifest, and the full paths of the selected parts in the manifest's order.

    Raises:
        StoreError: there is no finished store, it lacks a recipe of `recipes`, or a scene is in both splits.
    """
    manifest = read_manifest(store)
    leaked_units = sorted(set(manifest.units.get("train", ())) & set(manifest.units.get("val", ())))
    if leaked_units:
        raise StoreError(f"{store}: {leaked_units[0]} is in both splits, train and val: augment into a new run_dir")
    stored_recipes = {part.recipe for part in manifest.parts}  # `Original` of validation may not be in manifest.recipes
    for name in recipes or ():
        if name not in stored_recipes:
            raise StoreError(f"{store}: holds no recipe {name!r}: choose from {', '.join(sorted(stored_recipes))}")
    selected = [
        part for part in manifest.parts if split in (None, part.split) and (recipes is None or part.recipe in recipes)
    ]
    return manifest, [join(store, part.path) for part in selected]


def read_table(
    store: str,
    *,
    split: str | None = None,
    recipes: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read rows of a store as one Arrow table.

    Without the `image` column (99 % of the bytes) even a large store fits in memory.

    Args:
        store: local path or URL of the store.
        split: "train" or "val"; None reads both.
        recipes: names of recipes; None reads all.
        columns: names of columns, see `StoredRow`; None reads all.

    Raises:
        StoreError: see `select_parts`.
        StorageError: a part is missing or damaged.
    """
    manifest, paths = select_parts(store, split=split, recipes=recipes)
    if paths:
        return pa.concat_tables([read_part(path, columns) for path in paths])
    empty_table = row_schema(len(manifest.skeleton)).empty_table()
    return empty_table if columns is None else empty_table.select(list(columns))


def list_rows(store: str, *, split: str) -> list[RowReference]:
    """List the rows of a split in the store's order, without reading a part.

    Args:
        store: local path or URL of the store.
        split: "train" or "val".

    Raises:
        StoreError: see `select_parts`.
    """
    manifest, _ = select_parts(store, split=split)
    parts = [part for part in manifest.parts if part.split == split]
    return [(join(store, part.path), row) for part in parts for row in range(part.num_rows)]


class RowReader:
    """Reads single rows by part and row number, in any number of threads.

    Args:
        columns: names of the columns to read.
        max_open_parts: number of recently used parts that stay open.
        locate: returns the path from which a part is read, e.g. that of its copy on this node's disk.
    """

    def __init__(self, columns: Sequence[str], max_open_parts: int = 256, locate: Callable[[str], str] = str) -> None:
        self.columns, self.locate = list(columns), locate
        self.open = lru_cache(maxsize=max_open_parts)(self._open)

    def _open(self, path: str) -> tuple[pq.ParquetFile, threading.Lock]:
        fs, inner_path = filesystem(self.locate(path))
        return pq.ParquetFile(fs.open_input_file(inner_path), page_checksum_verification=True), threading.Lock()

    def read(self, path: str, row: int) -> StoredRow:
        """Read row number `row`, from 0, of the part at `path`.

        Raises:
            StorageError: the part is missing or damaged.
        """
        with parquet_errors(path, REBUILD_PART_FIX):
            part, lock = self.open(path)
            with lock:  # a ParquetFile reads in one thread at a time
                group = part.read_row_group(row // ROWS_PER_GROUP, self.columns)
            return cast(StoredRow, group.slice(row % ROWS_PER_GROUP, 1).to_pylist()[0])


def iter_rows(store: str, *, split: str | None, recipes: Sequence[str] | None = None) -> Iterator[StoredRow]:
    """Iterate over rows with all columns, holding one row group in memory.

    Args:
        store: local path or URL of the store.
        split: "train" or "val"; None reads both.
        recipes: names of recipes; None reads all.

    Raises:
        StoreError: see `select_parts`.
        StorageError: a part is missing or damaged.
    """
    _, paths = select_parts(store, split=split, recipes=recipes)
    for path in paths:
        with parquet_errors(path, REBUILD_PART_FIX), open_input(path) as stream:
            for batch in pq.ParquetFile(stream, page_checksum_verification=True).iter_batches(ROWS_PER_GROUP):
                yield from batch.to_pylist()
