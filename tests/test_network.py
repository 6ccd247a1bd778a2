"""kp_ray gives up on a service that accepts connections and does not answer."""

import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from kp_ray import network, storage
from kp_ray.errors import StorageError
from kp_ray.network import require_answer, socket_timeout


@pytest.fixture
def serve() -> Iterator[Callable[[bytes], str]]:
    """Return a function that starts a server and returns its URL.

    The server reads a request, sends the bytes passed to the function, and keeps the connection open.
    """
    servers: list[socket.socket] = []
    connections: list[socket.socket] = []

    def start(answer: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def answer_all() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                connection.recv(4096)
                connection.sendall(answer)

        threading.Thread(target=answer_all, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    for opened_socket in (*servers, *connections):
        opened_socket.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        b"no HTTP at all\r\n\r\n",
    ],
)
def test_any_answer_is_accepted_even_an_error_or_one_in_another_protocol(
    serve: Callable[[bytes], str], answer: bytes
) -> None:
    require_answer(serve(answer), "KEY")


def test_a_refused_connection_passes_because_the_client_reports_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    require_answer(f"http://127.0.0.1:{port}", "KEY")


@pytest.mark.parametrize("key", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_object_storage_that_does_not_answer_is_named_within_the_deadline(
    serve: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setattr(network, "ANSWER_TIMEOUT_S", 0.5)
    url = serve(b"")
    monkeypatch.setenv(key, url)
    start_time = time.monotonic()
    with pytest.raises(
        StorageError, match=rf"^s3://silent-{key}/x: .*{key}: no answer within 0\.5 s \(got {url}\): st"
    ):
        storage.exists(f"s3://silent-{key}/x")
    assert time.monotonic() - start_time < 10


def test_a_download_that_falls_silent_fails_and_the_socket_timeout_is_restored(
    serve: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "SOCKET_TIMEOUT_S", 0.5)
    url = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nfirst bytes")
    with socket_timeout(), pytest.raises(TimeoutError), urllib.request.urlopen(url) as response:
        response.read()
    assert socket.getdefaulttimeout() is None
