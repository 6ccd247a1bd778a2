"""Start and stop Ray clusters that belong to one test, and forbid tests to use a cluster."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import ray
from ray.job_submission import JobSubmissionClient

from tests.helpers.processes import BIN, run_command

ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
"""Variables of an activated virtual environment: a cluster's jobs find `python` on the PATH of `ray start`."""
TOKEN = secrets.token_hex(32)
"""Token that the tests' clusters require."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that requires a token.

    Attributes:
        dashboard: URL of the dashboard.
        address: host:port of the GCS.
        environment: environment variables of a client that has the token.
    """

    dashboard: str
    address: str
    environment: dict[str, str]

    def run(self, *command: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end with `environment`; None: the environment of a client that has the token."""
        return run_command(*command, env=environment or self.environment)

    def client(self) -> JobSubmissionClient:
        """Connect to the job server with the token."""
        return JobSubmissionClient(self.dashboard, headers={"Authorization": f"Bearer {TOKEN}"})


@contextlib.contextmanager
def ray_temp_dir() -> Iterator[str]:
    """Create a folder for the `--temp-dir` of `ray start`; at the end, kill its clusters and delete the folder.

    The folder's path is short, because it holds Ray's Unix sockets, whose paths have at most 107 characters.
    """
    folder = tempfile.mkdtemp(prefix="kp", dir="/tmp")
    try:
        yield folder
    finally:
        _kill_ray(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _kill_ray(folder: str) -> None:
    """Kill the processes whose command line names a folder, and all their children."""
    processes = [p for p in psutil.process_iter(["cmdline"]) if any(folder in part for part in p.info["cmdline"] or [])]
    for process in [*processes, *(child for p in processes if p.is_running() for child in p.children(recursive=True))]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    time.sleep(0.5)


def free_ports(count: int) -> list[int]:
    """Find distinct TCP ports of 127.0.0.1 on which nothing listens."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def free_port() -> int:
    """Find a TCP port of 127.0.0.1 on which nothing listens."""
    return free_ports(1)[0]


def list_leftovers() -> set[str]:
    """Return the states of the connected cluster's placement groups and its actors' classes, except Ray Data's two."""
    import ray
    from ray.util.state import list_actors, list_placement_groups

    address = ray.get_runtime_context().gcs_address  # without it the query fails if the machine runs other clusters
    actors = {actor.class_name for actor in list_actors(address, [("state", "!=", "DEAD")])}
    groups = {group.state for group in list_placement_groups(address, [("state", "!=", "REMOVED")])}
    return groups | (actors - {"_StatsActor", "_AutoscalingCoordinatorActor"})


def forbid_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if it starts a Ray cluster, or uses one that an earlier test has started."""

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("Ray was called")

    for name in ("init", "nodes", "remote"):
        monkeypatch.setattr(ray, name, fail)
