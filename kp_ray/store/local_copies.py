"""Copies of a remote store's parts on a node's disk, shared by the training workers of the node."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.fs as pafs

from kp_ray.fingerprint import digest
from kp_ray.storage import filesystem
from kp_ray.temp_folders import shared_temp_folder


@contextlib.contextmanager
def local_copies(store: str, max_bytes: int | None = None) -> Iterator[Callable[[str], str]]:
    """Copy parts of a remote store to this node's disk when they are first read.

    Processes that use the same store share its copies, which disappear when the last of these processes ends.

    Args:
        store: local path or URL of the store.
        max_bytes: maximum total size of the copies; None allows half of the free space and the copies together.

    Yields:
        A function that converts a part's path to the path to read it from. It returns paths of a local store unchanged.

    Raises:
        StorageError: see `shared_temp_folder`.
    """
    if "://" not in store or store.startswith("file://"):
        yield lambda path: path
        return
    with shared_temp_folder(f"parts-{digest(store)}") as folder:
        yield PartCopies(folder, max_bytes).locate


class PartCopies:
    """A folder of copies, which several processes and threads can fill.

    Every copy has a lock file of the same size, which is sparse: the sizes of the lock files are the space that is
    taken, also by copies that are still being made.

    Args:
        folder: receives the copies.
        max_bytes: maximum total size of the copies; None: half of the free space and the copies together.
    """

    def __init__(self, folder: Path, max_bytes: int | None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.max_bytes = self._half_of_the_space() if max_bytes is None else max_bytes
        self.is_full = False

    def locate(self, path: str) -> str:
        """Return the path of a part's copy, made by the first call; return `path` if the part cannot be copied."""
        copy_path = self.folder / f"{digest(path)}.parquet"
        if not copy_path.exists() and not self.is_full:
            with contextlib.suppress(OSError), open(copy_path.with_suffix(".lock"), "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not copy_path.exists():
                    self._copy_part(path, copy_path, lock)
        return str(copy_path) if copy_path.exists() else path

    def _copy_part(self, path: str, copy_path: Path, lock: IO[str]) -> None:
        """Copy a part if there is room. A failure leaves no copy, so the caller reads the part from the store."""
        partial_file = copy_path.with_suffix(".partial")
        try:
            fs, inner_path = filesystem(path)
            if not self._reserve(fs.get_file_info(inner_path).size or 0, lock):
                return
            local_fs = pafs.LocalFileSystem()
            pafs.copy_files(inner_path, str(partial_file), source_filesystem=fs, destination_filesystem=local_fs)
            partial_file.replace(copy_path)
        except (OSError, pa.ArrowException) as error:
            partial_file.unlink(missing_ok=True)
            os.truncate(lock.fileno(), 0)
            self.is_full = self.is_full or (isinstance(error, OSError) and error.errno == errno.ENOSPC)

    def _reserve(self, num_bytes: int, lock: IO[str]) -> bool:
        """Give a part's lock file the part's size, and return True, if the copy fits below the limit."""
        with open(self.folder / "reservations", "a") as reservations:
            fcntl.flock(reservations, fcntl.LOCK_EX)
            os.truncate(lock.fileno(), 0)  # a killed process may have left a reservation
            if self._reserved_bytes() + num_bytes > self.max_bytes:
                self.is_full = True
                return False
            os.truncate(lock.fileno(), num_bytes)
            return True

    def _half_of_the_space(self) -> int:
        return (shutil.disk_usage(self.folder).free + self._reserved_bytes()) // 2

    def _reserved_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*.lock"))
