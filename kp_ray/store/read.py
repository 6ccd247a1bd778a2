"""Read rows of a store: a part, a table of selected rows, single rows, or all rows in order.

The argument `fold` of a function is the fold that a member holds out: this fold's rows of the recipe Original are
validation rows, its other rows are not used, and the rows of the other folds are training rows. None holds out no fold.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kp_ray.errors import StoreError
from kp_ray.storage import filesystem, join, open_input, parquet_errors, read_parquet
from kp_ray.store.folds import (
    FOLD_COLUMNS,
    VALIDATION_RECIPE_NAME,
    find_row_folds,
    is_validation_row,
    refuse_fold_leaks,
    select_rows,
)
from kp_ray.store.manifest import FoldTable, Manifest, StoredRow, read_manifest, row_schema, store_digest
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
    store: str, *, split: str | None = None, recipes: Sequence[str] | None = None, fold: int | None = None
) -> tuple[Manifest, list[str]]:
    """Select the parts of a finished store that can hold rows of a split.

    Args:
        store: local path or URL of the store.
        split: "train" or "val"; None selects both.
        recipes: names of recipes; None selects all.
        fold: number of the fold to hold out, in a store with folds. Parts hold rows of several folds:
            `read_part_rows` selects the rows.

    Returns:
        The manifest, and the full paths of the selected parts in the manifest's order.

    Raises:
        StoreError: there is no finished store; the split, the fold or a recipe of `recipes` does not exist; or a unit
            (scene, clip or frame, see `split.by`) is in both splits or in two folds.
    """
    if split not in (None, "train", "val"):
        raise StoreError(f"{store}: has no such split (got {split!r}): choose train or val")
    manifest = read_manifest(store)
    leaked_units = sorted(set(manifest.units.get("train", ())) & set(manifest.units.get("val", ())))
    if leaked_units:
        raise StoreError(f"{store}: {leaked_units[0]} is in both splits, train and val: augment into a new run_dir")
    if manifest.folds:
        refuse_fold_leaks(store, manifest.folds)
    num_folds = len(manifest.folds) if manifest.folds else 0
    if fold is not None and not 0 <= fold < num_folds:
        fix = f"name one from 0 to {num_folds - 1}" if num_folds else "name no fold, or set split.folds and run augment"
        raise StoreError(f"{store}: has no fold {fold} (it has {num_folds} folds): {fix}")
    # Not `manifest.recipes`: validation sources are stored as `Original`, which the training recipes may lack.
    stored_recipes = {part.recipe for part in manifest.parts}
    for name in recipes or ():
        if name not in stored_recipes:
            raise StoreError(f"{store}: holds no recipe {name!r}: choose from {', '.join(sorted(stored_recipes))}")
    selected_parts = [part for part in manifest.parts if recipes is None or part.recipe in recipes]
    if fold is None:
        selected_parts = [part for part in selected_parts if split in (None, part.split)]
    elif split == "val":
        selected_parts = [part for part in selected_parts if part.recipe == VALIDATION_RECIPE_NAME]
    return manifest, [join(store, part.path) for part in selected_parts]


def read_part_rows(
    path: str,
    columns: Sequence[str] | None = None,
    *,
    folds: FoldTable | None,
    split: str | None = None,
    fold: int | None = None,
) -> tuple[pa.Table, Sequence[int]]:
    """Read the rows of a part that belong to a split. A store with folds has one more column, `fold`.

    Args:
        path: local path or URL of the part, from `select_parts` with the same split and fold.
        columns: names of columns, see `StoredRow`; None reads all.
        folds: `Manifest.folds`; None for a store without folds, whose parts hold rows of one split only.
        split: "train" or "val"; None reads both.
        fold: number of the fold to hold out; the column `split` then says in which split a row is.

    Returns:
        The rows, and their numbers in the part, from 0.

    Raises:
        StoreError: the manifest lacks the fold of a row.
        StorageError: the part is missing or damaged.
    """
    if folds is None:
        table = read_part(path, columns)
        return table, range(len(table))
    stored_columns = None if columns is None else [name for name in {*columns, *FOLD_COLUMNS} if name != "fold"]
    table, row_numbers = select_rows(read_part(path, stored_columns), folds, split=split, fold=fold)
    return (table if columns is None else table.select(list(columns))), row_numbers.tolist()


def read_table(
    store: str,
    *,
    split: str | None = None,
    recipes: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    fold: int | None = None,
) -> pa.Table:
    """Read rows of a store as one Arrow table.

    Without the `image` column (99 % of the bytes) even a large store fits in memory.

    Args:
        store: local path or URL of the store.
        split: "train" or "val"; None reads both.
        recipes: names of recipes; None reads all.
        columns: names of columns, see `StoredRow`; None reads all.
        fold: number of the fold to hold out, in a store with folds.

    Raises:
        StoreError: see `select_parts`; or a column does not exist.
        StorageError: a part is missing or damaged.
    """
    manifest, paths = select_parts(store, split=split, recipes=recipes, fold=fold)
    names = [*row_schema(len(manifest.skeleton)).names, *(["fold"] if manifest.folds else [])]
    unknown_columns = set(columns or ()) - set(names)
    if unknown_columns:
        raise StoreError(f"{store}: has no column {min(unknown_columns)!r}: choose from {', '.join(names)}")
    if paths:
        tables = (read_part_rows(path, columns, folds=manifest.folds, split=split, fold=fold)[0] for path in paths)
        return pa.concat_tables(tables)
    empty_table = row_schema(len(manifest.skeleton)).empty_table()
    if manifest.folds:
        empty_table = empty_table.append_column("fold", pa.array([], pa.int32()))
    return empty_table if columns is None else empty_table.select(list(columns))


def list_rows(store: str, *, split: str, fold: int | None = None) -> list[RowReference]:
    """List the rows of a split in the store's order. Parts are read only if the store has folds.

    Args:
        store: local path or URL of the store.
        split: "train" or "val".
        fold: number of the fold to hold out, in a store with folds.

    Raises:
        StoreError: see `select_parts`.
        StorageError: a part is missing or damaged.
    """
    manifest, paths = select_parts(store, split=split, fold=fold)
    if manifest.folds is None:
        selected_paths = set(paths)
        parts = [(join(store, part.path), part.num_rows) for part in manifest.parts]
        return [(path, row) for path, num_rows in parts if path in selected_paths for row in range(num_rows)]
    references: list[RowReference] = []
    for path in paths:
        _, row_numbers = read_part_rows(path, FOLD_COLUMNS, folds=manifest.folds, split=split, fold=fold)
        references += [(path, row) for row in row_numbers]
    return references


def list_rows_by_fold(store: str) -> tuple[tuple[tuple[str, RowReference], ...], ...]:
    """List the validation rows of each fold in the store's order, each row by its source and its reference.

    Each part is read once; later calls in this process return the same list until the store changes.

    Args:
        store: local path or URL of a store with folds.

    Raises:
        StoreError: see `select_parts`; the store may have no folds.
        StorageError: a part is missing or damaged.
    """
    manifest, paths = select_parts(store, split="val", fold=0)
    return _list_rows_by_fold(tuple(paths), cast(FoldTable, manifest.folds), store_digest(store))


@lru_cache(maxsize=2)
def _list_rows_by_fold(
    paths: tuple[str, ...], folds: FoldTable, digest: str
) -> tuple[tuple[tuple[str, RowReference], ...], ...]:
    """Read the parts; `digest` only makes the cache forget the rows when the store changes."""
    rows: list[list[tuple[str, RowReference]]] = [[] for _ in range(len(folds))]
    with ThreadPoolExecutor() as pool:  # remote parts take about 0.1 s each to open
        for path, table in zip(paths, pool.map(lambda path: read_part(path, FOLD_COLUMNS), paths), strict=True):
            sources, row_folds = table["source"].to_pylist(), find_row_folds(table, folds)
            for row in np.flatnonzero(is_validation_row(table)).tolist():
                rows[row_folds[row]].append((sources[row], (path, row)))
    return tuple(map(tuple, rows))


class RowReader:
    """Reads single rows by part and row number, in any number of threads.

    Args:
        columns: names of the columns to read.
        max_open_parts: number of recently used parts that stay open.
        locate: converts a part's path to the path to read it from, e.g. the path of a copy on this node's disk.
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
            file, lock = self.open(path)
            with lock:  # a ParquetFile reads in one thread at a time
                group = file.read_row_group(row // ROWS_PER_GROUP, self.columns)
            return cast(StoredRow, group.slice(row % ROWS_PER_GROUP, 1).to_pylist()[0])


def iter_rows(
    store: str, *, split: str | None, recipes: Sequence[str] | None = None, fold: int | None = None
) -> Iterator[StoredRow]:
    """Iterate over rows with all columns, holding one row group in memory.

    Args:
        store: local path or URL of the store.
        split: "train" or "val"; None reads both.
        recipes: names of recipes; None reads all.
        fold: number of the fold to hold out, in a store with folds.

    Raises:
        StoreError: see `select_parts`.
        StorageError: a part is missing or damaged.
    """
    manifest, paths = select_parts(store, split=split, recipes=recipes, fold=fold)
    for path in paths:
        with parquet_errors(path, REBUILD_PART_FIX), open_input(path) as stream:
            for batch in pq.ParquetFile(stream, page_checksum_verification=True).iter_batches(ROWS_PER_GROUP):
                table = pa.Table.from_batches([batch])
                if manifest.folds is not None:
                    table, _ = select_rows(table, manifest.folds, split=split, fold=fold)
                yield from table.to_pylist()
