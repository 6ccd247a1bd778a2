"""Provide one function for each private or deprecated part of Ray 2.60 that kp_ray needs.

tests/cluster/test_ray_internals.py fails when Ray has removed or changed such a part.
"""

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_RETRIES = 3
"""Number of retries of a task, or of a call to an actor, whose process died."""


def bounded_task_retries() -> dict[str, Any]:
    """Return keyword arguments of `Dataset.map` and `map_batches` that bound the retries of their tasks.

    By default Ray Data never stops retrying a task whose worker dies, so an image that crashes the worker would hang
    the run. `ray_remote_args_fn` is deprecated and will be removed in Ray 2.64; Ray 2.60 has no other way to set
    `max_retries`.
    """
    return {"ray_remote_args_fn": _task_options}


def _task_options() -> dict[str, Any]:
    return {"max_retries": MAX_RETRIES}


def bounded_actor_retries() -> dict[str, Any]:
    """Return keyword arguments of `Dataset.map` and `map_batches` that bound the retries of calls to a pool's actors.

    The reason is the same as in `bounded_task_retries`. `max_task_retries` is deprecated and will be removed in Ray
    2.64.
    """
    return {"max_task_retries": MAX_RETRIES}


def dashboard_url() -> str:
    """Return host:port of the joined cluster's dashboard; "" if it has none.

    The only public source is the return value of `ray.init`, which is lost if a notebook called `ray.init` itself.
    """
    from ray._private.worker import get_dashboard_url

    return str(get_dashboard_url() or "")


def is_head(node: Mapping[str, Any]) -> bool:
    """Return whether a node, an element of `ray.nodes()`, is the cluster's head."""
    return "node:__internal_head__" in node["Resources"]


def node_resource(node: Mapping[str, Any]) -> str:
    """Return the resource that only this node has, e.g. "node:10.0.0.1"; requesting it places an actor on the node."""
    return next(name for name in node["Resources"] if name.startswith("node:") and name != "node:__internal_head__")


def keep_credentials_out_of_tune_logs(names: Sequence[str]) -> None:
    """Keep Ray Tune from copying the driver's environment variables of these names to each trial's runtime environment.

    Ray writes runtime environments to its logs. Ray 2.60 has no public setting for this, only a private set of names.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(names)


def upload_limit_bytes() -> int:
    """Return the bytes above which Ray's job server refuses the zip file of a working directory (HTTP status 413)."""
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

    return int(DASHBOARD_CLIENT_MAX_SIZE)


class _LimitReachedError(Exception):
    """Ends the walk through a folder that is too large."""


def upload_size_bytes(folder: str, excludes: Sequence[str], limit: int) -> int:
    """Return the total size of the files that `ray job submit --working-dir` sends; Ray does not compress them.

    Args:
        folder: the working directory.
        excludes: patterns of `runtime_env["excludes"]`. Files that .gitignore or .rayignore name are left out too.
        limit: stop counting at this number of bytes.
    """
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    size = 0

    def add_size(path: Path) -> None:
        nonlocal size
        size += path.stat().st_size if path.is_file() else 0
        if size >= limit:
            raise _LimitReachedError

    root = Path(folder).absolute()
    silent_logger = logging.Logger("silent", logging.CRITICAL + 1)  # Ray logs each ignore file that it reads
    with contextlib.suppress(_LimitReachedError):
        _dir_travel(root, [_get_excludes(root, list(excludes))], add_size, include_gitignore=True, logger=silent_logger)
    return size
