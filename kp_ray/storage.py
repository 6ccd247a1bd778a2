"""Local paths and URLs: bytes, JSON, JSON lines, Parquet, whole-or-nothing writes, the writer's lock."""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kp_ray.errors import InputError, one_line

SECRET = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")
"""The `user:password@` of a URL."""


def absolute_path(path: str) -> str:
    if not path or "\0" in path:
        raise ValueError("a path is expected, or null for none")
    if SECRET.search(path):
        raise ValueError("credentials belong in the environment (AWS_ACCESS_KEY_ID, ...), not in a path")
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def join(base: str, *parts: str) -> str:
    """`base/part/...` for a local path or a URL."""
    return "/".join([base.rstrip("/"), *parts])


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a local path or URL, and the path inside it.

    What follows a URL's host or bucket is taken as it is: names with blanks, `#` or `%` are names like others.
    Credentials, region and endpoint of `s3://` come from the environment alone (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL).

    Raises:
        InputError: the URL's scheme is not known here, or the path is empty.
    """
    scheme, mark, rest = path.partition("://")
    if not mark:
        try:
            return pafs.LocalFileSystem(), absolute_path(path)
        except ValueError as error:
            raise InputError(f"{path!r}: {error}") from error
    host, slash, inside = rest.partition("/")
    try:
        fs, root = _remote(f"{scheme}://{host}{slash}")
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be reached: {one_line(error)}") from error
    return fs, f"{root.rstrip('/')}{slash}{inside}"


@lru_cache(maxsize=16)
def _remote(root: str) -> tuple[pafs.FileSystem, str]:
    """Made once: a client takes 60 ms, and each has connections of its own."""
    fs, inner = pafs.FileSystem.from_uri(root)
    return fs, str(inner)


def exists(path: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        InputError: the storage does not answer, or refuses.
    """
    fs, inner = filesystem(path)
    try:
        return bool(fs.get_file_info(inner).type != pafs.FileType.NotFound)
    except OSError as error:
        raise InputError(f"{path}: cannot be reached: {one_line(error)}") from error


def read_bytes(path: str) -> bytes:
    """The bytes of a local or remote file.

    Raises:
        InputError: it is not there or cannot be read.
    """
    fs, inner = filesystem(path)
    try:
        with fs.open_input_file(inner) as stream:
            return bytes(stream.readall())
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else one_line(error)
        raise InputError(f"{path}: {reason}") from error


def read_json(path: str, fix: str) -> dict[str, Any]:
    """The JSON object that a local or remote file holds.

    Raises:
        InputError: it is not there, cannot be read, or is damaged: `fix` tells what to do then.
    """
    content = read_bytes(path)
    try:
        values = json.loads(content)
    except ValueError as error:
        raise InputError(f"{path}: damaged ({one_line(error)}): {fix}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: damaged (not a JSON object): {fix}")
    return values


def write_bytes(path: str, content: bytes) -> None:
    """Write a local or remote file so that a reader sees all of it or nothing.

    Raises:
        InputError: the remote storage does not answer, or refuses.
    """
    fs, inner = filesystem(path)
    if isinstance(fs, pafs.LocalFileSystem):
        target = Path(inner)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return
    try:
        # An object appears when its stream is closed, also when an exception closes it: so all of it in one write.
        with fs.open_output_stream(inner) as stream:
            stream.write(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {one_line(error)}") from error


def file_sizes(folder: str) -> dict[str, int]:
    """The files of a folder, by path inside it, with their sizes in bytes.

    Raises:
        InputError: there is no such folder.
    """
    return {name: info.size for name, info in file_infos(folder).items()}


def file_infos(folder: str) -> dict[str, pafs.FileInfo]:
    """The files of a folder, by path inside it, with their sizes and times.

    Raises:
        InputError: there is no such folder.
    """
    fs, inner = filesystem(folder)
    try:
        listing = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise InputError(f"{folder}: {'there is no such folder' if missing else one_line(error)}") from error
    prefix = len(inner.rstrip("/")) + 1
    return {info.path[prefix:]: info for info in listing if info.type == pafs.FileType.File}


@contextlib.contextmanager
def writer_lock(folder: str) -> Iterator[None]:
    """Refuse a second writer of a local folder; the lock goes with its process, however that ends.

    Raises:
        InputError: another process holds it, or the file system has no locks.
    """
    fs, root = filesystem(folder)
    if not isinstance(fs, pafs.LocalFileSystem):
        yield  # no locks there: see docs/store.md
        return
    import fcntl

    Path(root).mkdir(parents=True, exist_ok=True)
    with open(Path(root) / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another process is writing here; wait for it or stop it") from error
        except OSError as error:
            raise InputError(f"{folder}: cannot be locked: {one_line(error)}; choose a run_dir that can be") from error
        yield


@contextlib.contextmanager
def _reading(path: str, mend: str = "run verify, then augment") -> Iterator[None]:
    """What goes wrong in reading a Parquet file, as one line that says how to `mend` it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{path}: there is no such file; {mend}") from error
        if isinstance(error, OSError) and error.errno:  # the storage's, not the content's
            raise InputError(f"{path}: cannot be read: {one_line(error)}") from error
        raise InputError(f"{path}: damaged: {one_line(error)[:200]}; {mend}") from error


def read_parquet(path: str, columns: Sequence[str] | None = None, mend: str = "run verify, then augment") -> pa.Table:
    """The table of one local or remote Parquet file.

    Args:
        path: a part of a store, or another file that kp_ray wrote.
        columns: None: all.
        mend: what the message tells to do about a damaged file.

    Raises:
        InputError: it is not there, or damaged.
    """
    fs, inner = filesystem(path)
    with _reading(path, mend), fs.open_input_file(inner) as stream:
        table = pq.ParquetFile(stream, page_checksum_verification=True).read(columns=columns)
        table.validate(full=True)
        return table


def write_parquet(path: str, table: pa.Table) -> None:
    """Write a local or remote Parquet file, whole or not at all, whose pages carry checksums."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    write_bytes(path, sink.getvalue().to_pybytes())


def read_json_lines(path: str, keys: Sequence[str], fix: str) -> list[dict[str, Any]]:
    """The lines of a JSON lines file, each with these keys; none if there is no file.

    Raises:
        InputError: it is damaged.
    """
    lines = read_bytes(path).splitlines() if exists(path) else []
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path}: damaged ({one_line(error)}): {fix}") from error
    return [require_keys(row, path, keys, fix) for row in rows]


def require_keys(row: Any, path: str, keys: Sequence[str], fix: str) -> dict[str, Any]:
    missing = [key for key in keys if key not in row] if isinstance(row, dict) else ["JSON object"]
    if missing:
        raise InputError(f"{path}: damaged (no {missing[0]}): {fix}")
    return dict(row)


def read_text(path: str) -> str | None:
    return read_bytes(path).decode("utf-8-sig", errors="replace") if exists(path) else None


def list_folders(path: str) -> list[str]:
    fs, inner = filesystem(path)
    found = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)
