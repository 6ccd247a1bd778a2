"""Joining a cluster: an address where nothing answers is refused within seconds, in one line."""

import socket
import time

import pytest

from kp_ray.cluster.session import check_address, session
from kp_ray.config.load import build_config
from kp_ray.errors import ClusterError
from tests.helpers.clusters import free_port


def test_an_address_without_a_cluster_is_refused_within_seconds() -> None:
    address = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    with (
        pytest.raises(ClusterError, match=f"cluster.address: .*{address}"),
        session(build_config({"cluster": {"address": address}})),
    ):
        pass
    assert time.monotonic() - began < 30


def test_the_setting_that_holds_the_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(ClusterError, match=r"^RAY_ADDRESS: "), session(build_config({})):
        pass


def test_an_open_port_and_an_address_without_a_port_are_not_refused() -> None:
    check_address("auto", "cluster.address")
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"ray://127.0.0.1:{server.getsockname()[1]}", "cluster.address")
