"""One harmless warning of Ray is hidden from stderr, every other line is printed, and a sudden end gets a line."""

import os
import subprocess
import sys

import pytest

from kp_ray.cluster.screen import ACTOR_POOL_WARNING

RUN_ACTOR_POOL = """
import logging, os, sys
from kp_ray.cluster.session import session
from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.config.load import build_config

class Actor:
    def __call__(self, row):
        return row

logging.getLogger().setLevel(sys.argv[1])
with session(build_config({"cluster": {"num_cpus": 1}}), dashboard=False):
    import ray
    with ray_data_settings():
        rows = ray.data.from_items([{"a": 1}]).map(Actor, compute=ray.data.ActorPoolStrategy(size=1))
    assert len(list(rows.iter_rows())) == 1
    os.write(2, b"a line of C++ code\\n")
    print("a line of Python", file=sys.stderr)
print("the last line", file=sys.stderr)
"""
KILL_WORKER = """
import logging, os, select, sys
from kp_ray.cluster.session import session
from kp_ray.config.load import build_config

logging.getLogger().setLevel(sys.argv[1])
with session(build_config({"cluster": {"num_cpus": 1}}), dashboard=False):
    import ray
    try:
        ray.get(ray.remote(max_retries=0)(lambda: os._exit(1)).remote())
    except ray.exceptions.RayError as error:
        print(type(error).__name__)
    # Ray prints the line a moment later; the test closes stdin when it has read the line.
    select.select([sys.stdin], [], [], float(sys.argv[2]))
"""
PRINT_LINES = """
import os, signal, sys
from kp_ray.cluster.screen import ACTOR_POOL_WARNING, hide_actor_pool_warning
with hide_actor_pool_warning():
    os.write(2, f"  before {ACTOR_POOL_WARNING} after\\n  a b  \\\\n %s\\n".encode())
    os.write(2, b"without an end")
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("a terminal:", sys.stderr.isatty(), file=sys.stderr)
"""

END_WITH_LINE = """
import os, signal, sys
from kp_ray.cluster.screen import print_if_killed
with print_if_killed():
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(sys.argv[1] == "failed")
"""


def run_python(code: str, argument: str) -> list[str]:
    """Run code in a fresh interpreter and return the lines of its stderr."""
    result = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, timeout=300)
    return result.stderr.splitlines()


@pytest.mark.parametrize(("level", "is_hidden"), [("WARNING", True), ("INFO", False)])
def test_the_line_that_ray_prints_for_an_actor_pool_is_hidden_unless_verbose(level: str, is_hidden: bool) -> None:
    lines = run_python(RUN_ACTOR_POOL, level)
    # If this fails at level INFO, Ray no longer prints the line: delete `hide_actor_pool_warning`.
    assert any(ACTOR_POOL_WARNING in line for line in lines) is not is_hidden, lines
    for line in ("a line of C++ code", "a line of Python", "the last line"):
        assert line in lines


@pytest.mark.parametrize("end", ["normal", "killed"])
def test_every_other_line_is_printed_unchanged_even_if_the_process_is_killed(end: str) -> None:
    lines = run_python(PRINT_LINES, end)
    assert r"  a b  \n %s" in lines
    assert "without an end" in lines
    assert not any(ACTOR_POOL_WARNING in line for line in lines)


def test_stderr_is_still_a_terminal_while_the_line_is_hidden() -> None:
    leader, follower = os.openpty()
    with subprocess.Popen([sys.executable, "-c", PRINT_LINES, "normal"], stderr=follower) as process:
        os.close(follower)
        text = b""
        while b"a terminal:" not in text or not text.endswith(b"\n"):
            text += os.read(leader, 1000)
        process.wait(60)
    os.close(leader)
    assert b"a terminal: True" in text


@pytest.mark.parametrize(("level", "is_hidden"), [("WARNING", True), ("INFO", False)])
def test_rays_line_about_a_worker_that_ends_before_its_task_is_hidden_unless_verbose(
    level: str, is_hidden: bool
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_DEDUP_LOGS_SKIP_REGEX"}
    command = [sys.executable, "-c", KILL_WORKER, level, "5" if is_hidden else "60"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        assert process.stdin
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "A worker died" in line:
                process.stdin.close()
    assert any("WorkerCrashedError" in line for line in lines)  # Ray's line may come before the line's end
    assert any("A worker died" in line for line in lines) is not is_hidden


def test_a_process_that_is_killed_leaves_one_line_and_a_process_that_ends_leaves_none() -> None:
    assert run_python(END_WITH_LINE, "killed") == [
        "kp-ray: Ray or another process ended this run (raylet or head is gone); the same command resumes the run"
    ]
    assert run_python(END_WITH_LINE, "normal") == []
    assert run_python(END_WITH_LINE, "failed") == []
