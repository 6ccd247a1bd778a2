"""Attempts to start a local cluster, and Ctrl-C during a session; Ray itself is not started."""

import contextlib
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import ray

from kp_ray.cluster import session as session_module
from kp_ray.cluster.session import raise_if_interrupted, session
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError

FailStart = Callable[[int, Exception], list[dict[str, Any]]]


@pytest.fixture
def fail_start(monkeypatch: pytest.MonkeyPatch) -> FailStart:
    """Return a function that lets the first calls of `ray.init` fail, and returns the list of the calls' arguments."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("print_if_killed", "hide_actor_pool_warning", "_exit_if_node_dies"):
        monkeypatch.setattr(session_module, name, contextlib.nullcontext)
    monkeypatch.setattr(session_module, "_interrupt_event", threading.Event())
    monkeypatch.setattr(session_module, "check_address", lambda address, key: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    calls: list[dict[str, Any]] = []

    def fail(num_failures: int, error: Exception) -> list[dict[str, Any]]:
        def init(**options: Any) -> None:
            calls.append(options)
            if len(calls) <= num_failures:
                raise error

        monkeypatch.setattr(ray, "init", init)
        return calls

    return fail


def start(config: Config, say: Callable[[str], None]) -> None:
    """Start a session and end it."""
    with session(config, say=say):
        pass


def test_a_local_cluster_that_does_not_start_is_started_again(fail_start: FailStart) -> None:
    calls, lines = fail_start(2, RuntimeError("the node\ntimed out")), list[str]()
    start(build_config({"cluster": {"num_cpus": 3}}), lines.append)
    assert lines == ["Ray did not start (the node timed out): starting it again"] * 2
    assert len(calls) == 3
    assert all((call["address"], call["num_cpus"]) == ("local", 3) for call in calls)


def test_a_local_cluster_that_does_not_start_in_three_attempts_is_an_error(fail_start: FailStart) -> None:
    calls, lines = fail_start(3, RuntimeError("the node timed out")), list[str]()
    with pytest.raises(ClusterError, match=r"^cluster: Ray does not start .*\(got the node timed out in attempt 3\)"):
        start(build_config({}), lines.append)
    assert (len(calls), len(lines)) == (3, 2)


def test_an_argument_that_ray_refuses_is_not_tried_again(fail_start: FailStart) -> None:
    calls, lines = fail_start(1, ValueError("num_cpus")), list[str]()
    with pytest.raises(ClusterError, match=r"\(got num_cpus in attempt 1\)"):
        start(build_config({}), lines.append)
    assert (len(calls), lines) == (1, [])


def test_a_cluster_that_cannot_be_joined_is_not_tried_again(fail_start: FailStart) -> None:
    calls, lines = fail_start(1, RuntimeError("another version")), list[str]()
    with pytest.raises(ClusterError, match=r"^cluster\.address: Ray .* cannot join .*10\.0\.0\.1:6379\): another"):
        start(build_config({"cluster": {"address": "10.0.0.1:6379"}}), lines.append)
    assert (len(calls), lines) == (1, [])


def test_ctrl_c_during_a_session_is_raised_again_until_the_session_ends(fail_start: FailStart) -> None:
    fail_start(0, RuntimeError())
    handler = signal.getsignal(signal.SIGINT)
    assert handler != session_module._interrupt
    with session(build_config({})):
        raise_if_interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted()
    assert not session_module._interrupt_event.is_set()
    assert signal.getsignal(signal.SIGINT) == handler
