"""Join the cluster that a config names, or start a local cluster; no other module calls `ray.init`."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from kp_ray.cluster.screen import hide_actor_pool_warning, print_if_killed
from kp_ray.cluster.temp_dir import check_temp_dir
from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError, one_line

RAY_ENVIRONMENT = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # progress bars printed by actors fill the log
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # the patch prints every line twice
    "RAY_AIR_NEW_OUTPUT": "0",  # disables Ray Tune's table, because kp_ray's progress shows the same values
    "RAY_SCHEDULER_EVENTS": "0",  # disables advice about worker processes, which every driver would print
    "RAY_task_oom_retries": "3",  # by default Ray retries out-of-memory tasks forever
}
"""Environment variables that Ray reads, some of them when it is imported. A value that the user has set is kept."""
HIDDEN_LINES = "PYTHON worker processes have been started|A worker died or was killed while"
"""Regular expression for lines of Ray that only `kp-ray -v` shows: a warning that small machines print, and a line
about every worker that ends before its task, e.g. that of a trial that the search stops. kp_ray itself names the work
that failed."""

START_ATTEMPTS = 3
"""Number of attempts to start a local cluster: Ray gives up after 30 s, which can be too short on a busy machine."""

ADDRESS_TIMEOUT_S = 10.0
"""Seconds within which `cluster.address` must accept a connection, and then answer; `ray.init` itself tries for 823 s
(Ray 2.60)."""

NODE_CHECK_S = 5.0
"""Seconds between checks that this node still belongs to the cluster."""

_interrupt_event = threading.Event()
"""Set by Ctrl-C. Ray swallows a KeyboardInterrupt raised in a callback, so `raise_if_interrupted` raises it again."""


def set_ray_environment() -> None:
    """Set the variables of `RAY_ENVIRONMENT` that the user has not set, and hide `HIDDEN_LINES` unless `-v` is given.

    Call this before Ray is imported.
    """
    hidden_lines = {} if _is_verbose() else {"RAY_DEDUP_LOGS_SKIP_REGEX": HIDDEN_LINES}
    for name, value in {**RAY_ENVIRONMENT, **hidden_lines}.items():
        os.environ.setdefault(name, value)


def raise_if_interrupted() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed since the session began."""
    if _interrupt_event.is_set():
        raise KeyboardInterrupt


def has_session() -> bool:
    """Return whether this process is connected to Ray."""
    import ray

    return bool(ray.is_initialized())


@contextlib.contextmanager
def session(config: Config, *, dashboard: bool = True, say: Callable[[str], None] = print) -> Iterator[float]:
    """Join the config's Ray cluster, or start a local cluster that ends with the session.

    Args:
        config: `cluster.address` names the cluster; if it is null, RAY_ADDRESS does; if neither is set, a local cluster
            is started.
        dashboard: whether a local cluster has Ray's dashboard. Ray Train and Ray Tune query the dashboard; for
            other stages the cluster starts 1 s faster without it.
        say: prints one line; called before each new attempt to start a local cluster.

    Yields:
        Seconds that joining or starting the cluster took.

    Raises:
        ClusterError: nothing answers at the address, or Ray does not start on this machine.
    """
    set_ray_environment()
    import ray  # late, so that `--help` and `import kp_ray` need not wait for Ray

    start_time = time.monotonic()
    stderr_filter = contextlib.nullcontext() if _is_verbose() else hide_actor_pool_warning()
    with print_if_killed(), stderr_filter:
        _connect(config, dashboard, say)
        # Python lets only the main thread set a handler.
        is_main_thread = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGINT, _interrupt) if is_main_thread else None
        try:
            with _exit_if_node_dies():
                yield time.monotonic() - start_time
        finally:
            if is_main_thread:
                signal.signal(signal.SIGINT, handler)
            _interrupt_event.clear()
            ray.shutdown()


def check_address(address: str, key: str) -> None:
    """Refuse an address at which no Ray head answers, because Ray itself would try for minutes.

    Any gRPC server counts as a Ray head.

    Args:
        address: "host:port" or "ray://host:port". Anything else, e.g. "auto", is not checked, because Ray itself soon
            refuses it if no cluster runs.
        key: name of the setting that holds the address, for the message.

    Raises:
        ClusterError: no program listens at the address, the program is silent or not a Ray head, or a ray:// address
            has no port.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (port.isascii() and port.isdigit()):  # isdigit accepts superscripts, which int refuses
        if address.startswith("ray://"):
            raise ClusterError(f"{key}: the address has no port (got {address}): append the head's port, e.g. :10001")
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ADDRESS_TIMEOUT_S) as connection:
            is_head = _speaks_grpc(connection)
    except (OSError, UnicodeError) as error:  # UnicodeError: an empty part of the host's name, or over 63 characters
        raise ClusterError(
            f"{key}: no Ray cluster answers (got {address}): {one_line(error)}: start its head, or correct the address"
        ) from error
    if not is_head:
        raise ClusterError(
            f"{key}: a program other than Ray's head answers (got {address}): use the head's port, by default 6379, or "
            "10001 for ray://; 8265 is the dashboard's"
        )


def _speaks_grpc(connection: socket.socket) -> bool:
    """Return whether a server answers with the settings of HTTP/2, on which gRPC is built.

    The result is False if the server closes the connection.

    Raises:
        OSError: the server is silent for `ADDRESS_TIMEOUT_S`, or resets the connection.
    """
    if os.environ.get("RAY_USE_TLS", "0") != "0":  # the answer would be encrypted
        return True
    settings_type = 4
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, settings_type, 0, 0, 0, 0, 0]))
    header = connection.recv(4)
    return len(header) == 4 and header[3] == settings_type


def _is_verbose() -> bool:
    """Return whether to show Ray's own log (`kp-ray -v`)."""
    return logging.getLogger().isEnabledFor(logging.INFO)


def _interrupt(*_: object) -> None:
    _interrupt_event.set()
    raise KeyboardInterrupt


def _connect(config: Config, dashboard: bool, say: Callable[[str], None]) -> None:
    import ray
    import ray.data  # imported before its log level is set below, because the import sets the level too

    cluster = config.cluster
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    verbose = _is_verbose()
    if not verbose:
        for name in ("ray.data", "ray.tune"):  # kp_ray prints one line of its own when a run or trial ends
            logging.getLogger(name).setLevel(logging.CRITICAL)
    key = "cluster.address" if cluster.address else "RAY_ADDRESS"
    init_kwargs: dict[str, Any] = {"logging_level": "INFO" if verbose else "ERROR", "log_to_driver": verbose}
    if address == "local":
        check_temp_dir()
        init_kwargs |= {"num_cpus": cluster.num_cpus, "num_gpus": cluster.num_gpus, "include_dashboard": dashboard}
    else:
        check_address(address, key)
    if ray.is_initialized():
        raise ClusterError("cluster: this process is already connected to Ray: call ray.shutdown() first")
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(address=address, **init_kwargs)
            return
        except Exception as error:  # Ray raises a different class for each cause
            reason = one_line(error)[-300:]
            if address != "local":
                raise ClusterError(
                    f"{key}: Ray {ray.__version__} cannot join the cluster (got {address}): {reason}: run `ray status` "
                    "on its head, and use one version of Ray on all nodes"
                ) from error
            # Ray raises ValueError if it refuses an argument; another attempt would fail too.
            if isinstance(error, ValueError) or attempt == START_ATTEMPTS:
                raise ClusterError(
                    f"cluster: Ray does not start on this machine (got {reason} in attempt {attempt}): see Ray's logs"
                ) from error
            ray.shutdown()
            say(f"Ray did not start ({reason}): starting it again")


@contextlib.contextmanager
def _exit_if_node_dies() -> Iterator[None]:
    """End this process if Ray marks this node as dead, because Ray Tune would otherwise wait forever."""
    import ray

    node_id, end_event = ray.get_runtime_context().get_node_id(), threading.Event()

    def watch() -> None:
        while not end_event.wait(NODE_CHECK_S):
            with contextlib.suppress(Exception):  # if the head is unreachable, Ray itself ends the driver
                if not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == node_id):
                    os._exit(2)  # the shell of `print_if_killed` outlives this process and prints why

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        end_event.set()
        watcher.join()
