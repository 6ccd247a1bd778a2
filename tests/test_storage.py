"""Files at local paths: atomic writes, errors that name a damaged file, the writer lock. URLs: tests/test_s3.py."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kp_ray.errors import RunStateError, StorageError
from kp_ray.storage import (
    PIECE_BYTES,
    absolute_path,
    delete_file,
    delete_folder,
    exists,
    file_infos,
    file_sizes,
    filesystem,
    hash_file,
    is_local,
    join,
    list_folders,
    read_bytes,
    read_parquet,
    read_text,
    reader_lock,
    write_bytes,
    write_parquet,
    writer_lock,
)

FIX = "delete it and run predict again"


# Paths.


def test_local_paths_become_absolute_and_urls_are_unchanged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute_path("a/../b") == str(tmp_path / "b")
    assert absolute_path("~/run") == "/home/me/run"
    assert absolute_path("s3://bucket/a b#c") == "s3://bucket/a b#c"


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_an_empty_path_and_a_null_character_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="a path is expected"):
        absolute_path(path)
    with pytest.raises(StorageError, match="a path is expected"):
        filesystem(path)


def test_a_path_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(StorageError, match=r"^'caf\\udce9\.yaml': the path is not UTF-8: rename"):
        exists("caf\udce9.yaml")


@pytest.mark.parametrize("bucket", ["bucket", "b" * 200])
def test_credentials_in_a_path_are_refused_and_not_repeated(bucket: str) -> None:
    with pytest.raises(ValueError, match="credentials belong in the environment") as error:
        absolute_path(f"s3://a-key:a-secret@{bucket}/run")
    assert "a-key" not in str(error.value)
    assert "a-secret" not in str(error.value)


def test_names_of_a_path_are_joined_with_one_slash() -> None:
    assert join("s3://bucket/run/", "store", "a.parquet") == "s3://bucket/run/store/a.parquet"
    assert join("/run", "store") == "/run/store"


def test_the_error_about_an_unknown_scheme_names_the_url() -> None:
    with pytest.raises(StorageError, match="ftp://host/file: cannot be reached"):
        read_bytes("ftp://host/file")


def test_a_local_path_and_its_file_url_name_the_same_file(tmp_path: Path) -> None:
    write_bytes(f"file://{tmp_path}/a b/c.txt", b"content")
    path = str(tmp_path / "a b" / "c.txt")
    assert read_bytes(path) == b"content"
    assert exists(f"file://{path}")
    assert is_local(path)
    assert is_local(f"file://{path}")
    assert filesystem(path)[1] == path


# Bytes and folders.


def test_written_bytes_are_read_back_and_no_partial_file_is_left(tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "er" / "file #1.bin")
    assert not exists(path)
    write_bytes(path, b"first")
    write_bytes(path, b"second")
    assert exists(path)
    assert read_bytes(path) == b"second"
    assert file_sizes(str(tmp_path)) == {"deep/er/file #1.bin": 6}


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(str(path), b"earlier")

    def fill_disk(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", fill_disk)
    with pytest.raises(StorageError, match=f"{re.escape(str(path))}: cannot be written: .*No space left"):
        write_bytes(str(path), b"later")
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("file", b"earlier")]


def test_writers_with_the_same_process_number_do_not_share_a_partial_file(tmp_path: Path) -> None:
    """Threads stand for the pods of a cluster, whose processes can have the same number and share a folder."""
    path, contents = str(tmp_path / "file"), [bytes([number]) * 200_000 for number in range(4)]
    with ThreadPoolExecutor(len(contents)) as pool:
        for _ in range(20):
            list(pool.map(lambda content: write_bytes(path, content), contents))
            assert read_bytes(path) in contents
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_target_that_is_a_folder_leaves_no_partial_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder: cannot be written"):
        write_bytes(str(tmp_path / "folder"), b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_an_open_reader_keeps_the_content_that_it_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(str(path), b"old" * 1000)
    with path.open("rb") as reader:
        write_bytes(str(path), b"new" * 500)
        assert reader.read() == b"old" * 1000
    assert path.read_bytes() == b"new" * 500


def test_a_folder_with_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xbb\xe7\xc1\xf8.jpg")).write_bytes(b"x")
    with pytest.raises(StorageError, match="holds a file whose name is not UTF-8"):
        file_sizes(str(tmp_path))


@pytest.mark.parametrize("operation", [read_bytes, file_sizes, file_infos, hash_file, delete_file])
def test_the_error_for_a_missing_file_names_its_path(operation: Callable[[str], object], tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    with pytest.raises(StorageError, match=re.escape(path)) as error:
        operation(path)
    assert isinstance(error.value.__cause__, FileNotFoundError)


def test_files_and_folders_are_listed_and_deleted(tmp_path: Path) -> None:
    for name in ("b/1.txt", "a/2.txt", "3.txt"):
        write_bytes(str(tmp_path / name), b"x")
    assert list_folders(str(tmp_path)) == ["a", "b"]
    assert list_folders(str(tmp_path / "none")) == []
    assert set(file_infos(str(tmp_path))) == {"b/1.txt", "a/2.txt", "3.txt"}
    delete_file(str(tmp_path / "3.txt"))
    delete_folder(str(tmp_path / "b"))
    delete_folder(str(tmp_path / "b"))  # a missing folder is no error
    assert set(file_sizes(str(tmp_path))) == {"a/2.txt"}


@pytest.mark.parametrize("size", [0, 5, PIECE_BYTES + 1])
def test_a_file_is_hashed_piece_by_piece(size: int, tmp_path: Path) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "file").write_bytes(content)
    assert hash_file(str(tmp_path / "file")) == (size, hashlib.sha256(content).hexdigest())


# Text.


def test_text_is_read_without_a_byte_order_mark_and_invalid_bytes_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "text"
    assert read_text(str(path)) is None
    path.write_bytes(b"\xef\xbb\xbfa\xffb")
    assert read_text(str(path)) == "a\ufffdb"


# Parquet.


def test_a_table_is_written_and_read_back_by_column(tmp_path: Path) -> None:
    path, table = str(tmp_path / "table.parquet"), pa.table({"a": [1, 2], "b": ["x", None]})
    write_parquet(path, table)
    assert read_parquet(path, FIX).equals(table)
    assert read_parquet(path, FIX, ["b"]).equals(table.select(["b"]))


def test_the_error_for_a_missing_table_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=rf"none\.parquet: there is no such file: {FIX}"):
        read_parquet(str(tmp_path / "none.parquet"), FIX)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_a_flipped_bit_and_a_missing_end_of_a_table_are_reported_as_damage(fraction: float, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    write_parquet(str(path), pa.table({"a": pa.array(range(1000), pa.int64())}))
    content = path.read_bytes()
    position = int(fraction * len(content))
    content_with_flipped_bit = content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]
    for damaged_content in (content_with_flipped_bit, content[:position]):
        path.write_bytes(damaged_content)
        with pytest.raises(StorageError, match=rf"table\.parquet: damaged: .*: {FIX}"):
            read_parquet(str(path), FIX)


@pytest.mark.parametrize("text", [b"s0_A-0.jpg", b"image"], ids=["value", "column name"])
def test_text_that_is_not_utf_8_is_reported_as_damage_even_without_checksums(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    table = pa.table({"image": ["s0_A-0.jpg"]})
    pq.write_table(table, path, compression="none", use_dictionary=False, store_schema=False)
    path.write_bytes(path.read_bytes().replace(text, b"\xed" + text[1:]))
    with pytest.raises(StorageError, match=rf"predictions\.parquet: damaged: .*: {FIX}"):
        read_parquet(str(path), FIX)


# The lock.


def test_a_second_process_is_refused_until_the_first_releases_the_lock(tmp_path: Path) -> None:
    code = f"from kp_ray.storage import writer_lock\nwith writer_lock({str(tmp_path / 'run')!r}): print('held')"

    def write_in_another_process() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    with writer_lock(str(tmp_path / "run")):
        second_process = write_in_another_process()
        assert "RunStateError" in second_process.stderr
        assert "another process is using this folder" in second_process.stderr
    assert write_in_another_process().stdout == "held\n"


def test_readers_share_a_folder_and_exclude_writers(tmp_path: Path) -> None:
    folder = str(tmp_path)
    with reader_lock(folder), reader_lock(folder), pytest.raises(RunStateError, match="another process is using this"):
        writer_lock(folder).__enter__()
    with writer_lock(folder), pytest.raises(RunStateError, match="another process is using this folder"):
        reader_lock(folder).__enter__()


def test_a_reader_of_a_missing_or_read_only_folder_needs_no_lock(tmp_path: Path) -> None:
    with reader_lock(str(tmp_path / "missing")):
        assert not (tmp_path / "missing").exists()
    (tmp_path / ".lock").mkdir()  # like a read-only folder, it cannot be opened for writing
    with reader_lock(str(tmp_path)):
        pass


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writer_lock(str(tmp_path)):
        raise ZeroDivisionError
    with writer_lock(str(tmp_path)), pytest.raises(RunStateError), writer_lock(str(tmp_path)):
        pass
