"""Print lines and progress for the command line: bars in a terminal, lines in a log."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from kp_ray.cluster.session import raise_if_interrupted
from kp_ray.errors import one_line
from kp_ray.stage import Progress

LOG_PERIOD_S = 10.0
"""Seconds between two progress lines of the same name, if stderr is not a terminal."""

console = Console(stderr=True, highlight=False)


def say(line: str) -> None:
    """Print one line to stderr, without wrapping (paths are long) and without markup (names may hold brackets)."""
    console.print(line, markup=False, soft_wrap=True)


@contextlib.contextmanager
def show_progress(verb: str) -> Iterator[Progress]:
    """Yield a `Progress` that draws bars in a terminal and prints lines elsewhere."""
    if console.is_terminal:
        with _bars() as bars:
            yield _BarProgress(verb, bars)
    else:
        yield _LineProgress(verb)


def _bars() -> Bars:
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Bars(*columns, TextColumn("{task.fields[note]}", markup=False), console=console)


class _BarProgress:
    """Draws one bar per name."""

    def __init__(self, verb: str, bars: Bars) -> None:
        self.verb, self.bars = verb, bars
        self.tasks: dict[str, Any] = {}

    def __call__(self, name: str, done: int, total: int, note: str = "") -> None:
        raise_if_interrupted()
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(f"{self.verb} {name}".strip(), total=total, note=note)
        self.bars.update(self.tasks[name], completed=done, total=total, note=note)


class _LineProgress:
    """Prints a name's first and last progress, and a line every `LOG_PERIOD_S` in between.

    It also prints a line when the first word of the note changes: that of a trial is its state.
    """

    def __init__(self, verb: str) -> None:
        self.verb = verb
        # By name: time and number of finished items, at the first call and at the last printed line, which also has the
        # first word of its note.
        self.first_calls: dict[str, tuple[float, int]] = {}
        self.last_lines: dict[str, tuple[float, int, str]] = {}

    def __call__(self, name: str, done: int, total: int, note: str = "") -> None:
        raise_if_interrupted()
        now = time.monotonic()
        first_time, first_done = self.first_calls.setdefault(name, (now, done))
        first_word = note.partition(" ")[0]
        last_time, last_done, last_word = self.last_lines.get(name, (now - LOG_PERIOD_S, -1, first_word))
        is_too_soon = now - last_time < LOG_PERIOD_S and done < total
        if first_word == last_word and (done == last_done or is_too_soon):
            return
        self.last_lines[name] = now, done, first_word
        rate = (done - first_done) / (now - first_time) if now > first_time else 0.0
        time_left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        say(one_line(f"{self.verb} {name} {done}/{total}, {rate:.1f}/s{time_left} {note}"))
