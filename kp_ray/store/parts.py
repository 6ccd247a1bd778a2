"""Make the variants of sources, write them to parts, and describe existing parts."""

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kp_ray.augmentation.recipes import Recipe
from kp_ray.augmentation.variants import Source, Variant, VariantSettings, augment_source
from kp_ray.errors import KpRayError, StorageError, one_line
from kp_ray.storage import (
    PIECE_BYTES,
    exists,
    filesystem,
    hash_file,
    is_local,
    join,
    open_input,
    read_bytes,
    write_bytes,
)
from kp_ray.store.manifest import (
    METADATA_KEY,
    UNAVAILABLE,
    UNREADABLE,
    PartRecord,
    Quarantined,
    recipe_stage,
    row_schema,
)
from kp_ray.store.plan import Part, Plan
from kp_ray.temp_folders import shared_temp_folder

ROWS_PER_GROUP = 1
"""Rows per Parquet row group: one, because training reads single rows at random, and a writer holds only one row."""

T = TypeVar("T")


def sample_evenly(items: Sequence[T], max_items: int) -> list[T]:
    """Return at most `max_items` of the items, evenly spaced from the first to the last."""
    if not items:
        return []
    return [items[index] for index in np.unique(np.linspace(0, len(items) - 1, max_items, dtype=int))]


def make_variants(
    plan: Plan, source: Source, recipes: Sequence[tuple[Recipe, int]]
) -> tuple[list[Variant], list[Quarantined]]:
    """Read the image of one source and make all its variants.

    Args:
        plan: the store's plan, which gives the folder of images, the seed and the settings.
        source: a source of the plan.
        recipes: recipes with their numbers of copies.

    Returns:
        The variants, recipe by recipe, and the refusals: one record per recipe that cannot use the source, or a single
        record if its image cannot be read.
    """

    def quarantine(stage: str, reason: str) -> Quarantined:
        return Quarantined(source=source.name, stage=stage, reason=reason)

    try:
        content = read_bytes(join(plan.images, source.name))
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            return [], [quarantine(UNAVAILABLE, f"cannot be read: {one_line(error.__cause__)}")]
        reason = "there is no such file"
        if source.name in plan.sources_without_image:
            return [], [quarantine(UNREADABLE, reason)]
        # The machine that planned the store saw the file, so only this node lacks it.
        hint = "on the worker's node: the images must be where all nodes see them"
        return [], [quarantine(UNAVAILABLE, f"{reason} {hint}")]
    settings = VariantSettings(
        seed=plan.seed,
        jpeg_quality=plan.augment.jpeg_quality,
        scale_with_frame=plan.augment.oversize == "scale",
        box_margin_px=plan.augment.box_margin_px,
    )
    try:
        variants, refusals = augment_source(content, source, recipes, settings)
    except KpRayError as error:
        return [], [quarantine(UNREADABLE, str(error))]
    return variants, [quarantine(recipe_stage(name), reason) for name, reason in refusals.items()]


class _HashingStream:
    """A writable stream that counts and hashes the bytes written to it."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.sha256, self.num_bytes = stream, hashlib.sha256(), 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.num_bytes += len(data)
        self.stream.write(data)
        return len(data)

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        self.closed = True
        self.stream.close()


class PartWriter:
    """Writes rows to a part, which appears under its final name only when it is complete.

    Use it as a context manager: `add` every variant, then `finish`. Leaving the context without `finish` discards the
    part.

    Raises:
        StorageError: the disk is full, or the storage does not answer or denies access.
    """

    def __init__(self, store: str, part: Part, schema: pa.Schema, temp_dir: Path | None = None) -> None:
        """Prepare a part.

        Args:
            store: local path or URL of the store.
            part: the part.
            schema: the columns of its rows.
            temp_dir: receives a part for object storage until it is uploaded; None: the system's temporary folder.
        """
        self.part, self.schema = part, schema
        self.path = join(store, part.path)
        # The temporary name is unique, because a retried task may run while its first attempt still writes. A part
        # for object storage is first written to the node's disk: an interrupted upload would look like a whole object.
        self.is_local = is_local(store)
        self.target = Path(filesystem(self.path)[1])
        if self.is_local:
            self.partial_file = self.target.with_name(f".{self.target.name}.{uuid4().hex}.partial")
        else:
            self.partial_file = (temp_dir or Path(tempfile.gettempdir())) / f"{uuid4().hex}.partial"
        self.num_rows = 0

    def __enter__(self) -> "PartWriter":
        with self._storage_errors():
            self.partial_file.parent.mkdir(parents=True, exist_ok=True)
            self.stream = _HashingStream(pafs.LocalFileSystem().open_output_stream(str(self.partial_file)))
            # Buffered, because the Parquet writer makes many small writes.
            self.sink = pa.BufferedOutputStream(pa.PythonFile(self.stream, mode="w"), PIECE_BYTES)
            self.writer = pq.ParquetWriter(
                self.sink,
                self.schema,
                compression="none",  # nearly all bytes are JPEG data, which does not compress
                use_dictionary=False,
                write_statistics=False,  # readers of single rows do not use them
                write_page_checksum=True,
            )
        return self

    def add(self, variant: Variant) -> None:
        """Append a variant as a row."""
        with self._storage_errors():
            self.writer.write_table(_row_to_table(variant.to_row(), self.schema), row_group_size=ROWS_PER_GROUP)
        self.num_rows += 1

    def finish(self, metadata: dict[str, Any]) -> PartRecord:
        """Complete the part and give it its final name.

        Args:
            metadata: values that are stored as JSON in the file's Parquet metadata under METADATA_KEY.
        """
        with self._storage_errors():
            self.writer.add_key_value_metadata({METADATA_KEY: json.dumps(metadata)})
            self.writer.close()
            self.sink.close()
            if self.is_local:
                self.partial_file.replace(self.target)
            else:
                write_bytes(self.path, self.partial_file.read_bytes())
        return _make_record(self.part, self.num_rows, self.stream.num_bytes, self.stream.sha256.hexdigest())

    def __exit__(self, *exception: object) -> None:
        self.partial_file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be written: {one_line(error)}") from error


def _row_to_table(row: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """Return a row as a table. The image is not copied, so this takes a third of the time of `pa.Table.from_pylist`."""
    arrays = []
    for name, data_type in zip(schema.names, schema.types, strict=True):
        value = row[name]
        if isinstance(value, bytes):
            offsets = pa.py_buffer(np.array([0, len(value)], dtype=np.int32))
            arrays.append(pa.Array.from_buffers(data_type, 1, [None, offsets, pa.py_buffer(value)]))
        elif isinstance(value, np.ndarray):
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(value, data_type.value_type), type=data_type))
        else:
            arrays.append(_single_value(value, data_type))
    return pa.Table.from_arrays(arrays, schema=schema)


@lru_cache(maxsize=256)  # the variants of a source, and the rows of a part, share all values but the seed
def _single_value(value: str | int, data_type: pa.DataType) -> pa.Array:
    """Return an array of one value."""
    return pa.array([value], data_type)


def make_parts(
    plan: Plan, sources: Sequence[Source], parts: Sequence[Part]
) -> tuple[list[PartRecord], list[Quarantined]]:
    """Write parts of one chunk; each source is read and decoded once for all parts.

    Returns:
        The records of the parts, and the sources that at least one recipe could not use.

    Raises:
        StorageError: the disk is full, or the storage does not answer or denies access.
    """
    schema = row_schema(len(plan.skeleton))
    quarantined: list[Quarantined] = []
    with contextlib.ExitStack() as stack:
        temp_dir: Path | None = None
        if not is_local(plan.store):
            temp_dir = stack.enter_context(shared_temp_folder(f"augment-{uuid4().hex}"))
        writers = {
            part.recipe.name: stack.enter_context(PartWriter(plan.store, part, schema, temp_dir)) for part in parts
        }
        for source in sources:
            variants, refusals = make_variants(plan, source, [(part.recipe, part.copies) for part in parts])
            quarantined += refusals
            for variant in variants:
                writers[variant.recipe].add(variant)
        records = []
        for part in parts:
            stages = (UNREADABLE, UNAVAILABLE, recipe_stage(part.recipe.name))
            metadata = {
                "kp_ray": "0.1.0",  # not the version, with which the digests of equal rows would change
                "skeleton": list(plan.skeleton),
                "quarantined": [item.model_dump() for item in quarantined if item.stage in stages],
            }
            records.append(writers[part.recipe.name].finish(metadata))
    return records, quarantined


def _make_record(part: Part, num_rows: int, num_bytes: int, sha256: str) -> PartRecord:
    return PartRecord(
        path=part.path,
        recipe=part.recipe.name,
        split=part.split,
        num_rows=num_rows,
        num_bytes=num_bytes,
        sha256=sha256,
    )


def describe_part(store: str, part: Part) -> tuple[PartRecord, list[Quarantined]] | None:
    """Read the record and the quarantined sources of a part that an interrupted run left.

    Returns:
        The record and the quarantined sources; None if the part must be written, because it does not exist, is damaged
        or lacks a source that was UNAVAILABLE.
    """
    path = join(store, part.path)
    if not exists(path):
        return None
    try:
        with open_input(path) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            num_rows = sum(file.read_row_group(group).num_rows for group in range(file.num_row_groups))
            metadata = json.loads(file.metadata.metadata[METADATA_KEY])
        quarantined = [Quarantined(**item) for item in metadata["quarantined"]]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
    if any(item.stage == UNAVAILABLE for item in quarantined):
        return None
    return _make_record(part, num_rows, *hash_file(path)), quarantined
