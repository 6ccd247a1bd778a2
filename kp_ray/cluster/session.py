"""Join the cluster that a config names or start a local one: the only `ray.init`."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError, one_line

RAY_ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # progress bars printed by actors fill the log
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # the patch prints every line twice
    "RAY_AIR_NEW_OUTPUT": "0",  # Ray Tune's own table; our progress shows the same
    "RAY_SCHEDULER_EVENTS": "0",  # advice about worker processes, sent to every driver
    "RAY_DEDUP_LOGS_SKIP_REGEX": "PYTHON worker processes have been started",  # always so with few CPUs
    "RAY_task_oom_retries": "3",  # by default Ray retries out-of-memory tasks forever
}
"""Variables that Ray reads, some of them when it is imported. Values that the user has set stay."""

START_ATTEMPTS = 3
"""Attempts to start a local cluster: Ray gives up after 30 s, which a busy machine can need."""

ADDRESS_TIMEOUT_S = 20.0
"""Seconds that a named head has to accept a connection; `ray.init` itself tries for 823 s and logs every attempt."""

NODE_CHECK_S = 5.0
"""Seconds between checks that this node still belongs to the cluster."""

_LAST_WORDS = "kp-ray: Ray or another process ended this run (the raylet or the head is gone); the same command resumes"

_interrupted = threading.Event()
"""Set by Ctrl-C: Ray loses a KeyboardInterrupt raised in its callbacks, so `raise_if_interrupted` raises it again."""


def set_ray_environment() -> None:
    """Set `RAY_ENVIRONMENT` where the user has not; call it before Ray is imported."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed during the present session."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def session(config: Config, *, dashboard: bool = True, say: Callable[[str], None] = print) -> Iterator[float]:
    """Hold a connection to the config's Ray cluster; a local cluster is started and ends with the session.

    Args:
        config: `cluster.address` names the cluster; null: RAY_ADDRESS if it is set, else a local one.
        dashboard: start a local cluster's dashboard; Ray Train and Ray Tune query it, the other stages start 1 s
            faster without.
        say: called with a line when starting is retried.

    Yields:
        Seconds that joining or starting took.

    Raises:
        ClusterError: nothing answers at the address, or Ray does not start here.
    """
    set_ray_environment()
    import ray  # here, so that `--help` and `import kp_ray` need not wait for it

    began = time.monotonic()
    with _announce_sudden_end():
        _connect(config, dashboard, say)
        handler = signal.signal(signal.SIGINT, _interrupt)
        try:
            with _exit_with_node():
                yield time.monotonic() - began
        finally:
            signal.signal(signal.SIGINT, handler)
            _interrupted.clear()
            ray.shutdown()


def check_address(address: str, key: str) -> None:
    """Refuse an address where nothing accepts connections, before Ray tries for minutes.

    Args:
        address: "host:port" or "ray://host:port"; anything else, e.g. "auto", is left to Ray, which answers at once.
        key: setting that holds the address, named in the message.

    Raises:
        ClusterError: nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ADDRESS_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"{key}: no Ray cluster answers (got {address}): {one_line(error)}: start its head, or correct the address"
        ) from error


def _interrupt(*_: object) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


def _connect(config: Config, dashboard: bool, say: Callable[[str], None]) -> None:
    import ray
    import ray.data  # importing it sets its log level, so import it before changing that

    section = config.cluster
    address = section.address or os.environ.get("RAY_ADDRESS") or "local"
    verbose = logging.getLogger().isEnabledFor(logging.INFO)
    if not verbose:
        for name in ("ray.data", "ray.tune"):  # kp_ray prints one line of its own when a run or trial ends
            logging.getLogger(name).setLevel(logging.CRITICAL)
    key = "cluster.address" if section.address else "RAY_ADDRESS"
    if address != "local":
        check_address(address, key)
    init_kwargs: dict[str, Any] = {"logging_level": "INFO" if verbose else "ERROR", "log_to_driver": verbose}
    if address == "local":
        init_kwargs |= {"num_cpus": section.num_cpus, "num_gpus": section.num_gpus, "include_dashboard": dashboard}
    for attempts_left in reversed(range(START_ATTEMPTS)):
        try:
            ray.init(address=address, **init_kwargs)
            return
        except Exception as error:  # Ray raises a different type for each cause
            reason = one_line(error)[-300:]
            if address != "local":
                raise ClusterError(
                    f"{key}: no Ray cluster of this version answers (got {address}): check `ray status` there: {reason}"
                ) from error
            if isinstance(error, ValueError) or not attempts_left:
                attempts = START_ATTEMPTS - attempts_left
                raise ClusterError(f"Ray does not start on this machine ({attempts} attempts): {reason}") from error
            ray.shutdown()
            say(f"Ray did not start, trying again: {reason}")


@contextlib.contextmanager
def _exit_with_node() -> Iterator[None]:
    """Exit if Ray marks this node dead: Ray Tune would otherwise wait forever."""
    import ray

    node_id, done = ray.get_runtime_context().get_node_id(), threading.Event()

    def watch() -> None:
        while not done.wait(NODE_CHECK_S):
            with contextlib.suppress(Exception):  # if the head is unreachable, Ray ends the driver itself
                if not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id):
                    os._exit(2)  # `_announce_sudden_end` prints the line

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@contextlib.contextmanager
def _announce_sudden_end() -> Iterator[None]:
    """Print a line even if Ray kills this process: a shell waits on a pipe and prints when it closes."""
    wait = ["sh", "-c", f"trap '' INT; read -r _ || echo '{_LAST_WORDS}' >&2"]
    with subprocess.Popen(wait, stdin=subprocess.PIPE, start_new_session=True) as shell:  # noqa: S603  (a fixed text)
        try:
            yield
        finally:
            shell.communicate(b"\n")
