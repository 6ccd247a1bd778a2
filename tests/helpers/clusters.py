"""Ray clusters of a test's own: ports, environments, and their end."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from ray.job_submission import JobSubmissionClient

RAY = str(Path(sys.executable).with_name("ray"))
KP_RAY = str(Path(sys.executable).with_name("kp-ray"))
# As in an activated environment: a job's `python` is found on the PATH that the cluster was started with.
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
TOKEN = secrets.token_hex(32)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Cluster:
    """A head that asks for tokens; `environment` has one."""

    dashboard: str
    address: str
    environment: dict[str, str]

    def run(self, *command: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            command, capture_output=True, text=True, timeout=1000, env=environment or self.environment, check=False
        )

    def client(self) -> JobSubmissionClient:
        return JobSubmissionClient(self.dashboard, headers={"Authorization": f"Bearer {TOKEN}"})


def end_all(folder: str) -> None:
    """End the processes of the Ray whose files are in `folder`, and their children."""
    ours = [p for p in psutil.process_iter(["cmdline"]) if any(folder in part for part in p.info["cmdline"] or [])]
    for process in [*ours, *(child for p in ours if p.is_running() for child in p.children(recursive=True))]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
