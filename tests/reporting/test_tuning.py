"""Section "Tuning"."""

from pathlib import Path

import pandas as pd
import pytest

from kp_ray.config.schema import Config
from kp_ray.reporting.run_files import read_run_files
from kp_ray.reporting.tuning import MIN_RESULTS, tuning_section
from kp_ray.training.search_result import SearchResult, write_result
from kp_ray.tuning import plots
from kp_ray.tuning.trials import read_trials, write_tables
from tests.helpers.pages import Page, write_page
from tests.helpers.run_folders import make_config
from tests.helpers.searches import write_trial


def test_trials_are_ranked_by_iterations_then_by_the_metric(whole_run: Config) -> None:
    section = tuning_section(whole_run, read_run_files(whole_run))
    assert section is not None
    # The stopped trials were evaluated at 4 iterations, the finished trial at 8, and the failed trial never.
    ranking = [(row[0], row[section.columns.index("status")]) for row in section.rows]
    assert ranking == [
        ("trial-000", "finished"),
        ("trial-002", "stopped"),
        ("trial-003", "stopped"),
        ("trial-001", "failed"),
    ]
    assert (section.num_trials, section.metric) == (4, "rmse")


def test_the_table_has_the_columns_of_trials_csv_in_which_trials_differ(whole_run: Config, whole_page: Page) -> None:
    section = tuning_section(whole_run, read_run_files(whole_run))
    assert section is not None
    assert section.columns == ("trial", "status", "iterations", "trained", "rmse", "base_lr", "reason")
    table = pd.read_csv(whole_run.path("tune", "trials.csv"), dtype=str, keep_default_na=False)
    assert {*section.columns, *dict(section.constants)} == set(table.columns)
    assert {row[0]: row[section.columns.index("reason")] for row in section.rows} == dict(
        zip(table["trial"], table["reason"], strict=True)
    )
    assert dict(section.constants)["steps"] == "[6]"
    assert "Equal in all trials: max_iter 8" in whole_page.text


def write_search_with_plots(folder: Path, num_trials: int) -> Config:
    """Write a search whose trials have different learning rates and results, and a file for each of its plots."""
    config = make_config(folder)
    for number in range(num_trials):
        write_trial(config, f"trial-{number:03d}", number + 1, {8: 10.0 + number}, end={})
    write_tables(config, read_trials(config))
    for name in ("learning_rate", "curves", "importance", "parallel"):
        Path(config.path("tune", f"{name}.svg")).write_text(f"<svg>{name}</svg>")
    return config


@pytest.mark.parametrize(
    ("num_trials", "num_figures", "has_parallel"), [(1, 1, False), (2, 2, True), (MIN_RESULTS, 3, True)]
)
def test_plots_with_too_few_trials_are_left_out(
    tmp_path: Path, num_trials: int, num_figures: int, has_parallel: bool
) -> None:
    config = write_search_with_plots(tmp_path, num_trials)
    section = tuning_section(config, read_run_files(config))
    assert section is not None
    assert (len(section.figures), section.parallel is not None) == (num_figures, has_parallel)
    assert plots.MIN_RESULTS == MIN_RESULTS


def test_settings_that_the_best_trial_changes_are_listed(tmp_path: Path) -> None:
    config = make_config(tmp_path, train={"base_lr": 0.001, "steps": [6], "members": [{"name": "a"}]})
    changes = {"base_lr": 0.00216, "schedule": "cosine"}
    write_result(config, SearchResult("trial-003", "rmse", 8, 12.5, 13.25, changes))
    Path(config.path("tune", "best.yaml")).write_text("preset: demo\n")
    section = tuning_section(config, read_run_files(config))
    assert section is not None
    assert {(change.name, change.before, change.after) for change in section.changes} == {
        ("train.base_lr", "0.001", "0.00216"),
        ("train.schedule", "multistep", "cosine"),
    }
    page = write_page(config).text
    assert "train.schedule multistep cosine" in page
    assert "trial-003, rmse 12.5 after 8 iterations; the config's own: 13.25" in page
    assert "not used" not in page
    unused = config.model_copy(update={"train": config.train.model_copy(update={"tuned": False})})
    assert "; not used, because train.tuned is false" in write_page(unused).text


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
    assert (section.rows, section.changes) == ((), ())
    assert section.best_yaml == "data: {images: 's3://***@bucket/x'}\n"


def test_a_run_without_a_search_has_no_section(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert tuning_section(config, read_run_files(config)) is None
