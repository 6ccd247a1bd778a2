"""Parts of a remote store are copied to a node's disk once, and the copies are removed after use."""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as pafs
import pytest

from kp_ray.store.local_copies import PartCopies, local_copies
from tests.helpers.processes import wait_until

URL = "s3://bucket/store"


@pytest.fixture
def parts(tmp_path: Path) -> list[str]:
    """Write four files of 1000 bytes that stand for remote parts."""
    folder = tmp_path / "remote"
    folder.mkdir()
    for number in range(4):
        (folder / str(number)).write_bytes(bytes([number]) * 1000)
    return [str(folder / str(number)) for number in range(4)]


@pytest.fixture(autouse=True)
def temp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `tempfile` use a folder that only this test uses."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_threads_and_processes_share_one_copy_of_a_part(
    parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copies"
    located_paths: list[str] = []
    copied_paths: list[str] = []
    copy_files = pafs.copy_files

    def copy_slowly(source: str, *arguments: Any, **options: Any) -> None:
        copied_paths.append(source)
        time.sleep(0.2)  # so that all threads ask for the part before the copy exists
        copy_files(source, *arguments, **options)

    monkeypatch.setattr(pafs, "copy_files", copy_slowly)

    def locate(copies: PartCopies) -> None:
        located_paths.append(copies.locate(parts[1]))

    # Stands for two processes: each has a `PartCopies` of its own for the same folder, with room for all parts.
    copies_by_process = [PartCopies(folder, max_bytes=10_000) for _ in range(2)]
    threads = [threading.Thread(target=locate, args=(copies,)) for copies in copies_by_process * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert copied_paths == [parts[1]]
    assert len(located_paths) == len(threads) == 8
    (copy_path,) = set(located_paths)
    assert Path(copy_path).read_bytes() == bytes([1]) * 1000
    Path(parts[1]).unlink()
    assert PartCopies(folder, max_bytes=0).locate(parts[1]) == copy_path


def test_copies_do_not_exceed_the_limit(parts: list[str], tmp_path: Path) -> None:
    copies = PartCopies(tmp_path / "copies", max_bytes=2500)  # room for two parts
    located_paths = [copies.locate(part) for part in parts]
    assert [path == part for path, part in zip(located_paths, parts, strict=True)] == [False, False, True, True]
    assert copies.locate(parts[0]) == located_paths[0]


def test_without_a_limit_copies_take_half_of_the_space_that_was_free_before_them(
    parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = 3000

    def measure_disk(folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=num_bytes - sum(path.stat().st_size for path in Path(folder).glob("*.parquet")))

    monkeypatch.setattr(shutil, "disk_usage", measure_disk)
    located_paths = [PartCopies(tmp_path / "small", max_bytes=None).locate(part) for part in parts]
    assert [path in parts for path in located_paths] == [False, True, True, True]
    num_bytes = 4000
    # Each call stands for another process of the node, which begins after the copies of the earlier ones.
    located_paths = [PartCopies(tmp_path / "large", max_bytes=None).locate(part) for part in parts]
    assert [path in parts for path in located_paths] == [False, False, True, True]


def test_copies_that_are_made_at_the_same_time_do_not_exceed_the_limit(
    parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_have_begun = threading.Barrier(2, timeout=2)
    copy_files = pafs.copy_files

    def copy_slowly(*arguments: Any, **options: Any) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both_have_begun.wait()
        copy_files(*arguments, **options)

    monkeypatch.setattr(pafs, "copy_files", copy_slowly)
    copies = PartCopies(tmp_path / "copies", max_bytes=1500)  # room for one part
    with ThreadPoolExecutor(2) as pool:
        located_paths = list(pool.map(copies.locate, parts[:2]))
    assert [path in parts for path in sorted(located_paths)].count(True) == 1


def test_a_part_that_cannot_be_copied_is_read_from_the_store(parts: list[str], tmp_path: Path) -> None:
    copies = PartCopies(tmp_path / "copies", max_bytes=10_000)
    missing_part = f"{parts[0]}.missing"
    assert copies.locate(missing_part) == missing_part
    assert copies.locate(parts[0]) != parts[0]
    assert not list((tmp_path / "copies").glob("*.partial"))


def test_copies_are_removed_after_their_last_use(parts: list[str]) -> None:
    with local_copies(URL) as locate_for_first_user:
        copy_path = Path(locate_for_first_user(parts[0]))
        with local_copies(URL) as locate_for_second_user:
            assert locate_for_second_user(parts[0]) == str(copy_path)
        assert copy_path.exists()
    wait_until(lambda: not os.listdir(copy_path.parent.parent), timeout_s=30)


def test_parts_of_a_local_store_are_not_copied(parts: list[str], tmp_path: Path, temp_dir: Path) -> None:
    with local_copies(str(tmp_path)) as locate:
        assert locate(parts[0]) == parts[0]
    assert not list(temp_dir.iterdir())
