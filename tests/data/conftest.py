"""Fixtures of the tests of label files."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """A function that writes text or bytes to a file, `labels.csv` unless named, and returns its path."""

    def write_file(content: str | bytes, name: str = "labels.csv") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_file
