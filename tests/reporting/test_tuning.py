"""Section "Tuning"."""

from pathlib import Path

import pandas as pd

from kp_ray.config.schema import Config
from kp_ray.reporting.run_files import read_run_files
from kp_ray.reporting.tuning import tuning_section
from tests.helpers.pages import Page
from tests.helpers.run_folders import make_config


def test_trials_are_ranked_by_iterations_then_by_the_metric(whole_run: Config) -> None:
    section = tuning_section(whole_run, read_run_files(whole_run))
    assert section is not None
    # The stopped trials were evaluated at 4 iterations, the finished trial at 8, and the failed trial never.
    ranked = [(row[0], row[section.columns.index("status")]) for row in section.rows]
    assert ranked == [
        ("trial-000", "finished"), ("trial-002", "stopped"), ("trial-003", "stopped"), ("trial-001", "failed"),
    ]  # fmt: skip
    assert (section.num_trials, section.metric) == (4, "rmse")


def test_the_table_has_the_columns_of_trials_csv(whole_run: Config) -> None:
    section = tuning_section(whole_run, read_run_files(whole_run))
    assert section is not None
    table = pd.read_csv(whole_run.path("tune", "trials.csv"), dtype=str, keep_default_na=False)
    assert list(section.columns) == list(table.columns)
    assert {row[0]: row[section.columns.index("steps")] for row in section.rows} == dict(
        zip(table["trial"], table["steps"], strict=True)
    )


def test_plots_and_the_best_config_are_on_the_page(whole_page: Page) -> None:
    assert "base_lr: 0.002" in whole_page.text
    assert "The metric of each trial over its base learning rate" in whole_page.alts
    assert "4 trials, best rmse first" in whole_page.text


def test_a_best_config_alone_is_shown(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    path = Path(config.path("tune", "best.yaml"))
    path.parent.mkdir()
    path.write_text("data: {images: 's3://KEY:SECRET@bucket/x'}\n")
    section = tuning_section(config, read_run_files(config))
    assert section is not None
    assert section.rows == ()
    assert section.best_yaml == "data: {images: 's3://***@bucket/x'}\n"


def test_a_run_without_a_search_has_no_section(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert tuning_section(config, read_run_files(config)) is None
