"""The stage `report`."""

import sys
from pathlib import Path

from kp_ray.reporting.stage import ReportStage
from kp_ray.stage import Stage, no_progress
from tests.helpers.processes import run_command
from tests.helpers.run_folders import make_config


def test_report_is_a_stage_that_needs_no_cluster_and_is_never_done(tmp_path: Path) -> None:
    stage: Stage = ReportStage()
    config = make_config(tmp_path)
    path = config.path("report.html")
    stage.check(config)
    assert stage.applies(config)
    assert (stage.name, stage.needs_cluster, stage.needs_dashboard) == ("report", False, False)
    assert not Path(path).exists()
    summary = stage.run(config, no_progress)
    assert (summary.lines(), summary.to_json()) == ([f"report: {path}"], {"report": path})
    assert Path(path).exists()
    assert not stage.is_done(config)


def test_report_and_show_import_neither_ray_nor_torch() -> None:
    code = "import sys, kp_ray.reporting.stage, kp_ray.reporting.show; print({'ray', 'torch'} & {*sys.modules})"
    process = run_command(sys.executable, "-c", code)
    assert process.stdout.strip() == "set()", process.stderr
