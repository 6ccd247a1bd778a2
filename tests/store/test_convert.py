"""Stores of the layout before schema 3 are read unchanged, and `augment` converts them without rewriting a part."""

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
def planned(tiny: Config) -> Plan:
    """Write the store of the tiny config in the layout before schema 3; return its plan."""
    planned = make_plan(tiny)
    write_planned_store(planned)
    to_former_layout(Path(planned.store))
    return planned


def list_names(store: str) -> set[str]:
    """List the names of the files and folders directly in a store, except the lock."""
    return set(os.listdir(store)) - {".lock"}


def test_a_store_of_the_former_layout_is_read_without_changing_it(planned: Plan, tiny: Config) -> None:
    names = {"manifest.json", "quarantine.parquet", "recipe=Original", "recipe=Rotate45_CenterCrop"}
    assert list_names(planned.store) == names
    former_rows, digest = str(list(iter_rows(planned.store, split=None))), store_digest(planned.store)
    former_table = read_table(planned.store)
    assert has_store(planned.store)
    assert is_finished(planned)
    assert forecast_augment(planned, tiny).parts_kept == len(read_manifest(planned.store).parts)
    assert verify_store(planned) == []
    assert list_names(planned.store) == names
    convert_layout(planned.store)
    assert str(list(iter_rows(planned.store, split=None))) == former_rows
    assert str(read_table(planned.store).to_pylist()) == str(former_table.to_pylist())
    assert store_digest(planned.store) == digest, "members that were trained on the store stay valid"


def test_augment_converts_a_finished_store_without_a_cluster_and_writes_no_part(planned: Plan) -> None:
    times = {path.name: path.stat().st_mtime_ns for path in Path(planned.store).rglob("part-*")}
    figures = write_store(planned)
    assert (figures.parts_written, figures.parts_kept) == (0, len(times))
    assert list_names(planned.store) == {
        "_manifest.json",
        "_quarantine.csv",
        "recipe-Original",
        "recipe-Rotate45_CenterCrop",
    }
    assert {path.name: path.stat().st_mtime_ns for path in Path(planned.store).rglob("part-*")} == times
    assert read_manifest(planned.store).schema_version == SCHEMA_VERSION
    assert verify_store(planned) == []


def test_a_converted_store_equals_a_new_one(planned: Plan, tiny: Config) -> None:
    convert_layout(planned.store)
    converted = store_files(tiny)
    write_planned_store(planned)
    assert store_files(tiny) == converted
    before = file_times(*(Path(planned.store, path) for path in converted))
    convert_layout(planned.store)
    assert file_times(*before) == before


@pytest.mark.parametrize("function_name", ["move_file", "delete_folder", "write_manifest", "delete_file"])
def test_an_interrupted_conversion_is_continued(
    function_name: str, planned: Plan, tiny: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, num_calls = getattr(convert, function_name), 0

    def interrupt(*arguments: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls > 1 or function_name == "write_manifest":  # the manifest is written only once
            raise KeyboardInterrupt
        function(*arguments)

    monkeypatch.setattr(convert, function_name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_layout(planned.store)
    monkeypatch.undo()
    convert_layout(planned.store)
    converted = store_files(tiny)
    write_planned_store(planned)
    assert store_files(tiny) == converted


def test_parts_of_an_unfinished_run_in_the_former_layout_are_moved(planned: Plan) -> None:
    Path(planned.store, "manifest.json").unlink()
    (Path(planned.store) / "recipe=Original" / "part-00000-ab.parquet.0.partial").touch()
    convert_layout(planned.store)
    files = {str(path.relative_to(planned.store)) for path in Path(planned.store).rglob("*") if path.is_file()}
    assert files == {part.path for part in planned.parts()}


def test_a_damaged_manifest_of_the_former_layout_is_refused_before_a_file_is_moved(planned: Plan, tiny: Config) -> None:
    os.truncate(Path(planned.store, "manifest.json"), 100)
    before = store_files(tiny)
    with pytest.raises(StoreError, match=r"/manifest\.json: damaged"):
        convert_layout(planned.store)
    assert store_files(tiny) == before
