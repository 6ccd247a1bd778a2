"""Copies of a remote store's parts on a node's disk."""

import tempfile
import threading
from pathlib import Path

import pytest

from kp_ray.store import local_copies as module
from kp_ray.store.local_copies import PartCopies, local_copies

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
    """Use a temporary folder of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_part_is_copied_once_by_all_threads_and_processes(parts: list[str], tmp_path: Path) -> None:
    stores = [PartCopies(tmp_path / "copies", 10_000) for _ in range(2)]
    located: list[str] = []
    threads = [
        threading.Thread(target=lambda copies=copies: located.append(copies.locate(parts[1]))) for copies in stores * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (copy,) = set(located)
    assert Path(copy).read_bytes() == bytes([1]) * 1000
    Path(parts[1]).unlink()
    assert PartCopies(tmp_path / "copies", 0).locate(parts[1]) == copy


def test_copies_do_not_grow_over_the_limit(parts: list[str], tmp_path: Path) -> None:
    copies = PartCopies(tmp_path / "copies", 2500)
    located = [copies.locate(part) for part in parts]
    assert [path == part for path, part in zip(located, parts, strict=True)] == [False, False, True, True]
    assert copies.locate(parts[0]) == located[0]


def test_a_part_that_cannot_be_copied_is_read_from_its_place(parts: list[str], tmp_path: Path) -> None:
    copies = PartCopies(tmp_path / "copies", 10_000)
    missing = f"{parts[0]}.missing"
    assert copies.locate(missing) == missing
    assert copies.locate(parts[0]) != parts[0]
    assert not list((tmp_path / "copies").glob("*.partial"))


def test_the_last_user_removes_the_copies(parts: list[str], temp_dir: Path) -> None:
    with local_copies(URL) as first:
        copy = Path(first(parts[0]))
        with local_copies(URL) as second:
            assert second(parts[0]) == str(copy)
        assert copy.exists()
    assert not [path for path in temp_dir.rglob("*") if path.is_file()]


def test_copies_of_killed_processes_are_removed_by_the_next_user(parts: list[str], temp_dir: Path) -> None:
    abandoned = next(temp_dir.glob("*"), temp_dir / f"kp_ray-parts-{module.os.getuid()}")
    abandoned.mkdir(mode=0o700)
    (abandoned / "0123.users").touch()
    (abandoned / "0123").mkdir()
    (abandoned / "0123" / "part.parquet").write_bytes(b"x")
    with local_copies(URL) as locate:
        assert not (abandoned / "0123").exists()
        assert locate(parts[0]) != parts[0]


def test_parts_of_a_local_store_are_not_copied(parts: list[str], tmp_path: Path, temp_dir: Path) -> None:
    with local_copies(str(tmp_path)) as locate:
        assert locate(parts[0]) == parts[0]
    assert not list(temp_dir.iterdir())
