"""Object storage: data, store, run folder and predictions on a real S3 server on this machine."""

import gc
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs
import pytest

from kp_ray.errors import StorageError
from kp_ray.storage import exists, file_sizes, read_bytes, write_bytes, writer_lock
from kp_ray.store.manifest import row_schema
from kp_ray.store.parts import PartWriter, make_variants
from kp_ray.store.plan import make_plan
from tests.helpers.clusters import free_ports
from tests.helpers.data import tiny_config
from tests.helpers.processes import KP_RAY

WEED = str(Path(sys.executable).with_name("weed"))
KEY, SECRET = "an-access-key-of-the-tests", "a-secret-key-of-the-tests"
BUCKET = "kp-ray-tests"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a SeaweedFS server that checks signatures; set and return the variables with which clients reach it."""
    folder = tmp_path_factory.mktemp("seaweed")
    ports = free_ports(8)
    port_options = (
        "s3.port",
        "s3.port.grpc",
        "master.port",
        "master.port.grpc",
        "volume.port",
        "volume.port.grpc",
        "filer.port",
        "filer.port.grpc",
    )
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    command = [
        WEED,
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=30",
        "-volume.minFreeSpace=64MiB",  # the default, 1 % of the disk, refuses every object on a large disk nearly full
        *(f"-{name}={port}" for name, port in zip(port_options, ports, strict=True)),
    ]
    environment = {
        **keys,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[0]}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **keys})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            create_bucket(server, folder / "log")
            yield environment
        finally:
            server.kill()
            server.wait()


def create_bucket(server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Create the test bucket as soon as the server stores an object in it; fail with the server's log.

    On a slow machine a new server makes folders for many seconds before it has volumes for the content of objects.
    """
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        try:
            fs, _ = pafs.FileSystem.from_uri(f"s3://{BUCKET}?allow_bucket_creation=true")
            fs.create_dir(BUCKET)
            with fs.open_output_stream(f"{BUCKET}/probe") as stream:
                stream.write(b"probe")
            fs.delete_file(f"{BUCKET}/probe")
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.5)
        else:
            return
    raise AssertionError(log.read_text()[-2000:])


def url(*parts: str) -> str:
    """Return the URL of an object in the test bucket."""
    return "/".join([f"s3://{BUCKET}", *parts])


@pytest.mark.usefixtures("s3")
def test_objects_with_unusual_names_are_written_found_listed_and_read() -> None:
    names = ["plain.jpg", "a blank.jpg", "가-0001.jpg", "x#y.jpg", "p%20q.jpg", "a+b=c.jpg", "deep/er/z.jpg"]
    for name in names:
        write_bytes(url("names", name), name.encode())
    assert {name: read_bytes(url("names", name)).decode() for name in names} == {name: name for name in names}
    assert file_sizes(url("names")) == {name: len(name.encode()) for name in names}
    assert exists(url("names"))
    assert exists(url("names", "deep"))
    assert not exists(url("names", "none.jpg"))
    for read in (read_bytes, file_sizes):
        with pytest.raises(StorageError, match="there is no such f"):
            read(url("names", "none"))


class StallingProxy:
    """A TCP proxy in front of the server.

    Once the client has sent more than `limit` bytes, the proxy sets `limit_reached` and forwards nothing for a minute.
    """

    def __init__(self, target: str, limit: int) -> None:
        self.target, self.limit, self.num_sent = urlsplit(target), limit, 0
        self.limit_reached = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self.listener.accept()
            server = socket.create_connection((self.target.hostname or "", self.target.port or 0))
            for source, sink, is_upload in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._forward, args=(source, sink, is_upload), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, is_upload: bool) -> None:
        try:
            while content := source.recv(1 << 16):
                self.num_sent += len(content) if is_upload else 0
                if self.num_sent > self.limit:
                    self.limit_reached.set()
                    time.sleep(60)  # longer than the test needs to kill the writer
                sink.sendall(content)
        except OSError:
            pass


def test_a_writer_that_is_killed_during_an_upload_leaves_no_object(s3: dict[str, str]) -> None:
    proxy = StallingProxy(s3["AWS_ENDPOINT_URL"], limit=25_000_000)
    code = f"from kp_ray.storage import write_bytes; write_bytes({url('killed.bin')!r}, bytes(64_000_000))"
    writer = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "AWS_ENDPOINT_URL": proxy.url})
    assert proxy.limit_reached.wait(120)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert not exists(url("killed.bin"))
    write_bytes(url("killed.bin"), bytes(64_000_000))
    assert file_sizes(url())["killed.bin"] == 64_000_000


@pytest.mark.usefixtures("s3")
def test_an_error_while_a_part_is_written_leaves_no_object(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path, augment={"sources_per_part": 1})
    plan = make_plan(config.model_copy(update={"run_dir": url("cut")}))
    chunk = plan.chunks[0]
    part, target = chunk.parts[0], f"{plan.store}/{chunk.parts[0].path}"
    rows, _ = make_variants(plan, chunk.sources[0], [(part.recipe, part.copies)])
    schema = row_schema(len(plan.skeleton))

    def write_half() -> None:
        with PartWriter(plan.store, part, schema) as writer:
            writer.add(rows[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    gc.collect()
    assert not exists(target)
    with PartWriter(plan.store, part, schema) as writer:
        writer.add(rows[0])
        record = writer.finish({"quarantined": []})
    assert hashlib.sha256(read_bytes(target)).hexdigest() == record.sha256


def test_a_wrong_secret_key_is_refused_without_printing_the_key(s3: dict[str, str]) -> None:
    code = f"from kp_ray.cli.main import main; main(['check', {url('config.yaml')!r}])"
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": "another-secret"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"kp-ray: {url('config.yaml')}: ")
    assert result.stderr.count("\n") == 1
    assert "ACCESS_DENIED" in result.stderr
    assert "another-secret" not in result.stderr


@pytest.mark.usefixtures("s3")
def test_a_bucket_has_no_writer_lock() -> None:
    with writer_lock(url("run")), writer_lock(url("run")):
        assert not exists(url("run", ".lock"))


def upload(path: Path, target: str) -> str:
    """Copy a local file, or the files of a folder, to a URL and return the URL."""
    if path.is_file():
        write_bytes(target, path.read_bytes())
    for file in path.iterdir() if path.is_dir() else ():
        write_bytes(f"{target}/{file.name}", file.read_bytes())
    return target


@pytest.mark.slow
def test_the_whole_pipeline_runs_on_a_bucket_and_writes_no_secret(
    s3: dict[str, str], sample_data: dict[str, Any], tmp_path: Path
) -> None:
    data = {key: upload(Path(path), url("data", Path(path).name)) for key, path in sample_data.items()}
    values = tiny_config(
        sample_data, tmp_path / "run", tune={"num_trials": 1, "max_iter": 4}, predict={"actors": [1, 1]}
    ).to_dict()
    values |= {"run_dir": url("run"), "data": {**values["data"], **data}}
    write_bytes(url("config.yaml"), json.dumps(values).encode())
    with tempfile.TemporaryDirectory(prefix="kps", dir="/tmp") as ray_files:  # a short path, for Ray's sockets
        result = subprocess.run(
            [KP_RAY, "run", url("config.yaml"), "--json"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **s3, "RAY_TMPDIR": ray_files},
            timeout=500,
            check=False,
        )
        logs = b"".join(path.read_bytes() for path in Path(ray_files).rglob("*.*") if path.is_file())
    assert result.returncode == 0, result.stderr[-3000:]
    sizes = file_sizes(url("run"))
    for name in (
        "store/_manifest.json",
        "members/a/model_final.pth",
        "tune/trials/trial-000/end.json",
        "tune/best.yaml",
        "predictions.parquet",
        "submission.csv",
        "evaluation.json",
        "report.html",
    ):
        assert sizes[name] > 0, name
    assert json.loads(result.stdout.splitlines()[-1])["evaluation"]["num_images"] == 10
    assert not list(tmp_path.iterdir())
    assert b"ray" in logs
    run_files = b"".join(read_bytes(url("run", name)) for name in sizes)
    for secret in (KEY.encode(), SECRET.encode()):
        assert secret not in logs + run_files + result.stdout.encode() + result.stderr.encode()
