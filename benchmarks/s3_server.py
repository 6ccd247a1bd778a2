"""Run a local S3 server that answers as late as a distant server."""

import asyncio
import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

BUCKET = "kp-ray-benchmark"


@contextlib.contextmanager
def slow_s3(folder: Path, latency_s: float) -> Iterator[str]:
    """Start a SeaweedFS server behind a proxy that delays each request, and set the environment for its clients.

    Args:
        folder: receives the server's files.
        latency_s: seconds by which every request is delayed.

    Yields:
        URL of an empty bucket.
    """
    ports = _free_ports(9)
    servers = ("s3", "master", "volume", "filer")
    options = [f"-{server}.port{protocol}" for server in servers for protocol in ("", ".grpc")]
    command = [
        str(Path(sys.executable).with_name("weed")),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-s3",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=60",
        *(f"{option}={port}" for option, port in zip(options, ports[:8], strict=True)),
    ]
    credentials = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark"}
    os.environ.update(credentials, AWS_ENDPOINT_URL=f"http://127.0.0.1:{ports[8]}", AWS_DEFAULT_REGION="us-east-1")
    proxy = multiprocessing.Process(target=_run_proxy, args=(ports[8], ports[0], latency_s), daemon=True)
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    proxy.start()
    try:
        _create_bucket()
        yield f"s3://{BUCKET}"
    finally:
        proxy.terminate()
        server.kill()
        server.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


def _create_bucket() -> None:
    for attempt in range(60):
        try:
            fs, _ = pafs.FileSystem.from_uri(f"s3://{BUCKET}?allow_bucket_creation=true")
            fs.create_dir(BUCKET)
        except OSError:
            if attempt == 59:
                raise
            time.sleep(0.5)
        else:
            return


def _run_proxy(port: int, target_port: int, latency_s: float) -> None:
    asyncio.run(_serve(port, target_port, latency_s))


async def _serve(port: int, target_port: int, latency_s: float) -> None:
    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 20):
                await asyncio.sleep(delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", target_port)
        except ConnectionRefusedError:  # the server has not started yet
            writer.close()
            return
        await asyncio.gather(copy(reader, target_writer, latency_s), copy(target_reader, writer, 0))

    async with await asyncio.start_server(connect, "127.0.0.1", port) as server:
        await server.serve_forever()
