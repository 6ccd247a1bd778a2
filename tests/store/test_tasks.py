"""A Ray task of `augment` receives its chunk as Arrow columns, writes the chunk's parts and returns their records."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kp_ray.cluster.errors import raise_error_row
from kp_ray.config.schema import Config
from kp_ray.errors import StorageError
from kp_ray.storage import hash_file
from kp_ray.store.plan import Plan, make_plan
from kp_ray.store.tasks import ChunkResult, chunk_to_table, run_tasks, table_to_chunk, write_chunk
from tests.helpers.stores import store_files, write_planned_store


@pytest.fixture
def plan(sample_config: Config) -> Plan:
    """Plan the store of the tiny config."""
    return make_plan(sample_config)


def test_a_chunk_is_equal_after_conversion_to_a_table_and_back(plan: Plan) -> None:
    assert {chunk.sources[0].split for chunk in plan.chunks} == {"train", "val"}
    for chunk in plan.chunks:
        received_chunk = table_to_chunk(chunk_to_table(chunk), plan)
        assert received_chunk.parts == chunk.parts
        for source, original in zip(received_chunk.sources, chunk.sources, strict=True):
            np.testing.assert_array_equal(source.keypoints, original.keypoints)
            for name in ("name", "scene", "camera", "frame", "split"):
                assert getattr(source, name) == getattr(original, name)


def test_the_table_of_a_chunk_has_plain_arrow_types_and_a_row_per_source(plan: Plan) -> None:
    chunk = plan.chunks[0]
    table = chunk_to_table(chunk)
    assert table["source"].to_pylist() == [source.name for source in chunk.sources]
    assert table.schema == pa.schema(
        {
            "source": pa.string(),
            "scene": pa.string(),
            "camera": pa.string(),
            "frame": pa.int64(),
            "split": pa.string(),
            "keypoints": pa.list_(pa.float64(), 72),
            "parts": pa.list_(pa.string()),
        }
    )


def test_a_task_writes_missing_parts_and_finds_those_of_an_interrupted_run(plan: Plan) -> None:
    chunk = plan.chunks[0]
    task_plan = replace(plan, chunks=())  # a task receives a plan without chunks
    for num_recovered in (0, len(chunk.parts)):
        (row,) = write_chunk(chunk_to_table(chunk), task_plan).to_pylist()
        result = ChunkResult.from_row(row)
        assert [part.path for part in result.parts] == [part.path for part in chunk.parts]
        assert [(part.num_bytes, part.sha256) for part in result.parts] == [
            hash_file(f"{plan.store}/{part.path}") for part in chunk.parts
        ]
        assert (result.num_recovered, result.num_sources) == (num_recovered, len(chunk.sources))
        assert result.quarantined == ()


def test_an_error_in_a_task_becomes_a_row_that_raises_it(plan: Plan) -> None:
    Path(plan.store).parent.mkdir(parents=True)
    Path(plan.store).write_text("a file where the store must be")
    (row,) = write_chunk(chunk_to_table(plan.chunks[0]), replace(plan, chunks=())).to_pylist()
    with pytest.raises(StorageError, match="cannot be written"):
        raise_error_row(row)


@pytest.mark.usefixtures("ray_cluster")
def test_tasks_write_the_same_parts_as_one_process(plan: Plan, sample_config: Config) -> None:
    results = list(run_tasks(plan, plan.chunks))
    assert sum(result.num_sources for result in results) == 12
    assert {part.path for result in results for part in result.parts} == {part.path for part in plan.parts()}
    files_from_tasks = store_files(sample_config)
    write_planned_store(plan)
    files = store_files(sample_config)
    assert {path: files[path] for path in files_from_tasks} == files_from_tasks
