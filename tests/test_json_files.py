"""JSON files and JSON lines files: values written are read back; errors name a damaged file, its key and the fix."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from kp_ray.errors import StorageError
from kp_ray.json_files import append_json_line, parse_record, read_json, read_json_lines, write_json

FIX = "run it again"


def test_json_is_written_and_read_back(tmp_path: Path) -> None:
    path = str(tmp_path / "values.json")
    write_json(path, {"name": "사람", "value": [1, None]})
    assert read_json(path, FIX) == {"name": "사람", "value": [1, None]}
    assert "사람" in Path(path).read_text()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_the_error_for_damaged_json_names_its_path_and_the_fix(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=rf"values\.json: damaged \(.*\): {FIX}"):
        read_json(str(path), FIX)


def test_lines_are_appended_and_read_back(tmp_path: Path) -> None:
    path = str(tmp_path / "log.jsonl")
    assert read_json_lines(path, ["a"], FIX) == []
    append_json_line(path, {"a": 1})
    append_json_line(path, {"a": 2, "b": None})
    assert read_json_lines(path, ["a"], FIX) == [{"a": 1}, {"a": 2, "b": None}]


@pytest.mark.parametrize("line", ["{", "[]", '{"b": 1}'], ids=["no JSON", "no object", "no key"])
def test_the_error_for_a_damaged_line_names_its_path_and_the_fix(line: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(StorageError, match=rf"log\.jsonl: damaged \(.*\): {FIX}"):
        read_json_lines(str(path), ["a"], FIX)


@dataclass(frozen=True)
class Record:
    """The content of a file."""

    name: str
    sizes: tuple[int, ...]


def test_a_record_is_built_from_the_values_of_a_file() -> None:
    assert parse_record(Record, {"name": "a", "sizes": [1, 2]}, "a.json", FIX) == Record("a", (1, 2))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"name": "a"}, "sizes: Field required"),
        ({"name": "a", "sizes": [1, "x"]}, "sizes.1: Input should be a valid integer"),
        (5, "Input should be"),
    ],
)
def test_the_error_for_a_wrong_value_names_the_path_the_key_and_the_fix(values: object, reason: str) -> None:
    with pytest.raises(StorageError, match=rf"^a\.json: damaged \({reason}.*\): {FIX}$"):
        parse_record(Record, values, "a.json", FIX)
