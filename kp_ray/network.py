"""Time limits for services whose own clients would wait for minutes or forever."""

import contextlib
import http.client
import socket
import urllib.parse
from collections.abc import Iterator

ANSWER_TIMEOUT_S = 20.0
"""Seconds within which an object storage service must answer; pyarrow 25 waits 101 s."""
SOCKET_TIMEOUT_S = 60.0
"""Seconds without a byte after which a download fails; the downloader of Detectron2 has no limit."""


def require_answer(url: str, key: str) -> None:
    """Refuse an HTTP service that accepts connections but does not answer.

    Every answer is accepted, even an HTTP error. A refused connection is not reported here: the service's client
    retries it.

    Args:
        url: address of the service, e.g. "http://127.0.0.1:9000".
        key: setting that holds the address, for the message.

    Raises:
        TimeoutError: there is no answer within `ANSWER_TIMEOUT_S`.
    """
    address = urllib.parse.urlsplit(url)
    connection_class = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    client = connection_class(address.hostname or "", address.port, timeout=ANSWER_TIMEOUT_S)
    with contextlib.closing(client) as connection:
        try:
            connection.request("HEAD", "/")
            connection.getresponse()
        except TimeoutError as error:
            raise TimeoutError(
                f"{key}: no answer within {ANSWER_TIMEOUT_S:g} s (got {url}): start the service, or correct the address"
            ) from error
        except (OSError, http.client.HTTPException):
            return


@contextlib.contextmanager
def socket_timeout() -> Iterator[None]:
    """Make every socket that this process creates in the context fail after `SOCKET_TIMEOUT_S` without a byte."""
    previous_timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SOCKET_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous_timeout)
