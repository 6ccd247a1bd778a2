"""Section "Errors"."""

from pathlib import Path

import numpy as np
import pytest

from kp_ray.config.schema import Config
from kp_ray.reporting import error_plots
from kp_ray.reporting.error_plots import error_section
from kp_ray.reporting.run_files import read_run_files
from tests.helpers.run_folders import make_config, write_labels, write_prediction_details

Curves = dict[str, tuple[list[float], list[float]]]


def test_without_ground_truth_only_the_bars_of_the_evaluation_are_plotted(whole_run: Config) -> None:
    config = whole_run.model_copy(update={"data": whole_run.data.model_copy(update={"truth": None})})
    section = error_section(read_run_files(config))
    assert section is not None
    assert [figure.alt for figure in section.figures] == [
        "RMSE of each keypoint, in pixels",
        "RMSE of each camera, in pixels",
    ]


def test_a_submission_equal_to_the_truth_has_perfect_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves: dict[str, Curves] = {}

    def record(series: Curves, xlabel: str, ylabel: str, title: str) -> bytes:
        curves[title] = series
        return b""

    monkeypatch.setattr(error_plots, "plot_curves", record)
    config = make_config(tmp_path, data={"truth": str(tmp_path / "truth.csv")})
    write_labels(tmp_path / "truth.csv", 0)
    write_labels(Path(config.path("submission.csv")), 0)
    write_prediction_details(config)
    section = error_section(read_run_files(config))
    assert section is not None
    assert len(section.figures) == 2
    for title in ("PCK", "OKS"):
        _, values = curves[title]["ensemble"]
        assert values == [1.0] * len(values)


def test_a_person_who_is_not_found_counts_as_wrong(whole_run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    curves: dict[str, Curves] = {}
    monkeypatch.setattr(error_plots, "plot_curves", lambda series, *labels: curves.update({labels[-1]: series}) or b"")
    files = read_run_files(whole_run)
    assert files.predictions is not None
    assert files.truth is not None
    # Every member predicts the ground truth, except that b finds nobody in the last of the six labelled images.
    keypoints = files.predictions.keypoints.copy()
    keypoints[:, :6, :, :2] = np.where(np.isfinite(keypoints[:, :6, :, :2]), files.truth.keypoints[..., :2], np.nan)
    object.__setattr__(files.predictions, "keypoints", keypoints)
    error_section(files)
    assert curves["PCK"]["a"][1][-1] == 1.0
    assert curves["PCK"]["b"][1][-1] == pytest.approx(5 / 6)
    assert curves["OKS"]["b"][1][0] == pytest.approx(5 / 6)


def test_a_run_without_evaluation_and_truth_has_no_section(tmp_path: Path) -> None:
    assert error_section(read_run_files(make_config(tmp_path))) is None
