"""Every job by `ray job submit` on a real cluster of its own, and what it leaves."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import tiny_config
from ray.job_submission import JobSubmissionClient

ROOT = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
# As in an activated environment: a job's `python` is found on the PATH that the cluster was started with.
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """`ray start --head` with the dashboard on loopback; ends only the processes it started."""
    folder = tempfile.mkdtemp(prefix="kpj", dir="/tmp")  # short: sockets live in it
    port = free_port()
    head = [
        RAY, "start", "--head", f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}",  # its fixed default is taken where another Ray runs
        "--num-cpus=4", f"--temp-dir={folder}", "--disable-usage-stats",
    ]  # fmt: skip
    started = subprocess.run(head, capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT)
    assert started.returncode == 0, started.stderr
    _wait_for_agent(f"http://127.0.0.1:{port}")
    yield f"http://127.0.0.1:{port}"
    ours = [p for p in psutil.process_iter(["cmdline"]) if any(folder in part for part in p.info["cmdline"] or [])]
    for process in [*ours, *(child for p in ours if p.is_running() for child in p.children(recursive=True))]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for_agent(dashboard: str) -> None:
    """`ray start` returns before the agent that starts jobs is there."""
    client = JobSubmissionClient(dashboard)
    for _ in range(60):
        try:
            client.submit_job(entrypoint="true")
        except RuntimeError:
            time.sleep(1)
        else:
            return
    raise AssertionError("no agent took a job within a minute")


def submit(dashboard: str, job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Submit as the docs say, wait for the end, and give what was printed."""
    excludes = '{"excludes": [".git", ".venv", "runs"]}'
    command = [
        RAY, "job", "submit", f"--address={dashboard}", "--working-dir", str(ROOT), f"--runtime-env-json={excludes}",
        "--", "python", f"jobs/{job}.py", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=500, env=ENVIRONMENT, check=False)


def test_every_job_succeeds_and_leaves_its_result(dashboard: str, sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run", predict={"actors": [1, 1]}, tune={"num_trials": 1})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    run = tmp_path / "run"
    for job, result in (
        ("augment", "store/manifest.json"),
        ("train", "members/a/model_final.pth"),
        ("tune", "tune/best.yaml"),
        ("predict", "submission.csv"),
        ("pipeline", "report.html"),
    ):
        done = submit(dashboard, job, str(path))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        assert "SUCCEEDED" in done.stdout.upper() or "succeeded" in done.stdout
        assert (run / result).stat().st_size > 0


def test_a_users_mistake_fails_the_job_with_its_one_line(dashboard: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run_dir: x\ntrian: {}\n")
    done = submit(dashboard, "augment", str(tmp_path / "config.yaml"))
    assert done.returncode == 1
    assert "trian: unknown key; did you mean train?" in done.stdout
    assert "Traceback" not in done.stdout
