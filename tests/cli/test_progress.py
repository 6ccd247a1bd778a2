"""Progress outside a terminal: lines, not too many, and one for every change of state. In a terminal: bars."""

import re
import time
from io import StringIO

import pytest
from rich.console import Console

from kp_ray.cli import progress as progress_module
from kp_ray.cli.progress import show_progress


def test_lines_are_printed_at_the_start_at_the_end_and_when_a_trial_changes_its_state(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_progress("tune") as progress:
        for done, note in (
            (0, "running"),
            (4, "running rmse 50"),
            (8, "stopped rmse 40"),
        ):
            progress("trial-001", done, 60, note)
        for done, note in ((0, "running"), (0, "failed"), (0, "running"), (0, "failed")):
            progress("trial-002", done, 60, note)
        for done, note in ((0, "running"), (30, "running rmse 30"), (60, "running rmse 20"), (60, "finished rmse 20")):
            progress("trial-003", done, 60, note)
    lines = re.findall(
        r"^tune (\S+ \d+)/60, .*(running|stopped|failed|finished)", capsys.readouterr().err, re.MULTILINE
    )
    assert lines == [
        ("trial-001 0", "running"),
        ("trial-001 8", "stopped"),
        *[("trial-002 0", "running"), ("trial-002 0", "failed")] * 2,
        ("trial-003 0", "running"),
        ("trial-003 60", "running"),
        ("trial-003 60", "finished"),
    ]


def test_a_line_is_printed_every_ten_seconds_per_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with show_progress("predict") as progress:
        for second in range(25):
            now = 100.0 + second
            progress("a", second, 40, "2 actors")
            if second >= 9:
                progress("b", second, 40)
        progress("a", 40, 40, "2 actors")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if " a " in line] == [
        "predict a 0/40, 0.0/s 2 actors",
        "predict a 10/40, 1.0/s, 30 s left 2 actors",
        "predict a 20/40, 1.0/s, 20 s left 2 actors",
        "predict a 40/40, 1.7/s 2 actors",
    ]
    assert [line for line in lines if " b " in line] == ["predict b 9/40, 0.0/s", "predict b 19/40, 1.0/s, 21 s left"]


def test_a_terminal_shows_one_bar_per_name_with_the_latest_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    screen = StringIO()
    monkeypatch.setattr(progress_module, "console", Console(force_terminal=True, file=screen, width=100))
    with show_progress("train") as progress:
        for name, done, total, note in (("a", 1, 9, "loss 9.50"), ("b [x]", 2, 4, ""), ("a", 3, 4, "loss 7.25")):
            progress(name, done, total, note)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())  # without control sequences
    first_bar, second_bar = text.splitlines()[-2:]
    assert re.match(r"train a +━.* 3/4 .*loss 7\.25", first_bar)
    assert re.match(r"train b \[x\] +━.* 2/4 ", second_bar)
