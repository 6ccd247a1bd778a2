"""Copies of a remote store's parts on a node's disk, shared by the training workers of the node."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from kp_ray.fingerprint import digest
from kp_ray.storage import filesystem
from kp_ray.temp_folders import shared_temp_folder


@contextlib.contextmanager
def local_copies(store: str, max_bytes: int | None = None) -> Iterator[Callable[[str], str]]:
    """Copy parts of a remote store to this node's disk when they are first read.

    Processes that use the same store share its copies, which are deleted when the last of these processes ends.

    Args:
        store: local path or URL of the store.
        max_bytes: maximum total size of the copies; None allows half of the free space.

    Yields:
        A function that converts a part's path to the path to read it from. It returns paths of a local store unchanged.
    """
    if "://" not in store or store.startswith("file://"):
        yield lambda path: path
        return
    with shared_temp_folder(f"parts-{digest(store)}") as folder:
        limit = shutil.disk_usage(folder).free // 2 if max_bytes is None else max_bytes
        yield PartCopies(folder, limit).locate


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
