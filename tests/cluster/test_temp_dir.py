"""The temporary folder of a local Ray cluster."""

import os

import pytest
import ray
from ray._private.utils import validate_socket_filepath

from kp_ray.cluster.session import session
from kp_ray.cluster.temp_dir import MAX_FOLDER_BYTES, MAX_SOCKET_BYTES, check_temp_dir
from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError


def folder_of(num_bytes: int) -> str:
    return "/tmp/" + "x" * (num_bytes - len("/tmp/"))


@pytest.mark.parametrize("key", ["RAY_TMPDIR", "TMPDIR"])
def test_too_long_a_folder_is_refused_by_the_variable_that_names_it(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(key, folder_of(MAX_FOLDER_BYTES))
    check_temp_dir()
    monkeypatch.setenv(key, folder_of(MAX_FOLDER_BYTES + 1))
    with pytest.raises(ClusterError, match=rf"^{key}: too long .*got {MAX_FOLDER_BYTES + 1} bytes.*RAY_TMPDIR=/tmp"):
        check_temp_dir()


def test_a_session_is_refused_before_ray_starts_and_the_advice_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", folder_of(200))
    with pytest.raises(ClusterError, match=r"^TMPDIR: too long"), session(Config()):
        pass
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_temp_dir()


def test_ray_itself_accepts_sockets_of_the_longest_path_and_no_longer_one() -> None:
    validate_socket_filepath("x" * MAX_SOCKET_BYTES)
    with pytest.raises(OSError, match=str(MAX_SOCKET_BYTES)):
        validate_socket_filepath("x" * (MAX_SOCKET_BYTES + 1))


def test_the_sockets_of_a_cluster_are_as_long_as_the_limit_supposes(ray_cluster: None) -> None:
    node = ray._private.worker._global_node
    longest = max(len(node.plasma_store_socket_name), len(node.raylet_socket_name)) - len(str(os.getpid()))
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    assert longest == MAX_SOCKET_BYTES - MAX_FOLDER_BYTES + len(temporary) - len("4194304")
