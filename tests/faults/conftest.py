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
    """Start `kp-ray augment`; a process that still runs after the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(config: Path, *settings: str) -> subprocess.Popen[str]:
        started.append(start_kp_ray("augment", str(config), "--json", *set_options(*settings)))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mount a file system of 5 MiB."""
    with mounted_disk(tmp_path / "disk", 5 << 20) as mounted:
        yield mounted
