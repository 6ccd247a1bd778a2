"""Joining a cluster: an address at which no Ray head answers is refused within seconds.

A session ends the process if this node dies.
"""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import ray

from kp_ray.cluster import session as session_module
from kp_ray.cluster.session import check_address, session
from kp_ray.config.load import build_config
from kp_ray.errors import ClusterError
from tests.helpers.clusters import free_port
from tests.helpers.processes import run_command

WAIT_ON_NODE = """
import sys, time
from types import SimpleNamespace
import ray
from kp_ray.cluster import session as session_module
from kp_ray.config.load import build_config

is_alive = sys.argv[1] == "alive"
session_module.NODE_CHECK_S = 0.1
session_module._connect = lambda *_: None
ray.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: "this node")
ray.nodes = lambda: [{"NodeID": "this node", "Alive": is_alive}, {"NodeID": "another node", "Alive": not is_alive}]
with session_module.session(build_config({})):
    time.sleep(0.3 if is_alive else 10)
"""


def test_an_address_without_a_cluster_is_refused_within_seconds() -> None:
    address = f"127.0.0.1:{free_port()}"
    start_time = time.monotonic()
    with (
        pytest.raises(ClusterError, match=f"cluster.address: .*{address}"),
        session(build_config({"cluster": {"address": address}})),
    ):
        pass
    assert time.monotonic() - start_time < 30


def test_the_setting_that_holds_the_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(ClusterError, match=r"^RAY_ADDRESS: "), session(build_config({})):
        pass


def test_an_address_without_a_port_passes_the_check() -> None:
    check_address("auto", "cluster.address")


@pytest.mark.parametrize("host", ["head..local", "a" * 64])
def test_a_host_that_cannot_be_a_name_is_refused(host: str) -> None:
    with pytest.raises(ClusterError, match=rf"^cluster\.address: no Ray cluster answers \(got {host}:6379\)"):
        check_address(f"{host}:6379", "cluster.address")


def test_a_superscript_is_no_port() -> None:
    check_address("127.0.0.1:²", "cluster.address")  # Ray refuses it
    with pytest.raises(ClusterError, match="the address has no port"):
        check_address("ray://127.0.0.1:²", "cluster.address")


@pytest.mark.parametrize(("node", "exit_code", "num_lines"), [("dead", 2, 1), ("alive", 0, 0)])
def test_a_process_ends_with_exit_code_2_and_one_line_if_its_node_dies(
    node: str, exit_code: int, num_lines: int
) -> None:
    result = run_command(sys.executable, "-c", WAIT_ON_NODE, node, timeout_s=60)
    assert result.returncode == exit_code, result.stderr
    assert result.stderr.count("kp-ray: Ray or another process ended this run") == num_lines


class TestProgramsThatAcceptConnections:
    """Without kp_ray's check, Ray 2.60 waits over ten minutes for a program that accepts connections but is no head."""

    @pytest.fixture
    def serve(self) -> Iterator[Callable[[bytes], str]]:
        """Return a function that starts a server and returns its address; the server sends the passed answer once."""
        sockets: list[socket.socket] = []

        def start(answer: bytes) -> str:
            server = socket.create_server(("127.0.0.1", 0))
            sockets.append(server)

            def answer_once() -> None:
                connection, _ = server.accept()
                sockets.append(connection)
                connection.recv(1000)
                connection.sendall(answer)

            threading.Thread(target=answer_once, daemon=True).start()
            return f"127.0.0.1:{server.getsockname()[1]}"

        yield start
        for opened_socket in sockets:
            opened_socket.close()

    def test_a_silent_program_is_refused_after_the_deadline(
        self, serve: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session_module, "ADDRESS_TIMEOUT_S", 0.5)
        with pytest.raises(ClusterError, match=r"^cluster\.address: no Ray cluster answers .*timed out"):
            check_address(serve(b""), "cluster.address")

    @pytest.mark.parametrize("scheme", ["", "ray://"])
    def test_the_dashboards_port_is_refused_and_the_right_port_named(
        self, serve: Callable[[bytes], str], scheme: str
    ) -> None:
        address = serve(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(ClusterError, match=rf"^RAY_ADDRESS: a program .*{address}.*6379"):
            check_address(f"{scheme}{address}", "RAY_ADDRESS")

    def test_a_client_address_without_a_port_is_refused(self) -> None:
        with pytest.raises(ClusterError, match=r"^RAY_ADDRESS: the address has no port \(got ray://head\)"):
            check_address("ray://head", "RAY_ADDRESS")

    def test_a_head_is_accepted(self, ray_cluster: None) -> None:
        check_address(ray.get_runtime_context().gcs_address, "cluster.address")
