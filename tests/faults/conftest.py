"""Fixtures of the tests that kill processes, fill disks and load clusters."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.augment_runs import StartAugment
from tests.helpers.disks import Disk, mounted_disk
from tests.helpers.processes import set_options, start_kp_ray


@pytest.fixture
def start_augment() -> Iterator[StartAugment]:
    """Return a function that starts `kp-ray augment`; kill the commands that still run after the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(config: Path, *settings: str) -> subprocess.Popen[str]:
        processes.append(start_kp_ray("augment", str(config), "--json", *set_options(*settings)))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mount a file system of 5 MiB."""
    with mounted_disk(tmp_path / "disk", 5 << 20) as small_disk:
        yield small_disk
