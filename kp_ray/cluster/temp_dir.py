"""Refuse a temporary folder whose path is too long for the sockets of a local Ray cluster."""

import os
import sys

from kp_ray.errors import ClusterError

MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""Maximum length of a Unix socket's path: `sun_path` in the system's `sys/un.h`, without the final zero byte."""
_LONGEST_SOCKET = "/ray/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store"
"""Longest path of a socket in Ray's temporary folder (Ray 2.60), with the largest process id of Linux."""
MAX_FOLDER_BYTES = MAX_SOCKET_BYTES - len(_LONGEST_SOCKET)
"""Maximum length of the path of a temporary folder in which Ray can start."""


def check_temp_dir() -> None:
    """Refuse a temporary folder in which Ray cannot create its sockets.

    Raises:
        ClusterError: the path in RAY_TMPDIR is too long, or, on Linux without RAY_TMPDIR, the path in TMPDIR is.
    """
    keys = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)
    key = next((name for name in keys if name in os.environ), None)
    num_bytes = len(os.fsencode(os.environ[key])) if key else 0
    if num_bytes > MAX_FOLDER_BYTES:
        raise ClusterError(
            f"{key}: too long for Ray's sockets (got {num_bytes} bytes, at most {MAX_FOLDER_BYTES}): set RAY_TMPDIR to "
            "a shorter path, e.g. RAY_TMPDIR=/tmp"
        )
