"""Stores of the former layout are read without changing them, and `augment` converts them without rewriting a part."""

import os
from pathlib import Path
from typing import Any

import pytest

from kp_ray.config.schema import Config
from kp_ray.errors import StoreError
from kp_ray.store import convert
from kp_ray.store.convert import convert_layout
from kp_ray.store.estimate import forecast_augment
from kp_ray.store.layout import has_store
from kp_ray.store.manifest import SCHEMA_VERSION, read_manifest, store_digest
from kp_ray.store.plan import Plan, make_plan
from kp_ray.store.read import iter_rows, read_table
from kp_ray.store.verify import verify_store
from kp_ray.store.write import is_finished, write_store
from tests.helpers.processes import file_times
from tests.helpers.stores import store_files, to_former_layout, write_planned_store


@pytest.fixture
def plan(sample_config: Config) -> Plan:
    """Write the store of the tiny config in the former layout; return its plan."""
    plan = make_plan(sample_config)
    write_planned_store(plan)
    to_former_layout(Path(plan.store))
    return plan


def list_names(store: str) -> set[str]:
    """List the names of the files and folders directly in a store, except the lock."""
    return set(os.listdir(store)) - {".lock"}


def test_a_store_of_the_former_layout_is_read_without_changing_it(plan: Plan, sample_config: Config) -> None:
    names = {"manifest.json", "quarantine.parquet", "recipe=Original", "recipe=Rotate45_CenterCrop"}
    assert list_names(plan.store) == names
    former_rows, digest = str(list(iter_rows(plan.store, split=None))), store_digest(plan.store)
    former_table = read_table(plan.store)
    assert has_store(plan.store)
    assert is_finished(plan)
    assert forecast_augment(plan, sample_config).parts_kept == len(read_manifest(plan.store).parts)
    assert verify_store(plan) == []
    assert list_names(plan.store) == names
    convert_layout(plan.store)
    assert str(list(iter_rows(plan.store, split=None))) == former_rows
    assert str(read_table(plan.store).to_pylist()) == str(former_table.to_pylist())
    assert store_digest(plan.store) == digest, "members that were trained on the store must stay valid"


def test_augment_converts_a_finished_store_without_a_cluster_and_writes_no_part(plan: Plan) -> None:
    times = {path.name: path.stat().st_mtime_ns for path in Path(plan.store).rglob("part-*")}
    record = write_store(plan)
    assert (record.parts_written, record.parts_kept) == (0, len(times))
    assert list_names(plan.store) == {
        "_manifest.json",
        "_quarantine.csv",
        "recipe-Original",
        "recipe-Rotate45_CenterCrop",
    }
    assert {path.name: path.stat().st_mtime_ns for path in Path(plan.store).rglob("part-*")} == times
    assert read_manifest(plan.store).schema_version == SCHEMA_VERSION
    assert verify_store(plan) == []


def test_a_converted_store_equals_a_new_one(plan: Plan, sample_config: Config) -> None:
    convert_layout(plan.store)
    converted_files = store_files(sample_config)
    write_planned_store(plan)
    assert store_files(sample_config) == converted_files
    before = file_times(*(Path(plan.store, path) for path in converted_files))
    convert_layout(plan.store)
    assert file_times(*before) == before


@pytest.mark.parametrize("function_name", ["move_file", "delete_folder", "write_manifest", "delete_file"])
def test_an_interrupted_conversion_is_resumed(
    function_name: str, plan: Plan, sample_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = getattr(convert, function_name)
    num_calls = 0

    def interrupt(*arguments: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 1 or function_name == "write_manifest":  # the manifest is written only once
            raise KeyboardInterrupt
        function(*arguments)

    monkeypatch.setattr(convert, function_name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_layout(plan.store)
    monkeypatch.undo()
    convert_layout(plan.store)
    converted_files = store_files(sample_config)
    write_planned_store(plan)
    assert store_files(sample_config) == converted_files


def test_parts_of_an_unfinished_run_in_the_former_layout_are_moved(plan: Plan) -> None:
    Path(plan.store, "manifest.json").unlink()
    (Path(plan.store) / "recipe=Original" / "part-00000-ab.parquet.0.partial").touch()
    convert_layout(plan.store)
    files = {str(path.relative_to(plan.store)) for path in Path(plan.store).rglob("*") if path.is_file()}
    assert files == {part.path for part in plan.parts()}


def test_a_damaged_manifest_of_the_former_layout_is_refused_before_a_file_is_moved(
    plan: Plan, sample_config: Config
) -> None:
    os.truncate(Path(plan.store, "manifest.json"), 100)
    before = store_files(sample_config)
    with pytest.raises(StoreError, match=r"/manifest\.json: damaged"):
        convert_layout(plan.store)
    assert store_files(sample_config) == before
