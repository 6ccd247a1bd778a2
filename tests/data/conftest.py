"""Fixtures for the tests of label files."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes text or bytes to a file, by default `labels.csv`, and returns the path."""

    def write_file(content: str | bytes, name: str = "labels.csv") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_file
