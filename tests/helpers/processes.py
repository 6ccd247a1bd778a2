"""Start `kp-ray` and other commands as processes, wait for them, and read their output."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil

BIN = Path(sys.executable).parent
KP_RAY = str(BIN / "kp-ray")
RAY = str(BIN / "ray")

T = TypeVar("T")


def set_options(*settings: str) -> list[str]:
    """Return the arguments `--set a.b=value` for each setting "a.b=value"."""
    return [argument for setting in settings for argument in ("--set", setting)]


def run_command(
    *command: str, cwd: Path | str | None = None, env: Mapping[str, str] | None = None, timeout_s: float = 1000
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever its exit code."""
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)


def run_kp_ray(
    *arguments: str, cwd: Path | str | None = None, env: Mapping[str, str] | None = None, timeout_s: float = 1000
) -> subprocess.CompletedProcess[str]:
    """Run the installed `kp-ray` with these arguments to its end."""
    return run_command(KP_RAY, *arguments, cwd=cwd, env=env, timeout_s=timeout_s)


def start_kp_ray(*arguments: str, cwd: Path | str | None = None) -> subprocess.Popen[str]:
    """Start the installed `kp-ray` in a new session, which signals of the terminal do not reach."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([KP_RAY, *arguments], cwd=cwd, text=True, start_new_session=True, **pipes)


def last_json(stdout: str) -> dict[str, Any]:
    """Return the JSON object in the last line of the output of `kp-ray ... --json`."""
    return dict(json.loads(stdout.splitlines()[-1]))


def finish(process: subprocess.Popen[str], timeout_s: float = 600) -> dict[str, Any]:
    """Wait for a `kp-ray ... --json` that must succeed; return its JSON object."""
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return last_json(out)


def finish_with_error(process: subprocess.Popen[str], timeout_s: float = 600) -> str:
    """Wait for a `kp-ray` that must end with a user's error, and return its message: one line, exit code 2."""
    _, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("kp-ray: ")]
    assert len(lines) == 1, err
    return lines[0]


def wait_until(
    condition: Callable[[], T],
    process: subprocess.Popen[str] | None = None,
    *,
    timeout_s: float = 300,
    poll_s: float = 0.05,
) -> T:
    """Wait until a condition holds and return its value.

    Args:
        condition: called until it returns a true value.
        process: a process that must not end before the condition holds.
        timeout_s: longest wait.
        poll_s: pause between two calls of the condition.

    Raises:
        AssertionError: the process ended (the message holds its stderr), or the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the process ended with {process.returncode}: {process.communicate()[1]}")
        assert time.monotonic() < deadline, f"the condition did not hold within {timeout_s:g} s"
        time.sleep(poll_s)
    return value


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, also if its parent has not yet collected its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def file_times(*paths: Path) -> dict[Path, int]:
    """Return the modification times of files in nanoseconds; they are equal if no run has rewritten the files."""
    return {path: path.stat().st_mtime_ns for path in paths}
