"""The files from which a search resumes."""

import json
from dataclasses import asdict
from pathlib import Path

from kp_ray.config.load import build_config
from kp_ray.tuning.apply import SolverParams
from kp_ray.tuning.records import (
    MAX_REASON_CHARS,
    Report,
    TrialEnd,
    TrialStart,
    append_report,
    drop_reports_of_deleted_trials,
    read_end,
    read_reports,
    read_search_log,
    read_start,
    write_end,
    write_start,
)
from kp_ray.tuning.space import to_point
from tests.helpers.searches import write_search_log, write_trial

CONFIG = build_config({})
SOLVER = SolverParams(0.001, 10, "multistep", 2, "[30, 40]", 0.5, 0.1, True, "own")
START = TrialStart(12.5, to_point(CONFIG.train, CONFIG), 60, SOLVER)


def test_trial_json_is_one_flat_object_and_is_written_once(tmp_path: Path) -> None:
    assert read_start(str(tmp_path)) is None
    write_start(str(tmp_path), START)
    record = json.loads((tmp_path / "trial.json").read_text())
    assert record == {"began": 12.5, "params": asdict(START.params), "max_iter": 60, **asdict(SOLVER)}
    write_start(str(tmp_path), TrialStart(99.0, START.params, 60, SOLVER))
    assert read_start(str(tmp_path)) == START


def test_end_json_keeps_the_first_end_and_cuts_long_reasons(tmp_path: Path) -> None:
    assert read_end(str(tmp_path)) is None
    write_end(str(tmp_path), TrialEnd("cause " + "x" * 1000, is_final=False))
    write_end(str(tmp_path), TrialEnd())
    end = read_end(str(tmp_path))
    assert end
    assert end.reason.startswith("cause x")
    assert len(end.reason) <= MAX_REASON_CHARS + len(" ... ")
    assert not end.is_final


def test_reports_are_read_from_the_log_in_order(tmp_path: Path) -> None:
    config = build_config({"run_dir": str(tmp_path), "tune": {"metric": "pck_0.1"}})
    assert read_search_log(config) == []
    reports = [Report("trial-000", 2, 10.0, 0.5), Report("trial-001", 0, 3.0, None)]
    for report in reports:
        append_report(config, report)
    assert read_search_log(config) == reports
    lines = [json.loads(line) for line in Path(config.path("tune", "log.jsonl")).read_text().splitlines()]
    assert [list(line) for line in lines] == [["time", "trial", "iteration", "seconds", "pck_0.1"]] * 2


def test_the_reports_of_a_deleted_trial_are_dropped_before_it_starts_again(tmp_path: Path) -> None:
    config = build_config({"run_dir": str(tmp_path)})
    drop_reports_of_deleted_trials(config)  # without a log
    write_trial(config, "trial-001", 2.0, {2: 50.0})
    write_search_log(config, ("trial-000", 2, 49.0), ("trial-001", 2, 50.0), ("trial-000", 4, 48.0))
    drop_reports_of_deleted_trials(config)
    assert [(report.trial, report.value) for report in read_search_log(config)] == [("trial-001", 50.0)]


def test_evaluations_replace_the_reports_of_a_deleted_log(tmp_path: Path) -> None:
    config = build_config({"run_dir": str(tmp_path)})
    write_trial(config, "trial-000", 1.0, {2: 50.0, 4: float("nan"), 8: 30.0}, end={})
    write_trial(config, "trial-001", 2.0, {2: 50.0}, end={})
    write_trial(config, "trial-002", 3.0, {2: 50.0})  # has not ended, so it reports again
    write_search_log(config, ("trial-001", 2, 49.0))
    values = {
        name: [(report.iteration, report.value) for report in reports] for name, reports in read_reports(config).items()
    }
    assert values == {"trial-000": [(2, 50.0), (8, 30.0)], "trial-001": [(2, 49.0)]}
