"""Read the log of a member or trial, `metrics.json`. This module imports no torch, so that the report can use it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kp_ray.errors import StorageError
from kp_ray.storage import join, read_text

LOG_NAME = "metrics.json"
"""Name of the log in a member's or trial's folder; `log_writers.py` writes it."""
EVALUATION_PREFIX = "val/"
"""Prefix of a validation metric's name in the log."""


@dataclass(frozen=True)
class LogEntry:
    """The logged values of one iteration.

    Attributes:
        iteration: number of the iteration, from 0.
        values: numbers by name, possibly NaN: `total_loss`, the single losses, `lr`, `time` and `data_time` (seconds
            per iteration), `workers`, and `val/<metric>` if the iteration ended with an evaluation.
    """

    iteration: int
    values: Mapping[str, float]

    @property
    def evaluation(self) -> dict[str, float]:
        """The metrics of the evaluation after this iteration; empty if there was none."""
        prefix = EVALUATION_PREFIX
        return {name.removeprefix(prefix): value for name, value in self.values.items() if name.startswith(prefix)}

    def to_line(self) -> str:
        """Encode the entry as Detectron2's `JSONWriter` does."""
        return json.dumps({"iteration": self.iteration, **self.values}, sort_keys=True) + "\n"


def read_training_log(folder: str, fix: str | None = None) -> list[LogEntry]:
    """Read the log of a member or trial, one entry per iteration, in order; empty if there is none.

    If an iteration has several lines, as after a resume, their values are merged; a later line overrides.

    Args:
        folder: the folder of the member or trial, local or a URL.
        fix: advice that ends the error message about a damaged line; None skips damaged lines.

    Raises:
        StorageError: a line is damaged and `fix` is given.
    """
    path = join(folder, LOG_NAME)
    entries: dict[int, LogEntry] = {}
    for line in _read_lines(path):
        entry = _parse_line(line)
        if entry is not None:
            earlier = entries.get(entry.iteration, entry)
            entries[entry.iteration] = LogEntry(entry.iteration, {**earlier.values, **entry.values})
        elif fix is not None:
            raise StorageError(f"{path}: damaged (a line is no JSON object with an iteration: {line[:80]!r}): {fix}")
    return [entries[iteration] for iteration in sorted(entries)]


def read_latest_entry(folder: str) -> LogEntry | None:
    """Read the last entry of a log without parsing the others; None if there is none."""
    lines = reversed(_read_lines(join(folder, LOG_NAME)))
    return next((entry for line in lines if (entry := _parse_line(line)) is not None), None)


def _read_lines(path: str) -> list[str]:
    return (read_text(path) or "").splitlines()


def _parse_line(line: str) -> LogEntry | None:
    """Return the entry of a line; None if the line is damaged."""
    try:
        record: dict[str, Any] = json.loads(line)
        iteration = int(record.pop("iteration"))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    return LogEntry(iteration, {name: value for name, value in record.items() if _is_number(value)})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
