"""The reader of a member's metrics.json."""

import json
import math
from pathlib import Path

import pytest

from kp_ray.errors import StorageError
from kp_ray.training.logs import LogEntry, read_latest_entry, read_training_log


def write_log(folder: Path, *lines: str) -> str:
    (folder / "metrics.json").write_text("\n".join(lines))
    return str(folder)


def test_a_log_is_sorted_by_iteration_and_only_its_numbers_are_read(tmp_path: Path) -> None:
    folder = write_log(
        tmp_path,
        json.dumps({"iteration": 3, "total_loss": math.nan, "workers": 2, "note": "text", "flag": True}),
        json.dumps({"iteration": 1, "total_loss": 2.5, "val/rmse": 7.0, "val/pck_0.05": 0.5}),
    )
    first_entry, last_entry = read_training_log(folder)
    assert first_entry == LogEntry(1, {"total_loss": 2.5, "val/rmse": 7.0, "val/pck_0.05": 0.5})
    assert first_entry.evaluation == {"rmse": 7.0, "pck_0.05": 0.5}
    assert (last_entry.iteration, last_entry.values["workers"], last_entry.evaluation) == (3, 2, {})
    assert math.isnan(last_entry.values["total_loss"])
    assert last_entry.values.keys() == {"total_loss", "workers"}


def test_lines_of_one_iteration_are_merged_and_the_later_line_overrides(tmp_path: Path) -> None:
    folder = write_log(
        tmp_path, '{"iteration": 5, "total_loss": 3.0, "lr": 0.1}', '{"iteration": 5, "total_loss": 2.0}'
    )
    assert read_training_log(folder) == [LogEntry(5, {"total_loss": 2.0, "lr": 0.1})]


@pytest.mark.parametrize(
    "damaged_line",
    ['{"iteration": 9, "total', "5", "[1]", "{}", '{"iteration": 1e999}', '{"iteration": null}', "\N{NULL}"],
)
def test_a_damaged_line_is_skipped_or_refused(tmp_path: Path, damaged_line: str) -> None:
    folder = write_log(tmp_path, '{"iteration": 0, "total_loss": 1.0}', damaged_line)
    assert read_training_log(folder) == [LogEntry(0, {"total_loss": 1.0})]
    assert read_latest_entry(folder) == LogEntry(0, {"total_loss": 1.0})
    with pytest.raises(StorageError, match=r"metrics\.json: damaged .*: delete it") as caught:
        read_training_log(folder, fix="delete it")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_log_has_no_entries(tmp_path: Path) -> None:
    assert read_training_log(str(tmp_path), fix="delete it") == []
    assert read_latest_entry(str(tmp_path)) is None


def test_a_written_entry_is_read_back_unchanged(tmp_path: Path) -> None:
    entry = LogEntry(7, {"total_loss": 0.1, "val/rmse": 3.25, "workers": 2.0})
    (tmp_path / "metrics.json").write_text(entry.to_line())
    assert read_training_log(str(tmp_path)) == [entry]
