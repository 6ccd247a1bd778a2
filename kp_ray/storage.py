"""Read, write, list, move and delete files at local paths and URLs; lock folders for one writer or several readers.

A written file appears whole or not at all. Failures of the storage raise `StorageError`, except in `open_input`.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from kp_ray.errors import RunStateError, StorageError, one_line
from kp_ray.network import require_answer

URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s]*:[^/\s]*@|(?<=http://)[^/\s]+@|(?<=https://)[^/\s]+@")
"""Pattern of the `user:password@` in a URL; web addresses can also begin with a token and `@`."""
PIECE_BYTES = 1 << 20
"""Bytes per read of a file that may be too large for memory."""


def absolute_path(path: str) -> str:
    """Make a local path absolute; return a URL unchanged.

    Raises:
        ValueError: the path is empty or not UTF-8, or contains a null character or credentials.
    """
    if not path or "\0" in path:
        raise ValueError("a path is expected")
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the path is not UTF-8: rename the file or folder") from error
    if URL_CREDENTIALS.search(path):
        raise ValueError("credentials belong in the environment (AWS_ACCESS_KEY_ID, ...), not in a path")
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def join(base: str, *names: str) -> str:
    """Append names to a local path or URL, with one slash between them."""
    return "/".join([base.rstrip("/"), *names])


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a local path or URL, and the path inside that file system.

    The path after a URL's host or bucket is not decoded, so names may contain blanks, `#` and `%`. Credentials, region
    and endpoint of `s3://` come only from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL and so on).

    Raises:
        StorageError: the path is empty, the URL's scheme is not supported, or the storage does not answer.
    """
    scheme, separator, location = path.partition("://")
    if not separator:
        try:
            return pafs.LocalFileSystem(), absolute_path(path)
        except ValueError as error:
            raise StorageError(f"{path!r}: {error}") from error
    host, slash, inner_path = location.partition("/")
    try:
        fs, root = _connect(f"{scheme}://{host}{slash}")
    except (ValueError, OSError) as error:
        raise StorageError(f"{path}: cannot be reached: {one_line(error)}") from error
    return fs, f"{root.rstrip('/')}{slash}{inner_path}"


@lru_cache(maxsize=16)
def _connect(root: str) -> tuple[pafs.FileSystem, str]:
    """Connect to a bucket or host; cached, because a new client takes 60 ms and opens connections of its own."""
    if root.startswith("s3://"):
        variables = [name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)]
        if variables:
            require_answer(os.environ[variables[0]], variables[0])
    fs, inner_path = pafs.FileSystem.from_uri(root)
    return fs, str(inner_path)


def exists(path: str) -> bool:
    """Return whether a file or folder exists.

    Raises:
        StorageError: the storage does not answer or denies access.
    """
    fs, inner_path = filesystem(path)
    try:
        return bool(fs.get_file_info(inner_path).type != pafs.FileType.NotFound)
    except OSError as error:
        raise StorageError(f"{path}: cannot be reached: {one_line(error)}") from error


def read_bytes(path: str) -> bytes:
    """Read a local or remote file.

    Raises:
        StorageError: the file does not exist or cannot be read.
    """
    fs, inner_path = filesystem(path)
    try:
        with fs.open_input_file(inner_path) as stream:
            return bytes(stream.readall())
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else one_line(error)
        raise StorageError(f"{path}: {reason}") from error


@contextlib.contextmanager
def open_input(path: str) -> Iterator[pa.NativeFile]:
    """Open a local or remote file for random access.

    Raises:
        OSError: the file does not exist or cannot be read; `parquet_errors` turns this into a `StorageError`.
    """
    fs, inner_path = filesystem(path)
    with fs.open_input_file(inner_path) as stream:
        yield stream


def hash_file(path: str) -> tuple[int, str]:
    """Return a file's size in bytes and its hexadecimal SHA-256, reading `PIECE_BYTES` at a time.

    Raises:
        StorageError: the file does not exist or cannot be read.
    """
    fs, inner_path = filesystem(path)
    num_bytes, sha256 = 0, hashlib.sha256()
    try:
        with fs.open_input_stream(inner_path) as stream:
            while piece := stream.read(PIECE_BYTES):
                num_bytes += len(piece)
                sha256.update(piece)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {one_line(error)}") from error
    return num_bytes, sha256.hexdigest()


def write_bytes(path: str, content: bytes) -> None:
    """Write a local or remote file so that a reader sees all of it or nothing.

    Raises:
        StorageError: the storage is full, does not answer, or denies access.
    """
    fs, inner_path = filesystem(path)
    try:
        if isinstance(fs, pafs.LocalFileSystem):
            _replace_file(Path(inner_path), content)
        else:
            # Write only once: closing the stream publishes the object even after an error between two writes.
            with fs.open_output_stream(inner_path) as stream:
                stream.write(content)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {one_line(error)}") from error


def _replace_file(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # No process number: the pods of a cluster can have equal ones, and share this folder.
    partial_file = target.with_name(f".{target.name}.{uuid4().hex}.partial")
    try:
        partial_file.write_bytes(content)
        partial_file.replace(target)
    finally:
        partial_file.unlink(missing_ok=True)


def delete_file(path: str) -> None:
    """Delete a local or remote file.

    Raises:
        StorageError: the file does not exist, or the storage denies access.
    """
    fs, inner_path = filesystem(path)
    try:
        fs.delete_file(inner_path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be deleted: {one_line(error)}") from error


def move_file(path: str, target: str) -> None:
    """Move a file to a target on the same disk or in the same bucket; create the target's folder.

    Raises:
        StorageError: the file does not exist, or the storage is full or denies access.
    """
    (fs, inner_path), (_, inner_target) = filesystem(path), filesystem(target)
    try:
        if isinstance(fs, pafs.LocalFileSystem):
            Path(inner_target).parent.mkdir(parents=True, exist_ok=True)
        fs.move(inner_path, inner_target)
    except OSError as error:
        raise StorageError(f"{path}: cannot be moved to {target}: {one_line(error)}") from error


def delete_folder(path: str) -> None:
    """Delete a folder and its content; do nothing if the folder does not exist.

    Raises:
        StorageError: the storage denies access.
    """
    fs, inner_path = filesystem(path)
    try:
        fs.delete_dir(inner_path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{path}: cannot be deleted: {one_line(error)}") from error


def is_local(path: str) -> bool:
    """Return whether a path is on a local or mounted file system, not on object storage."""
    return isinstance(filesystem(path)[0], pafs.LocalFileSystem)


def file_sizes(folder: str) -> dict[str, int]:
    """Return the size in bytes of each file in a folder and its sub-folders, by path relative to the folder.

    Raises:
        StorageError: there is no such folder.
    """
    return {name: info.size for name, info in file_infos(folder).items()}


def file_infos(folder: str) -> dict[str, pafs.FileInfo]:
    """Return pyarrow's information on each file in a folder and its sub-folders, by path relative to the folder.

    Raises:
        StorageError: there is no such folder, or a file's name is not UTF-8.
    """
    fs, inner_path = filesystem(folder)
    prefix = len(inner_path.rstrip("/")) + 1
    try:
        listing = fs.get_file_info(pafs.FileSelector(inner_path, recursive=True))
        return {info.path[prefix:]: info for info in listing if info.type == pafs.FileType.File}
    except UnicodeDecodeError as error:
        raise StorageError(f"{folder}: holds a file whose name is not UTF-8: rename the file") from error
    except OSError as error:
        reasons = {FileNotFoundError: "there is no such folder", NotADirectoryError: "is a file: give its folder"}
        raise StorageError(f"{folder}: {reasons.get(type(error)) or one_line(error)}") from error


def writer_lock(folder: str) -> contextlib.AbstractContextManager[None]:
    """Lock a local folder against other writers and readers; the lock of a killed process ends with the process.

    Object storage has no locks, so a second process is not refused there (docs/store.md).

    Raises:
        RunStateError: another process holds a lock.
        StorageError: the folder cannot be written, or the file system has no locks.
    """
    return _lock(folder, is_shared=False)


def reader_lock(folder: str) -> contextlib.AbstractContextManager[None]:
    """Lock a local folder against writers; several readers can hold the lock.

    A folder is not locked if it does not exist, if this process cannot write a lock file there, or if its file system
    has no locks.

    Raises:
        RunStateError: another process writes there.
    """
    return _lock(folder, is_shared=True)


@contextlib.contextmanager
def _lock(folder: str, *, is_shared: bool) -> Iterator[None]:
    _, root = filesystem(folder)
    if not is_local(folder):
        yield
        return
    import fcntl

    with contextlib.ExitStack() as stack:
        path = Path(root) / ".lock"
        try:
            if not is_shared:
                path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(path, "r" if is_shared and path.exists() else "w+"))
            fcntl.flock(lock, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunStateError(f"{folder}: another process is using this folder: wait for it or stop it") from error
        except OSError as error:
            if not is_shared:
                raise StorageError(f"{folder}: cannot be locked: {one_line(error)}: choose another run_dir") from error
        yield


@contextlib.contextmanager
def parquet_errors(path: str, fix: str) -> Iterator[None]:
    """Turn the errors of reading a Parquet file into a `StorageError` whose message ends with `fix`."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise StorageError(f"{path}: there is no such file: {fix}") from error
        if isinstance(error, OSError) and error.errno:  # the storage failed; the content may be intact
            raise StorageError(f"{path}: cannot be read: {one_line(error)}") from error
        if not is_local(path):
            hash_file(path)  # raises an error if the storage failed; pyarrow's errors of S3 have no errno
        raise StorageError(f"{path}: damaged: {one_line(error)[:200]}: {fix}") from error


def read_parquet(path: str, fix: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one local or remote Parquet file.

    Args:
        path: the file; its page checksums are verified, if it has any.
        fix: what the user should do about a missing or damaged file, e.g. "run verify, then augment".
        columns: names of the columns to read; None reads all.

    Raises:
        StorageError: the file does not exist, cannot be read or is damaged.
    """
    fs, inner_path = filesystem(path)
    with parquet_errors(path, fix), fs.open_input_file(inner_path) as stream:
        table = pq.ParquetFile(stream, page_checksum_verification=True).read(columns=columns)
        table.validate(full=True)
        return table


def write_parquet(path: str, table: pa.Table) -> None:
    """Write a table with page checksums to a Parquet file, which appears whole or not at all, see `write_bytes`."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    write_bytes(path, sink.getvalue().to_pybytes())


def read_text(path: str) -> str | None:
    """Read a text file; return None if it does not exist. Bytes that are not UTF-8 are replaced.

    Raises:
        StorageError: the file cannot be read.
    """
    return read_bytes(path).decode("utf-8-sig", errors="replace") if exists(path) else None


def list_folders(path: str) -> list[str]:
    """Return the sorted names of a folder's immediate sub-folders; an empty list if the folder does not exist.

    Raises:
        StorageError: the storage does not answer or denies access.
    """
    fs, inner_path = filesystem(path)
    try:
        infos = fs.get_file_info(pafs.FileSelector(inner_path, allow_not_found=True))
    except OSError as error:
        raise StorageError(f"{path}: cannot be reached: {one_line(error)}") from error
    return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)
