"""Control the lines on a user's screen: hide a harmless warning of Ray's, and print a line if the process is killed."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

ACTOR_POOL_WARNING = "constructor arguments in the object store and max_restarts > 0"
"""Part of a line that Ray 2.60 prints for every actor pool of Ray Data (ray-project/ray issue 53727).

The line warns that an actor cannot restart if its constructor's arguments are lost. In that case kp_ray prints one
line and ends, and the same command resumes the run.
"""
_FILTER = """
while IFS= read -r line || [ -n "$line" ]; do
  case $line in *"$1"*) ;; *) printf '%s\\n' "$line" ;; esac
done
"""
_SUDDEN_END = "kp-ray: Ray or another process ended this run (raylet or head is gone); the same command resumes the run"
FLUSH_S = 1.0
"""Seconds to wait for the end of the shell, which prints the last lines. A child process that outlives this process can
hold the pipe open, and then the shell does not end."""


@contextlib.contextmanager
def hide_actor_pool_warning() -> Iterator[None]:
    """Remove `ACTOR_POOL_WARNING` from the stderr of this process; every other line is printed.

    Ray's C++ code writes the line to file descriptor 2, which no logging setting reaches; RAY_BACKEND_LOG_LEVEL would
    hide real errors too. A shell copies every other line to the screen: unlike a thread, a shell still prints the last
    lines of a process that is killed. `sys.stderr` bypasses the shell, so that progress bars still see a terminal.
    """
    screen_fd, python_stderr = os.dup(2), sys.stderr
    read_end, write_end = os.pipe()
    command = ["sh", "-c", _FILTER, "sh", ACTOR_POOL_WARNING]
    shell = subprocess.Popen(command, stdin=read_end, stdout=screen_fd, start_new_session=True)  # noqa: S603  (fixed text)
    os.dup2(write_end, 2)
    for descriptor in (read_end, write_end):
        os.close(descriptor)
    if _writes_to_descriptor_2(python_stderr):
        sys.stderr = os.fdopen(os.dup(screen_fd), "w", 1, encoding=python_stderr.encoding, errors="backslashreplace")
    try:
        yield
    finally:
        python_stderr.flush()
        os.dup2(screen_fd, 2)
        os.close(screen_fd)
        sys.stderr = python_stderr
        with contextlib.suppress(subprocess.TimeoutExpired):
            shell.wait(FLUSH_S)


def _writes_to_descriptor_2(stream: object) -> bool:
    """Return whether a stream writes to file descriptor 2; the stderr of a notebook or a test does not."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return stream.fileno() == 2  # type: ignore[attr-defined]
    return False


@contextlib.contextmanager
def print_if_killed() -> Iterator[None]:
    """Print a line if this process is killed.

    A shell waits for input from this process, and prints the line if the pipe is closed without any.
    """
    command = ["sh", "-c", f"trap '' INT; read -r _ || echo '{_SUDDEN_END}' >&2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as shell:  # noqa: S603  (fixed text)
        try:
            yield
        finally:
            shell.communicate(b"\n")
