"""Write one part whole, describe one that is there, make the rows of one source."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kp_ray.augmentation.recipes import Recipe
from kp_ray.augmentation.variants import Source, Variant, VariantSettings, augment_source
from kp_ray.errors import KpRayError, one_line
from kp_ray.storage import exists, filesystem, join, write_bytes
from kp_ray.store.manifest import METADATA_KEY, OPEN, READ, PartRecord, Quarantined, stage_of
from kp_ray.store.plan import Part, Plan

ROWS_PER_GROUP = 1
"""A row group a row: training reads single rows in random order, and a part is written without being held."""
PIECE_BYTES = 1 << 20
"""What a part's writer gathers before it hashes and writes, and a reader reads at once."""


def make_rows(
    plan: Plan, source: Source, recipes: Sequence[tuple[Recipe, int]]
) -> tuple[list[Variant], list[Quarantined]]:
    """All rows of one source, read from the plan's image folder, and why some recipes or all give none."""
    fs, inner = filesystem(join(plan.images, source.name))
    stage = READ
    try:
        with fs.open_input_file(inner) as stream:
            content = bytes(stream.readall())
        settings = VariantSettings(
            seed=plan.seed,
            jpeg_quality=plan.augment.jpeg_quality,
            scale_with_frame=plan.augment.oversize == "scale",
            box_margin_px=plan.augment.box_margin_px,
        )
        rows, refused = augment_source(content, source, recipes, settings)
    except FileNotFoundError:
        reason = "there is no such file"
        if source.name not in plan.absent:  # so the plan's machine sees it
            stage, reason = OPEN, f"{reason} on the worker's node: the images must be where all nodes see them"
    except OSError as error:
        stage, reason = OPEN, f"cannot be opened: {one_line(error)}"
    except KpRayError as error:
        reason = str(error)
    else:
        return rows, [
            Quarantined(source=source.name, stage=stage_of(name), reason=why) for name, why in refused.items()
        ]
    return [], [Quarantined(source=source.name, stage=stage, reason=reason)]


class _HashingStream:
    """A writable stream that counts and hashes what passes."""

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
    """Streams rows into a part that appears only when it is finished."""

    def __init__(self, store: str, part: Part, schema: pa.Schema) -> None:
        self.store, self.part, self.schema = store, part, schema
        self.fs, root = filesystem(store)
        self.target = f"{root}/{part.path}"
        self.local = isinstance(self.fs, pafs.LocalFileSystem)
        # Of two nodes with one folder, the second may repeat a part that the first, cut off, still writes. What goes to
        # object storage is gathered on the node's disk: a stream there cannot be broken off without leaving its half.
        folder = self.target if self.local else f"{tempfile.gettempdir()}/kp_ray"
        self.partial = f"{folder}.{uuid4().hex}.partial"
        self.num_rows = 0

    def __enter__(self) -> "PartWriter":
        if self.local:
            Path(self.partial).parent.mkdir(parents=True, exist_ok=True)
        self.stream = _HashingStream(pafs.LocalFileSystem().open_output_stream(self.partial))
        # Parquet writes in tiny pieces.
        self.sink = pa.BufferedOutputStream(pa.PythonFile(self.stream, mode="w"), PIECE_BYTES)
        self.writer = pq.ParquetWriter(
            self.sink,
            self.schema,
            compression="none",  # nearly all bytes are JPEG already
            use_dictionary=False,
            write_statistics=False,  # of a single row they say nothing
            write_page_checksum=True,
        )
        return self

    def add(self, variant: Variant) -> None:
        table = pa.Table.from_pylist([variant.to_row()], schema=self.schema)
        self.writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        self.num_rows += 1

    def finish(self, note: dict[str, Any]) -> PartRecord:
        self.writer.add_key_value_metadata({METADATA_KEY: json.dumps(note)})
        self.writer.close()
        self.sink.close()
        if self.local:
            Path(self.partial).replace(self.target)
        else:
            write_bytes(join(self.store, self.part.path), Path(self.partial).read_bytes())
        return PartRecord(
            path=self.part.path,
            recipe=self.part.recipe.name,
            split=self.part.split,
            num_rows=self.num_rows,
            num_bytes=self.stream.num_bytes,
            sha256=self.stream.sha256.hexdigest(),
        )

    def __exit__(self, *exception: object) -> None:
        Path(self.partial).unlink(missing_ok=True)


def describe_part(store: str, part: Part) -> tuple[PartRecord, list[Quarantined]] | None:
    """The record of a part that an earlier, unfinished run left whole; None if there is none."""
    path = join(store, part.path)
    if not exists(path):
        return None
    fs, inner = filesystem(path)
    try:
        with fs.open_input_file(inner) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            num_rows = sum(file.read_row_group(group).num_rows for group in range(file.num_row_groups))
            note = json.loads(file.metadata.metadata[METADATA_KEY])
        quarantined = [Quarantined(**q) for q in note["quarantined"]]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
    if any(q.stage == OPEN for q in quarantined):
        return None
    num_bytes, sha256 = hash_file(path)
    record = PartRecord(
        path=part.path,
        recipe=part.recipe.name,
        split=part.split,
        num_rows=num_rows,
        num_bytes=num_bytes,
        sha256=sha256,
    )
    return record, quarantined


def hash_file(path: str) -> tuple[int, str]:
    """A file's size and the hex digits of its SHA-256, read a piece at a time."""
    fs, inner = filesystem(path)
    num_bytes, sha256 = 0, hashlib.sha256()
    with fs.open_input_stream(inner) as stream:
        while piece := stream.read(PIECE_BYTES):
            num_bytes += len(piece)
            sha256.update(piece)
    return num_bytes, sha256.hexdigest()
