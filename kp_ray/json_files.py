"""Read and write JSON files and JSON lines files; a damaged file ends in one line that says what to do."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from kp_ray.errors import StorageError, one_line
from kp_ray.storage import exists, read_bytes, write_bytes

_T = TypeVar("_T")
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # built once per type, because that takes long


def read_json(path: str, fix: str) -> dict[str, Any]:
    """Read the JSON object in a local or remote file.

    Args:
        path: the file.
        fix: what the user should do about a damaged file; the message ends with it.

    Raises:
        StorageError: the file does not exist, cannot be read, or holds no JSON object.
    """
    content = read_bytes(path)
    try:
        values = json.loads(content)
    except ValueError as error:
        raise StorageError(f"{path}: damaged ({one_line(error)}): {fix}") from error
    return require_keys(values, path, (), fix)


def write_json(path: str, value: Any) -> None:
    """Write a value to a JSON file, which appears whole or not at all.

    Raises:
        StorageError: see `write_bytes`.
    """
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def append_json_line(path: str, value: Mapping[str, Any]) -> None:
    """Append a line to a JSON lines file, rewriting the whole file: a reader never sees half a line.

    Raises:
        StorageError: see `write_bytes`.
    """
    content = read_bytes(path) if exists(path) else b""
    write_bytes(path, content + (json.dumps(value) + "\n").encode())


def read_json_lines(path: str, keys: Sequence[str], fix: str) -> list[dict[str, Any]]:
    """Read a JSON lines file; return an empty list if the file does not exist.

    Args:
        path: the file.
        keys: keys that every line must have.
        fix: what the user should do about a damaged file; the message ends with it.

    Raises:
        StorageError: a line is not a JSON object with these keys, or the file cannot be read.
    """
    lines = read_bytes(path).splitlines() if exists(path) else []
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError as error:
        raise StorageError(f"{path}: damaged ({one_line(error)}): {fix}") from error
    return [require_keys(row, path, keys, fix) for row in rows]


def require_keys(row: Any, path: str, keys: Sequence[str], fix: str) -> dict[str, Any]:
    """Return `row` if it is a JSON object that has all `keys`.

    Raises:
        StorageError: `row` is not an object or lacks a key; the message names `path` and ends with `fix`.
    """
    if not isinstance(row, dict):
        raise StorageError(f"{path}: damaged (not a JSON object): {fix}")
    missing_keys = [key for key in keys if key not in row]
    if missing_keys:
        raise StorageError(f"{path}: damaged (key {missing_keys[0]!r} is missing): {fix}")
    return row


def parse_record(record_type: type[_T], values: Any, path: str, fix: str) -> _T:
    """Build a record, e.g. a dataclass, from the JSON values of a file.

    Raises:
        StorageError: a value is missing or has another type; the message names `path` and the key, and ends with `fix`.
    """
    try:
        record: _T = _adapter(record_type).validate_python(values)
    except ValidationError as error:
        first_error = error.errors()[0]
        place = f"{'.'.join(map(str, first_error['loc']))}: " if first_error["loc"] else ""
        raise StorageError(f"{path}: damaged ({place}{one_line(first_error['msg'])}): {fix}") from error
    return record
