"""Rows are read by part, as a table, one by one, and in order."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kp_ray.errors import StorageError, StoreError
from kp_ray.store.plan import make_plan
from kp_ray.store.read import RowReader, iter_rows, list_rows, read_part, read_table, select_parts
from kp_ray.store.write import write_store
from tests.helpers.data import tiny_config
from tests.helpers.stores import STORE_IMAGES, write_small_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Write a store of nine rows in three parts."""
    write_small_store(tmp_path)
    return str(tmp_path)


def test_parts_are_selected_by_split_and_recipe(store: str) -> None:
    assert len(select_parts(store)[1]) == 3
    (val_part,) = select_parts(store, split="val")[1]
    assert val_part.startswith(f"{store}/recipe-Original/")
    (crop_part,) = select_parts(store, recipes=["Rotate45_CenterCrop"])[1]
    assert crop_part.startswith(f"{store}/recipe-Rotate45_CenterCrop/")
    assert select_parts(store, split="val", recipes=["Rotate45_CenterCrop"])[1] == []


def test_a_recipe_that_the_store_does_not_hold_is_refused(store: str) -> None:
    with pytest.raises(StoreError, match="holds no recipe 'Rotate90': choose from Original, Rotate45_CenterCrop"):
        select_parts(store, recipes=["Rotate90"])


def test_a_split_or_a_column_that_does_not_exist_is_refused(store: str) -> None:
    for split in ("validation", "Val"):
        with pytest.raises(StoreError, match=f"has no such split \\(got '{split}'\\): choose train or val"):
            read_table(store, split=split)
    with pytest.raises(StoreError, match="has no column 'keypoint': choose from source, "):
        read_table(store, columns=["source", "keypoint"])


def test_a_scene_on_both_sides_of_the_split_is_refused(store: str) -> None:
    path = Path(store, "_manifest.json")
    manifest = json.loads(path.read_text())
    leaked_scene = manifest["units"]["val"][0]
    manifest["units"]["train"].append(leaked_scene)
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=f"{leaked_scene} is in both splits"):
        select_parts(store, split="train")


@pytest.mark.usefixtures("ray_cluster")
def test_validation_originals_can_be_selected_when_the_config_does_not_list_original(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(sample_data, tmp_path, augment={"recipes": ["RandomCrop_1"]})
    write_store(make_plan(config))
    (folder,) = {os.path.dirname(path) for path in select_parts(config.path("store"), split="val")[1]}
    assert folder.endswith("recipe-Original")
    assert select_parts(config.path("store"), split="val", recipes=["Original"])[1]


def test_a_table_has_the_selected_columns_of_the_selected_rows(store: str) -> None:
    table = read_table(store, split="val", columns=["source", "split"])
    assert table.to_pylist() == [{"source": name, "split": "val"} for name in STORE_IMAGES[:3]]
    assert len(read_table(store)) == 9
    empty_table = read_table(store, split="val", recipes=["Rotate45_CenterCrop"], columns=["source"])
    assert (len(empty_table), empty_table.column_names) == (0, ["source"])


def test_list_rows_and_iter_rows_give_the_same_rows_in_the_same_order(store: str) -> None:
    reader = RowReader(["recipe", "source"])
    for split, count in (("train", 6), ("val", 3)):
        rows = [reader.read(*reference) for reference in list_rows(store, split=split)]
        expected = [{"recipe": row["recipe"], "source": row["source"]} for row in iter_rows(store, split=split)]
        assert rows == expected
        assert len(rows) == count


def test_single_rows_equal_the_rows_of_the_whole_part(store: str) -> None:
    reader = RowReader(["source", "width"], max_open_parts=1)
    for path in select_parts(store)[1]:
        expected = read_part(path, ["source", "width"]).to_pylist()
        assert [reader.read(path, number) for number in range(len(expected))] == expected


def test_the_error_about_a_missing_part_names_its_path_and_the_fix(store: str) -> None:
    path = select_parts(store, split="val")[1][0]
    os.remove(path)
    for read in (lambda: read_table(store), lambda: list(iter_rows(store, split="val")), lambda: read_part(path)):
        with pytest.raises(StorageError, match="run verify, then augment") as error:
            read()
        assert path in str(error.value)
    with pytest.raises(StorageError, match="run verify, then augment"):
        RowReader(["source"]).read(path, 0)
