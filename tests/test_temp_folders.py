"""Processes share a temporary folder, and it disappears when the last of them ends or is killed."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kp_ray.errors import StorageError
from kp_ray.temp_folders import shared_temp_folder
from tests.helpers.processes import wait_until

USER = """
import time
from kp_ray.temp_folders import shared_temp_folder

with shared_temp_folder("shared") as folder:
    folder.joinpath("file").write_text("content")
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `tempfile` use a folder that only this test uses, also in processes that the test starts."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def start_user() -> "subprocess.Popen[str]":
    """Start a process that writes a file into the shared folder; return when the file is there."""
    user = subprocess.Popen([sys.executable, "-c", USER], stdout=subprocess.PIPE, text=True)
    assert user.stdout is not None
    assert Path(user.stdout.readline().strip(), "file").exists()
    return user


def kill(user: "subprocess.Popen[str]") -> None:
    """Kill a process as the kernel does when memory runs out."""
    with user:
        user.kill()


def test_a_folder_lasts_as_long_as_its_last_user() -> None:
    with shared_temp_folder("shared") as folder:
        with shared_temp_folder("shared") as same_folder, shared_temp_folder("other") as other_folder:
            assert same_folder == folder != other_folder
        wait_until(lambda: not other_folder.exists(), timeout_s=30)
        assert folder.exists()
        folder.joinpath("file").touch()
    wait_until(lambda: not os.listdir(folder.parent), timeout_s=30)


def test_the_folder_of_killed_processes_disappears_with_the_last_of_them() -> None:
    first, second = start_user(), start_user()
    kill(first)
    with shared_temp_folder("shared") as folder:
        assert folder.joinpath("file").exists()
    kill(second)
    wait_until(lambda: not os.listdir(folder.parent), timeout_s=30)


def test_a_folder_whose_guard_was_killed_is_removed_by_the_next_guard() -> None:
    with shared_temp_folder("shared") as folder:
        left_over = folder.with_name("0123")
        left_over.with_suffix(".users").touch()
        left_over.mkdir()
        left_over.joinpath("file").touch()
    wait_until(lambda: not left_over.with_suffix(".users").exists(), timeout_s=30)
    assert not left_over.exists()


def test_a_parent_folder_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other_uid = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other_uid)
    with pytest.raises(StorageError, match=r"it belongs to another user.*: set TMPDIR"), shared_temp_folder("shared"):
        pass
