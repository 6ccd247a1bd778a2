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
    if parent.stat().st_uid != os.getuid():  # make no copies, because the owner of the folder could replace them
        yield lambda path: path
        return
    for other_lock_path in parent.glob("*.users"):
        with contextlib.suppress(OSError), open(other_lock_path) as other_lock_file:
            _remove_if_unused(other_lock_path, other_lock_file)
    lock_path = parent / f"{digest(store)}.users"
    lock_file = _open_lock_file(lock_path)
    try:
        limit = shutil.disk_usage(parent).free // 2 if max_bytes is None else max_bytes
        yield PartCopies(lock_path.with_suffix(""), limit).locate
    finally:
        with lock_file:
            _remove_if_unused(lock_path, lock_file)


def _open_lock_file(lock_path: Path) -> IO[str]:
    """Open the lock file of a store's copies with a shared lock, which says that this process uses the copies."""
    import fcntl

    while True:
        lock_file: IO[str] = open(lock_path, "a")  # noqa: SIM115  (stays open while the copies are used)
        fcntl.flock(lock_file, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(lock_file.fileno()).st_ino == lock_path.stat().st_ino:
                return lock_file
        lock_file.close()  # another process removed the file meanwhile


def _remove_if_unused(lock_path: Path, lock_file: IO[str]) -> None:
    """Release the lock of this process; remove the copies and the lock file unless another process holds a lock."""
    import fcntl

    fcntl.flock(lock_file, fcntl.LOCK_UN)
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
    lock_path.unlink(missing_ok=True)


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
        """Return the path of a part's copy, made by the first call; return `path` if the part cannot be copied."""
        import fcntl

        copy_path = self.folder / f"{digest(path)}.parquet"
        if not copy_path.exists() and not self.is_full:
            with open(copy_path.with_suffix(".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not copy_path.exists():
                    self._copy_part(path, copy_path)
        return str(copy_path) if copy_path.exists() else path

    def _copy_part(self, path: str, copy_path: Path) -> None:
        """Copy a part if there is room. A failure leaves no copy, so the caller reads the part from the store."""
        partial_file = copy_path.with_suffix(".partial")
        try:
            fs, inner_path = filesystem(path)
            used_bytes = sum(_size(entry) for entry in os.scandir(self.folder))
            if used_bytes + (fs.get_file_info(inner_path).size or 0) > self.max_bytes:
                self.is_full = True
                return
            local_fs = pafs.LocalFileSystem()
            pafs.copy_files(inner_path, str(partial_file), source_filesystem=fs, destination_filesystem=local_fs)
            partial_file.replace(copy_path)
        except (OSError, pa.ArrowException) as error:
            partial_file.unlink(missing_ok=True)
            self.is_full = self.is_full or (isinstance(error, OSError) and error.errno == errno.ENOSPC)


def _size(entry: "os.DirEntry[str]") -> int:
    """Return the size of a file; 0 if another process has just renamed it."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return 0
