"""Temporary folders that processes of a node share, and that disappear when the last of them ends or is killed.

Each process holds a lock on the folder's lock file, which the system releases however the process ends, and starts a
guard: this file as a script, which waits until nobody holds a lock and then deletes the folder. The script imports only
the standard library, so it starts in milliseconds.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def shared_temp_folder(name: str) -> Iterator[Path]:
    """Create a folder on this node's disk; it is deleted with its content a moment after its last use.

    Every call starts a process of 10 MB that lives until nobody uses the folder.

    Args:
        name: processes of a user that give the same name share a folder.

    Yields:
        The folder, which may hold files of other processes.

    Raises:
        StorageError: the folder cannot be created or locked, or another user owns the folder of all shared folders and
            could replace files in it.
    """
    parent = Path(tempfile.gettempdir(), f"kp_ray-{os.getuid()}")
    try:
        folder, lock_file = _join_folder(parent, name)
    except (OSError, subprocess.SubprocessError) as error:
        from kp_ray.errors import StorageError, one_line  # the script cannot import kp_ray

        raise StorageError(
            f"{parent}: cannot hold temporary files ({one_line(error)}): set TMPDIR to a local folder of your own"
        ) from error
    with lock_file:
        yield folder


def _join_folder(parent: Path, name: str) -> tuple[Path, IO[str]]:
    """Create or join a folder; return it and its lock file, whose shared lock says that this process uses the folder.

    Raises:
        OSError: a folder or file cannot be created or locked.
        SubprocessError: the guard does not start.
    """
    parent.mkdir(mode=0o700, exist_ok=True)
    if parent.lstat().st_uid != os.getuid():  # not `stat`: the owner of a link could point it elsewhere later
        raise PermissionError("it belongs to another user")
    lock_path = parent / f"{name}.users"
    lock_file = _open_lock_file(lock_path)
    try:
        command = [sys.executable, "-I", "-S", __file__, str(lock_path)]
        null = subprocess.DEVNULL
        # In a session of its own, the guard does not receive the signals of a terminal, such as Ctrl-C.
        subprocess.run(command, stdin=null, stdout=null, stderr=null, start_new_session=True, check=True)  # noqa: S603
        folder = lock_path.with_suffix("")
        folder.mkdir(exist_ok=True)
    except BaseException:
        lock_file.close()
        raise
    return folder, lock_file


def _open_lock_file(lock_path: Path) -> IO[str]:
    """Open a folder's lock file with a shared lock."""
    while True:
        lock_file: IO[str] = open(lock_path, "a+")  # noqa: SIM115  (stays open; locks on NFS need read and write mode)
        try:
            fcntl.flock(lock_file, fcntl.LOCK_SH)
        except OSError:
            lock_file.close()
            raise
        if _is_same_file(lock_file, lock_path):
            return lock_file
        lock_file.close()  # a guard has deleted the file meanwhile


def _is_same_file(file: IO[str], path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _delete_after_use(lock_path: Path, *, wait: bool) -> None:
    """Delete a folder and its lock file when nobody uses the folder; without `wait`, only if that is so now.

    The lock file of a folder that cannot be deleted wholly stays, so that a later guard tries again.
    """
    with contextlib.suppress(OSError), open(lock_path, "r+") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if _is_same_file(lock_file, lock_path):
            folder = lock_path.with_suffix("")
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                lock_path.unlink()


def _guard(lock_path: Path) -> None:
    """Delete a folder after its last use, and then others whose guards were killed."""
    _delete_after_use(lock_path, wait=True)
    for other_lock_path in lock_path.parent.glob("*.users"):
        _delete_after_use(other_lock_path, wait=False)


# A Ray worker kills its child processes when it ends. The guard is the child of a child that ends at once.
if __name__ == "__main__" and os.fork() == 0:
    _guard(Path(sys.argv[1]))
