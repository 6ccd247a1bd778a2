"""Small file systems that become full or read-only."""

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    """A file system in memory, mounted at `folder`."""

    folder: Path

    def remount(self, options: str) -> None:
        """Change mount options: `ro` makes it read-only, `size=BYTES` resizes it."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)


@contextlib.contextmanager
def mounted_disk(folder: Path, num_bytes: int) -> Iterator[Disk]:
    """Mount a file system of `num_bytes` at a new folder; skip the test if this process may not mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        pytest.skip(f"cannot mount a disk: {process.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
