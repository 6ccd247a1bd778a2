"""Searches over trials that are already trained: the reports to Ray Tune, the log, and failures."""

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from kp_ray.config.schema import Config
from kp_ray.errors import DivergedError, StoppedError, StorageError
from kp_ray.tuning.records import read_search_log
from kp_ray.tuning.search import tune
from kp_ray.tuning.space import build_recipe_sets, first_points
from kp_ray.tuning.trials import read_trials
from tests.helpers.clusters import ray_temp_dir
from tests.helpers.processes import finish
from tests.helpers.searches import start_search, write_trial

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]  # each trial's process imports torch


def write_trained_trials(config: Config, final_values: list[float]) -> None:
    """Write the files of trained trials that have not reported yet; `final_values` are their last RMSEs."""
    points = first_points(config, build_recipe_sets(config))
    for number, value in enumerate(final_values):
        write_trial(config, f"trial-{number:03d}", number + 1.0, {2: 90.0, 8: value}, params=points[number % 2])
        Path(config.path("tune", "trials", f"trial-{number:03d}", "model_final.pth")).touch()


def test_trials_report_in_order_and_a_failure_is_recorded(make_config: Callable[..., Config]) -> None:
    config = make_config(tune={"num_trials": 3, "max_iter": 8, "scheduler": "none", "max_concurrent": 1})
    write_trained_trials(config, [40.0, math.nan, 30.0])
    calls: list[tuple[str, int, int, str]] = []
    summary = tune(config, lambda name, done, total, note="": calls.append((name, done, total, note)))
    assert (summary.trials, summary.failed, summary.best, summary.trial) == (3, 1, 30.0, "trial-002")
    reports = [(report.trial, report.iteration, report.value) for report in read_search_log(config)]
    assert reports == [
        ("trial-000", 2, 90.0),
        ("trial-000", 8, 40.0),
        ("trial-001", 2, 90.0),
        ("trial-001", 0, None),
        ("trial-002", 2, 90.0),
        ("trial-002", 8, 30.0),
    ]
    assert [trial.reason for trial in read_trials(config)] == ["", "its last evaluation has no rmse", ""]
    assert calls[-1][:3] == ("trial-002", 8, 8)
    assert calls[-1][3].startswith("finished rmse 30 ")
    ends = [(name, note.split()[0]) for name, _, _, note in calls if not note.startswith("running")]
    assert ends == [
        ("trial-000", "finished"),
        ("trial-001", "failed"),
        ("trial-002", "finished"),
    ]  # each end is reported once


def test_a_search_that_ended_with_an_error_of_the_progress_callback_can_be_resumed(
    make_config: Callable[..., Config],
) -> None:
    config = make_config(tune={"num_trials": 1, "max_iter": 8, "scheduler": "none"})
    write_trained_trials(config, [40.0])

    def raise_error(name: str, done: int, total: int, note: str = "") -> None:
        raise StorageError("/full: cannot be written: No space left on device")

    with pytest.raises(StoppedError, match=r"the search stopped: /full: cannot be written: No space left on device: "):
        tune(config, raise_error)
    assert tune(config).best == 40.0


def test_a_search_whose_trials_all_fail_for_good_ends_with_the_first_reason(make_config: Callable[..., Config]) -> None:
    config = make_config(tune={"num_trials": 1, "max_iter": 8, "scheduler": "none"})
    write_trained_trials(config, [math.nan])
    with pytest.raises(DivergedError, match="no trial reported rmse; the first reason: its last evaluation"):
        tune(config)


def test_rays_logs_hold_no_credential(make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"AWS_ACCESS_KEY_ID": "KEY-OF-THE-TEST", "AWS_SECRET_ACCESS_KEY": "SECRET-OF-THE-TEST"}
    config = make_config(
        tune={"num_trials": 1, "max_iter": 8, "scheduler": "none"},
        train={"mlflow": "https://user:PASSWORD-OF-THE-TEST@mlflow.example" if find_spec("mlflow") else None},
    )
    write_trained_trials(config, [40.0])
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    with ray_temp_dir() as ray_files:
        monkeypatch.setenv("RAY_TMPDIR", ray_files)
        assert finish(start_search(config))["best"] == 40.0
        logs = [path for path in Path(ray_files).rglob("logs/**/*") if path.is_file()]
        contents = b"".join(path.read_bytes() for path in logs)
    assert b"PL_DISABLE_FORK" in contents  # the logs hold the runtime environment of the trial
    for secret in (*secrets.values(), "PASSWORD-OF-THE-TEST"):
        assert secret.encode() not in contents
