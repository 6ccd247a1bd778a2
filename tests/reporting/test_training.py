"""Section "Training"."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from kp_ray.member_files import SETTINGS_NAME
from kp_ray.reporting import training
from kp_ray.reporting.run_files import read_run_files
from kp_ray.reporting.training import MemberProgress, training_section
from kp_ray.training.search_result import SearchResult
from tests.helpers.pages import write_page
from tests.helpers.run_folders import make_config, write_training_logs


def test_the_configs_members_come_first_and_each_has_its_last_loss_and_best_rmse(tmp_path: Path) -> None:
    config = make_config(tmp_path, train={"members": [{"name": "b", "seed": 1}]})
    write_training_logs(config, ("a", "b"))
    section = training_section(read_run_files(config))
    assert section is not None
    # Losses are logged for the iterations 0, 20, ..., 80, as 3 / (iteration + 1).
    expected = {"iterations": 100, "last_loss": 3 / 81, "best_rmse": 12.25, "best_iteration": 100}
    assert section.members == (MemberProgress("b", **expected), MemberProgress("a", **expected))


def test_members_that_train_with_the_result_of_a_search_are_listed_with_the_result(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_training_logs(config, ("a", "b", "c"))
    result = SearchResult("trial-003", "rmse", 8, 43.21, 47.5, {"base_lr": 0.002})
    for name, search in (("a", asdict(result)), ("b", asdict(result)), ("c", None)):
        Path(config.member_dir(name), SETTINGS_NAME).write_text(json.dumps({"search": search}))
    section = training_section(read_run_files(config))
    assert section is not None
    assert section.searches == ((result.describe(), "a, b"),)
    assert f"Members a, b: {result.describe()}." in write_page(config).text


def test_long_curves_are_thinned_and_keep_their_last_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = {}
    monkeypatch.setattr(training, "plot_curves", lambda series, *labels: curves.update({labels[1]: series}) or b"")
    config = make_config(tmp_path)
    folder = Path(config.member_dir("a"))
    folder.mkdir(parents=True)
    lines = [json.dumps({"iteration": i, "total_loss": float(i)}) for i in range(2500)]
    (folder / "metrics.json").write_text("\n".join(lines))
    assert training_section(read_run_files(config)) is not None
    iterations, losses = curves["total loss"]["a"]
    assert losses == [*map(float, range(0, 2500, 3)), 2499.0]
    assert iterations == [loss + 1 for loss in losses]  # finished iterations


def test_a_run_without_logs_has_no_section(tmp_path: Path) -> None:
    assert training_section(read_run_files(make_config(tmp_path))) is None
