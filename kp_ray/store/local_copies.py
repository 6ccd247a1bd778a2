"""Copies of a remote store's parts on a node's disk, shared by the training workers of the node."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.fs as pafs

from kp_ray.fingerprint import digest
from kp_ray.storage import filesystem


@contextlib.contextmanager
def local_copies(store: str, max_bytes: int | None = None) -> Iterator[Callable[[str], str]]:
    """Copy parts of a remote store to this node's disk when they are first read.

    Processes that use the same store share its copies, and the last of these processes removes the copies. The next
    process of the same user removes copies that killed processes left.

    Args:
        store: local path or URL of the store.
        max_bytes: maximum total size of the copies; None allows half of the free space.

    Yields:
        A function that converts a part's path to the path to read it from. It returns paths of a local store unchanged.
    """
    if "://" not in store or store.startswith("file://"):
        yield lambda path: path
        return
    parent = Path(tempfile.gettempdir(), f"kp_ray-parts-{os.getuid()}")
    parent.mkdir(mode=0o700, exist_ok=True)
    if parent.stat().st_uid != os.getuid():  # another user could replace the copies
        yield lambda path: path
        return
    for existing_path in parent.glob("*.users"):
        with contextlib.suppress(OSError), open(existing_path) as existing_file:
            _remove_if_unused(existing_path, existing_file)
    users_path = parent / f"{digest(store)}.users"
    users_file = _register(users_path)
    try:
        limit = shutil.disk_usage(parent).free // 2 if max_bytes is None else max_bytes
        yield PartCopies(users_path.with_suffix(""), limit).locate
    finally:
        with users_file:
            _remove_if_unused(users_path, users_file)


def _register(users_path: Path) -> IO[str]:
    """Open the lock file of a store's copies, and hold a shared lock on it while this process uses the copies."""
    import fcntl

    while True:
        users_file: IO[str] = open(users_path, "a")  # noqa: SIM115  (stays open while the copies are used)
        fcntl.flock(users_file, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(users_file.fileno()).st_ino == users_path.stat().st_ino:
                return users_file
        users_file.close()  # another process removed the file meanwhile


def _remove_if_unused(users_path: Path, users_file: IO[str]) -> None:
    """Release this process's lock; remove the copies if no other process holds one."""
    import fcntl

    fcntl.flock(users_file, fcntl.LOCK_UN)
    try:
        fcntl.flock(users_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    shutil.rmtree(users_path.with_suffix(""), ignore_errors=True)
    users_path.unlink(missing_ok=True)


class PartCopies:
    """A folder of copies, which several processes and threads can fill.

    Args:
        folder: receives the copies.
        max_bytes: maximum total size of the copies.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.max_bytes = folder, max_bytes
        self.is_full = False

    def locate(self, path: str) -> str:
        """Copy a part if it is not copied yet; return the path of the copy, or `path` if there is no copy."""
        import fcntl

        copy = self.folder / f"{digest(path)}.parquet"
        if not copy.exists() and not self.is_full:
            with open(copy.with_suffix(".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not copy.exists():
                    self._copy(path, copy)
        return str(copy) if copy.exists() else path

    def _copy(self, path: str, copy: Path) -> None:
        """Copy a part if there is room. A failure leaves no copy, so the caller reads the part from the store."""
        partial_file = copy.with_suffix(".partial")
        try:
            fs, inner_path = filesystem(path)
            used_bytes = sum(_size(entry) for entry in os.scandir(self.folder))
            if used_bytes + (fs.get_file_info(inner_path).size or 0) > self.max_bytes:
                self.is_full = True
                return
            local_fs = pafs.LocalFileSystem()
            pafs.copy_files(inner_path, str(partial_file), source_filesystem=fs, destination_filesystem=local_fs)
            partial_file.replace(copy)
        except (OSError, pa.ArrowException) as error:
            partial_file.unlink(missing_ok=True)
            self.is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC


def _size(entry: "os.DirEntry[str]") -> int:
    """Return the size of a file; 0 if another process has just renamed it."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0
