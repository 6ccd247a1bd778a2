"""Write the missing parts of a store's chunks in Ray tasks.

The input is a Ray data set of the annotation table, with one row per source and one block per chunk. A task writes the
missing parts of its chunk and returns one row. All columns have plain Arrow types.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import cv2
import numpy as np
import pyarrow as pa
import ray

from kp_ray.augmentation.variants import Source
from kp_ray.cluster.errors import describe_ray_error, error_row, raise_error_row
from kp_ray.cluster.placement import AUGMENT_NODE_SELECTOR
from kp_ray.cluster.ray_internals import bounded_task_retries
from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.errors import KpRayError, StoppedError
from kp_ray.store.layout import recipe_in_path
from kp_ray.store.manifest import PartRecord, Quarantined, Split
from kp_ray.store.parts import describe_part, make_parts
from kp_ray.store.plan import Chunk, Part, Plan

_TEXT, _NUMBER = pa.string(), pa.int64()
_RESULT_SCHEMA = pa.schema(
    {
        "parts": pa.list_(
            pa.struct(
                {
                    "path": _TEXT,
                    "recipe": _TEXT,
                    "split": _TEXT,
                    "num_rows": _NUMBER,
                    "num_bytes": _NUMBER,
                    "sha256": _TEXT,
                }
            )
        ),
        "num_recovered": _NUMBER,
        "quarantined": pa.list_(pa.struct({"source": _TEXT, "stage": _TEXT, "reason": _TEXT})),
        "num_sources": _NUMBER,
        "started": pa.float64(),
        "error_class": _TEXT,
        "error_message": _TEXT,
    }
)
"""The columns of a task's row: a result fills the fields of `ChunkResult`, an error those of `error_row`."""


@dataclass(frozen=True)
class ChunkResult:
    """The result of a task.

    Attributes:
        parts: records of the chunk's parts: first those that an interrupted run had written, then the new ones.
        num_recovered: number of parts that an interrupted run had written.
        quarantined: sources of the chunk that at least one recipe could not use.
        num_sources: number of sources of the chunk.
        started: Unix time in seconds at which the task began.
    """

    parts: tuple[PartRecord, ...]
    num_recovered: int
    quarantined: tuple[Quarantined, ...]
    num_sources: int
    started: float

    def to_row(self) -> dict[str, Any]:
        """Return the result as a row of _RESULT_SCHEMA."""
        return {
            **asdict(self),
            "parts": [part.model_dump() for part in self.parts],
            "quarantined": [item.model_dump() for item in self.quarantined],
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "ChunkResult":
        """Read the result from a row of _RESULT_SCHEMA."""
        return cls(
            parts=tuple(PartRecord(**part) for part in row["parts"]),
            num_recovered=row["num_recovered"],
            quarantined=tuple(Quarantined(**item) for item in row["quarantined"]),
            num_sources=row["num_sources"],
            started=row["started"],
        )


def run_tasks(plan: Plan, chunks: Sequence[Chunk]) -> Iterator[ChunkResult]:
    """Write the parts of chunks in Ray tasks, and iterate over the results in the order in which the tasks end.

    Raises:
        StoppedError: a task's worker died in the first attempt and in every retry.
        KpRayError: see `make_parts`.
    """
    fix = "run augment again, which keeps finished parts"
    try:
        with ray_data_settings():
            results = ray.data.from_arrow([chunk_to_table(chunk) for chunk in chunks]).map_batches(
                write_chunk,
                batch_size=None,  # a batch is a whole block, which is one chunk
                batch_format="pyarrow",
                fn_args=(replace(plan, chunks=()),),  # a task needs only its own chunk
                num_cpus=1,
                label_selector=AUGMENT_NODE_SELECTOR,
                **bounded_task_retries(),
            )
        for row in results.iter_rows():
            raise_error_row(row)
            yield ChunkResult.from_row(row)
    except ray.exceptions.RayError as error:
        raise StoppedError(f"{plan.store}: writing stopped: {describe_ray_error(error)}: {fix}") from error
    except KpRayError as error:
        raise type(error)(f"{plan.store}: writing stopped: {error}: {fix}") from error


def chunk_to_table(chunk: Chunk) -> pa.Table:
    """Return a chunk as a table with one row per source; each row also lists the paths of the chunk's parts."""
    sources, paths = chunk.sources, pa.array([part.path for part in chunk.parts], _TEXT)
    keypoints = np.stack([np.asarray(source.keypoints, dtype=np.float64).ravel() for source in sources])
    row_starts = np.arange(len(sources) + 1, dtype=np.int32) * len(paths)
    return pa.table(
        {
            "source": pa.array([source.name for source in sources], _TEXT),
            "scene": pa.array([source.scene for source in sources], _TEXT),
            "camera": pa.array([source.camera for source in sources], _TEXT),
            "frame": pa.array([source.frame for source in sources], _NUMBER),
            "split": pa.array([source.split for source in sources], _TEXT),
            "keypoints": pa.FixedSizeListArray.from_arrays(keypoints.ravel(), keypoints.shape[1]),
            "parts": pa.ListArray.from_arrays(row_starts, pa.concat_arrays([paths] * len(sources))),
        }
    )


def table_to_chunk(table: pa.Table, plan: Plan) -> Chunk:
    """Return the chunk that `chunk_to_table` converted to a table; `plan` gives the recipes."""
    keypoints = table["keypoints"].combine_chunks().flatten().to_numpy().reshape(len(table), -1, 3)
    rows = table.drop_columns(["keypoints", "parts"]).to_pylist()
    sources = tuple(
        Source(row["source"], row["scene"], row["camera"], row["frame"], row["split"], points)
        for row, points in zip(rows, keypoints, strict=True)
    )
    split = cast(Split, sources[0].split)
    recipes = {recipe.name: (recipe, copies) for recipe, copies in plan.recipes_for_split(split)}
    paths: list[str] = table["parts"][0].as_py()
    return Chunk(sources, tuple(Part(path, *recipes[recipe_in_path(path)], split) for path in paths))


def write_chunk(table: pa.Table, plan: Plan) -> pa.Table:
    """Write one chunk's missing parts. This is the body of a task, which reads and decodes each source once.

    Args:
        table: the chunk, from `chunk_to_table`.
        plan: the store's plan, without chunks.

    Returns:
        A table of one row, whose columns are those of _RESULT_SCHEMA.
    """
    started = time.time()
    cv2.setNumThreads(1)  # Ray assigns one CPU to a task, so OpenCV must not use more
    chunk = table_to_chunk(table, plan)
    try:
        row = _make_missing_parts(plan, chunk, started).to_row()
    except KpRayError as error:
        row = error_row(error)
    return pa.Table.from_pylist([row], schema=_RESULT_SCHEMA)


def _make_missing_parts(plan: Plan, chunk: Chunk, started: float) -> ChunkResult:
    records: list[PartRecord] = []
    quarantined: list[Quarantined] = []
    missing_parts: list[Part] = []
    for part in chunk.parts:
        description = describe_part(plan.store, part)
        if description is None:
            missing_parts.append(part)
        else:
            record, part_quarantined = description
            records.append(record)
            quarantined += part_quarantined
    num_recovered = len(records)
    if missing_parts:
        new_records, new_quarantined = make_parts(plan, chunk.sources, missing_parts)
        records += new_records
        quarantined += new_quarantined
    return ChunkResult(tuple(records), num_recovered, tuple(quarantined), len(chunk.sources), started)
