"""Section "Result"."""

from pathlib import Path

from kp_ray.config.schema import Config
from kp_ray.reporting.result import result_section
from kp_ray.reporting.run_files import read_run_files
from tests.helpers.pages import Page
from tests.helpers.run_folders import make_config


def test_the_best_value_of_a_column_is_marked_if_its_values_differ(whole_run: Config) -> None:
    section = result_section(read_run_files(whole_run))
    assert section is not None
    best_cells = {
        (name, label): cell.text
        for name, cells in section.rows
        for label, cell in zip(section.labels, cells, strict=True)
        if cell.is_best
    }
    # Median, percentile and PCK are equal in all rows, so no value of theirs is marked.
    assert best_cells == {("a", "RMSE (px)"): "7.25", ("ensemble", "missing"): "1"}


def test_metrics_without_a_value_are_left_out(whole_run: Config) -> None:
    section = result_section(read_run_files(whole_run))
    assert section is not None
    assert section.labels == ("RMSE (px)", "median (px)", "p95 (px)", "PCK@0.02", "PCK@0.05", "PCK@0.1", "missing")
    texts = {name: [cell.text for cell in cells] for name, cells in section.rows}
    assert texts["b"] == ["9.00", "4.00", "20.00", "-", "-", "-", "2"]


def test_intervals_are_shown_below_their_value(whole_page: Page) -> None:
    assert "6.12 to 9.50" in whole_page.text
    assert "95 % bootstrap interval over scenes" in whole_page.text


def test_a_run_without_an_evaluation_has_no_section(tmp_path: Path) -> None:
    assert result_section(read_run_files(make_config(tmp_path))) is None
