"""Start and stop Ray clusters that belong to one test."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass

import psutil
from ray.job_submission import JobSubmissionClient

from tests.helpers.processes import BIN, run_command

ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
"""As in an activated virtual environment: a job's `python` is found on the PATH that its cluster was started with."""
TOKEN = secrets.token_hex(32)


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that requires a token.

    Attributes:
        dashboard: URL of the dashboard.
        address: host:port of the GCS.
        environment: variables of a client that has the token.
    """

    dashboard: str
    address: str
    environment: dict[str, str]

    def run(self, *command: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, as a client with the token unless `environment` is given."""
        return run_command(*command, env=environment or self.environment)

    def client(self) -> JobSubmissionClient:
        """Connect to the job server with the token."""
        return JobSubmissionClient(self.dashboard, headers={"Authorization": f"Bearer {TOKEN}"})


def kill_ray(folder: str) -> None:
    """Kill the processes of the Ray whose `--temp-dir` is `folder`, and their children; delete the folder."""
    cluster = [p for p in psutil.process_iter(["cmdline"]) if any(folder in part for part in p.info["cmdline"] or [])]
    for process in [*cluster, *(child for p in cluster if p.is_running() for child in p.children(recursive=True))]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Find different TCP ports of 127.0.0.1 that nothing listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def free_port() -> int:
    """Find a TCP port of 127.0.0.1 that nothing listens on."""
    return free_ports(1)[0]
