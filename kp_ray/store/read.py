"""Read rows of a store."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kp_ray.errors import StoreError
from kp_ray.storage import filesystem, join, parquet_errors, read_parquet
from kp_ray.store.manifest import Manifest, read_manifest, row_schema
from kp_ray.store.parts import ROWS_PER_GROUP

Row = dict[str, Any]
"""A row of a part; its keys and types are those of `row_schema`."""
REBUILD = "run verify, then augment"
"""What to do about a damaged or missing part."""


def read_part(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one part of a store; `columns` None reads all.

    Raises:
        StorageError: it is not there, or damaged.
    """
    return read_parquet(path, REBUILD, columns)


def select_parts(
    store: str, *, split: str | None = None, recipes: Sequence[str] | None = None
) -> tuple[Manifest, list[str]]:
    """The manifest and the full paths of the parts of a split and some recipes (None: all).

    Raises:
        StoreError: a recipe is not in the store, or a scene is on both sides of the split.
    """
    manifest = read_manifest(store)
    both = sorted(set(manifest.units.get("train", ())) & set(manifest.units.get("val", ())))
    if both:
        raise StoreError(f"{store}: {both[0]} is both trained on and validated on; augment into a new run_dir")
    stored = {part.recipe for part in manifest.parts}  # validation has Original even where no one asked for it
    for name in recipes or ():
        if name not in stored:
            raise StoreError(f"{store}: holds no recipe {name!r}; it has {', '.join(sorted(stored))}")
    wanted = [
        part for part in manifest.parts if split in (None, part.split) and (recipes is None or part.recipe in recipes)
    ]
    return manifest, [join(store, part.path) for part in wanted]


def read_table(
    store: str,
    *,
    split: str | None = None,
    recipes: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Rows of a store as one Arrow table; without the `image` column even a large store fits in memory.

    Raises:
        StoreError: no finished store, a recipe it does not hold, or a damaged part.
    """
    manifest, paths = select_parts(store, split=split, recipes=recipes)
    if not paths:
        schema = row_schema(len(manifest.skeleton))
        return (schema if columns is None else pa.schema([schema.field(c) for c in columns])).empty_table()
    return pa.concat_tables([read_part(path, columns) for path in paths])


class RowReader:
    """Reads single rows of parts, keeping the parts last used open; not for several threads at once."""

    def __init__(self, columns: Sequence[str], keep_open: int = 256) -> None:
        self.columns = list(columns)
        self.open = lru_cache(maxsize=keep_open)(self._open)

    @staticmethod
    def _open(path: str) -> pq.ParquetFile:
        fs, inner = filesystem(path)
        return pq.ParquetFile(fs.open_input_file(inner), page_checksum_verification=True)

    def read(self, path: str, row: int) -> Row:
        """Row `row` of the part at `path`.

        Raises:
            StoreError: the part is not there, or damaged.
        """
        with parquet_errors(path, REBUILD):
            group = self.open(path).read_row_group(row // ROWS_PER_GROUP, self.columns)
            return dict(group.slice(row % ROWS_PER_GROUP, 1).to_pylist()[0])


def iter_rows(
    store: str, *, split: str | None, shard: tuple[int, int] = (0, 1), recipes: Sequence[str] | None = None
) -> Iterator[Row]:
    """Rows of a split one by one, holding one row group at a time.

    Args:
        shard: (i, n) gives every n-th row from the i-th.
        recipes: None gives all.

    Raises:
        StoreError: no finished store, a recipe it does not hold, or a damaged part.
    """
    _, paths = select_parts(store, split=split, recipes=recipes)
    index, of = shard
    number = 0
    for path in paths:
        fs, inner = filesystem(path)
        with parquet_errors(path, REBUILD), fs.open_input_file(inner) as stream:
            for batch in pq.ParquetFile(stream, page_checksum_verification=True).iter_batches(ROWS_PER_GROUP):
                for row in batch.to_pylist():
                    if number % of == index:
                        yield row
                    number += 1
