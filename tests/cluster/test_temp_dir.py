"""The temporary folder of a local Ray cluster."""

import os

import pytest
import ray
from ray._private.utils import validate_socket_filepath

from kp_ray.cluster.session import session
from kp_ray.cluster.temp_dir import MAX_FOLDER_BYTES, MAX_SOCKET_BYTES, check_temp_dir
from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError


def make_path(num_bytes: int) -> str:
    """Make the path of a folder in /tmp that is `num_bytes` long."""
    return "/tmp/" + "x" * (num_bytes - len("/tmp/"))


@pytest.mark.parametrize("key", ["RAY_TMPDIR", "TMPDIR"])
def test_the_error_about_a_folder_with_a_long_path_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(key, make_path(MAX_FOLDER_BYTES))
    check_temp_dir()
    monkeypatch.setenv(key, make_path(MAX_FOLDER_BYTES + 1))
    with pytest.raises(ClusterError, match=rf"^{key}: too long .*got {MAX_FOLDER_BYTES + 1} bytes.*RAY_TMPDIR=/tmp"):
        check_temp_dir()


def test_a_session_is_refused_before_ray_starts_until_the_advice_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", make_path(200))
    with pytest.raises(ClusterError, match=r"^TMPDIR: too long"), session(Config()):
        pass
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_temp_dir()


def test_ray_accepts_a_socket_path_of_the_maximum_length_and_refuses_a_longer_one() -> None:
    validate_socket_filepath("x" * MAX_SOCKET_BYTES)
    with pytest.raises(OSError, match=str(MAX_SOCKET_BYTES)):
        validate_socket_filepath("x" * (MAX_SOCKET_BYTES + 1))


def test_the_sockets_of_a_cluster_are_as_long_as_the_limit_assumes(ray_cluster: None) -> None:
    node = ray._private.worker._global_node
    # The sockets' paths contain the driver's pid; the limit assumes the longest pid of Linux, 4194304.
    length_without_pid = max(len(node.plasma_store_socket_name), len(node.raylet_socket_name)) - len(str(os.getpid()))
    temp_dir = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    assert length_without_pid == MAX_SOCKET_BYTES - MAX_FOLDER_BYTES + len(temp_dir) - len("4194304")
