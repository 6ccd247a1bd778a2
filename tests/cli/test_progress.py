"""Progress outside a terminal: lines, not too many, and one for every change of state."""

import re

import pytest

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
