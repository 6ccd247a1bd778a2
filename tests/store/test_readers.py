"""Data frame libraries read the folder of a store without help from kp_ray."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from kp_ray.store.manifest import UNREADABLE, Quarantined
from kp_ray.store.read import read_table
from tests.helpers.stores import write_small_store


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Write a store with a quarantined source, a lock, and the unfinished part of a killed writer."""
    folder = tmp_path / "store"
    folder.mkdir()
    write_small_store(folder, (Quarantined(source="b.jpg", stage=UNREADABLE, reason="the file is empty"),))
    (folder / ".lock").touch()
    (folder / "recipe-Original" / ".part-00000-ab12.parquet.0.partial").write_bytes(b"PAR1")
    return str(folder)


def load_with_datasets(store: str, *arguments: str, **options: Any) -> pa.Table:
    """Load all rows with Hugging Face datasets, which puts them into one split called "train"."""
    cache = str(Path(store).parent / "cache")
    return datasets.load_dataset(*arguments, cache_dir=cache, split="train", **options).with_format("arrow")[:]


READERS: dict[str, Callable[[str], pa.Table]] = {
    "pandas": lambda store: pa.Table.from_pandas(pd.read_parquet(store)),
    "pyarrow": lambda store: ds.dataset(store).to_table(),
    "polars, folder": lambda store: pl.scan_parquet(store, hidden_file_prefix=["_", "."]).collect().to_arrow(),
    "polars, pattern": lambda store: pl.scan_parquet(f"{store}/**/*.parquet").collect().to_arrow(),
    "duckdb, pattern": lambda store: duckdb.sql(f"SELECT * FROM '{store}/**/*.parquet'").to_arrow_table(),
    "duckdb, folder": lambda store: duckdb.sql(f"SELECT * FROM read_parquet('{store}')").to_arrow_table(),
    "datasets, folder": lambda store: load_with_datasets(store, store),
    "datasets, pattern": lambda store: load_with_datasets(store, "parquet", data_files=f"{store}/**/*.parquet"),
}


def sort_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table in an order that does not depend on the order of the parts."""
    return sorted(table.to_pylist(), key=lambda row: (row["recipe"], row["split"], row["source"]))


@pytest.mark.parametrize("reader", READERS)
def test_a_library_reads_all_rows_from_the_folder_of_a_store(reader: str, store: str) -> None:
    table = READERS[reader](store)
    expected = read_table(store)
    assert sort_rows(table.select(expected.column_names)) == sort_rows(expected)
    assert table.column_names == expected.column_names


@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_reads_all_rows_from_the_folder_of_a_store(store: str) -> None:
    import ray

    rows = ray.data.read_parquet(store).take_all()
    assert [sorted(row) for row in rows] == [sorted(read_table(store).column_names)] * 9
    expected = {(row["recipe"], row["split"], row["source"]): row["image"] for row in read_table(store).to_pylist()}
    assert {(row["recipe"], row["split"], row["source"]): row["image"] for row in rows} == expected
