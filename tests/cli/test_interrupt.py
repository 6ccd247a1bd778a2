"""Ctrl-C: progress ends the work if Ray has swallowed it, and a verb says whether the same command resumes."""

import io
import threading
from pathlib import Path
from typing import NoReturn

import pytest
from rich.console import Console

from kp_ray.cli import progress as progress_module
from kp_ray.cli.main import main
from kp_ray.cli.progress import show_progress
from kp_ray.cluster import session as session_module
from kp_ray.config.schema import Config
from kp_ray.pipeline import make_stage

STOPPED = "stopped"
STOPPED_AND_RESUMABLE = "stopped; run the same command to resume"


def interrupt(*_: object) -> NoReturn:
    """Raise what Ctrl-C raises."""
    raise KeyboardInterrupt


def stop_verb(verb: str, config: Config, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a verb that is interrupted; return the last line on stderr."""
    (folder / "config.yaml").write_text(config.to_yaml())
    with pytest.raises(SystemExit) as end:
        main([verb, str(folder / "config.yaml")])
    assert end.value.code == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.fixture
def pressed_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call a session's handler of Ctrl-C, and swallow its KeyboardInterrupt as Ray does."""
    monkeypatch.setattr(session_module, "_interrupt_event", threading.Event())
    with pytest.raises(KeyboardInterrupt):
        session_module._interrupt()


@pytest.mark.parametrize(("is_terminal", "name"), [(False, "_LineProgress"), (True, "_BarProgress")])
def test_progress_ends_the_work_after_a_swallowed_ctrl_c(
    pressed_ctrl_c: None, monkeypatch: pytest.MonkeyPatch, is_terminal: bool, name: str
) -> None:
    monkeypatch.setattr(progress_module, "console", Console(file=io.StringIO(), force_terminal=is_terminal))
    with show_progress("train") as progress:
        assert type(progress).__name__ == name
        with pytest.raises(KeyboardInterrupt):
            progress("a", 1, 10)
        session_module._interrupt_event.clear()
        progress("a", 2, 10)


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        *((verb, STOPPED_AND_RESUMABLE) for verb in ("augment", "tune", "train", "crossval", "predict", "suspects")),
        *((verb, STOPPED) for verb in ("check", "evaluate")),
    ],
)
def test_a_stopped_verb_says_whether_the_same_command_resumes(
    sample_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    line: str,
) -> None:
    stage_class = type(make_stage(verb))
    monkeypatch.setattr(stage_class, "check", lambda *_: None)
    monkeypatch.setattr(stage_class, "is_done", lambda *_: True)  # no cluster is started
    monkeypatch.setattr(stage_class, "run", interrupt)
    assert stop_verb(verb, sample_config, tmp_path, capsys) == line


def test_a_stopped_run_of_the_pipeline_is_resumed_by_the_same_command(
    sample_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(make_stage("check")), "run", interrupt)
    assert stop_verb("run", sample_config, tmp_path, capsys) == STOPPED_AND_RESUMABLE
