"""A part is written whole or not at all, and a later run reuses whole parts only."""

import os
from pathlib import Path
from typing import Any

import pytest

from kp_ray.config.schema import Config
from kp_ray.errors import StorageError
from kp_ray.storage import hash_file
from kp_ray.store.manifest import UNAVAILABLE, UNREADABLE, PartRecord, row_schema
from kp_ray.store.parts import PartWriter, describe_part, make_variants
from kp_ray.store.plan import Plan, make_plan
from kp_ray.store.read import read_part


@pytest.fixture
def plan(sample_config: Config) -> Plan:
    """Plan the store of `sample_config`."""
    return make_plan(sample_config)


def write_first_part(plan: Plan, quarantined: tuple[dict[str, Any], ...] = ()) -> PartRecord:
    """Write the plan's first part; `quarantined` is stored in its metadata."""
    chunk = plan.chunks[0]
    part = chunk.parts[0]
    with PartWriter(plan.store, part, row_schema(len(plan.skeleton))) as writer:
        for source in chunk.sources:
            for variant in make_variants(plan, source, [(part.recipe, part.copies)])[0]:
                writer.add(variant)
        return writer.finish({"quarantined": list(quarantined)})


def test_a_finished_part_agrees_with_its_record(plan: Plan) -> None:
    record = write_first_part(plan)
    path = os.path.join(plan.store, record.path)
    table = read_part(path)
    assert table["source"].to_pylist() == [source.name for source in plan.chunks[0].sources]
    assert table.schema.remove_metadata() == row_schema(len(plan.skeleton))
    assert (record.num_bytes, record.sha256) == hash_file(path)
    assert record.num_rows == len(table)
    assert (record.recipe, record.split) == ("Original", "train")


def test_an_error_while_writing_a_part_leaves_no_file(plan: Plan) -> None:
    part = plan.chunks[0].parts[0]
    with pytest.raises(ZeroDivisionError), PartWriter(plan.store, part, row_schema(len(plan.skeleton))):
        raise ZeroDivisionError
    assert [path for path in Path(plan.store).rglob("*") if path.is_file()] == []


def test_the_error_names_the_part_that_cannot_be_written(plan: Plan) -> None:
    Path(plan.store).parent.mkdir(parents=True)
    Path(plan.store).write_text("a file where the store must be")
    with pytest.raises(StorageError, match=r"recipe-Original/part-.*cannot be written"):
        write_first_part(plan)


def test_the_description_of_a_whole_part_equals_the_record_of_its_writer(plan: Plan) -> None:
    part = plan.chunks[0].parts[0]
    assert describe_part(plan.store, part) is None
    unreadable_item = {"source": "b.jpg", "stage": UNREADABLE, "reason": "the file is empty"}
    record = write_first_part(plan, (unreadable_item,))
    description = describe_part(plan.store, part)
    assert description is not None
    stored_record, stored_items = description
    assert stored_record == record
    assert [item.model_dump() for item in stored_items] == [unreadable_item]


def test_a_part_is_made_again_if_a_source_was_unavailable(plan: Plan) -> None:
    write_first_part(plan, ({"source": "b.jpg", "stage": UNAVAILABLE, "reason": "Permission denied"},))
    assert describe_part(plan.store, plan.chunks[0].parts[0]) is None


@pytest.mark.parametrize("fraction", [0, 0.3, 0.99])
def test_a_truncated_part_is_not_reused(plan: Plan, fraction: float) -> None:
    record = write_first_part(plan)
    os.truncate(os.path.join(plan.store, record.path), int(fraction * record.num_bytes))
    assert describe_part(plan.store, plan.chunks[0].parts[0]) is None


def test_a_part_with_a_flipped_bit_is_not_reused(plan: Plan) -> None:
    record = write_first_part(plan)
    path = Path(plan.store, record.path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert describe_part(plan.store, plan.chunks[0].parts[0]) is None
