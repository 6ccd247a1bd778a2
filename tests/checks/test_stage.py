"""The stage `check`."""

import shutil
from pathlib import Path

import pytest

from kp_ray.checks.findings import Finding, read_findings
from kp_ray.checks.stage import CheckStage, CheckSummary
from kp_ray.config.load import build_config, load_config
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, DataError
from kp_ray.stage import no_progress


def test_findings_and_config_are_written_and_progress_is_reported(sample_config: Config) -> None:
    stage, reports = CheckStage(), []
    assert not stage.is_done(sample_config)
    stage.check(sample_config)
    summary = stage.run(sample_config, lambda name, done, total, note="": reports.append((name, done, total)))
    assert stage.is_done(sample_config)
    assert summary.ok
    assert summary.images_checked
    assert read_findings(sample_config.path("check.csv")) == list(summary.findings)
    assert load_config(sample_config.path("config.yaml")) == sample_config
    assert reports == [("", done, 12) for done in range(1, 13)]


def test_findings_about_other_labels_are_not_those_of_the_config(sample_config: Config, tmp_path: Path) -> None:
    stage = CheckStage()
    stage.run(sample_config, no_progress)
    corrections = tmp_path / "corrections.csv"
    first_image = min(Path(sample_config.require_input("images")).iterdir()).name
    corrections.write_text(f"image,action\n{first_image},drop\n")
    values = sample_config.to_dict()
    config = build_config({**values, "data": {**values["data"], "corrections": str(corrections)}})
    assert not stage.is_done(config)
    stage.run(config, no_progress)
    assert stage.is_done(config)
    corrections.write_text(corrections.read_text() + "# a comment\n")
    assert not stage.is_done(config)
    Path(config.path("check.json")).write_text("{")
    assert not stage.is_done(config)


def with_images(config: Config, folder: Path) -> Config:
    """Return the config with another folder of labelled images."""
    return build_config({**config.to_dict(), "data": {**config.to_dict()["data"], "images": str(folder)}})


def test_missing_images_are_errors_that_the_summary_counts(sample_config: Config, tmp_path: Path) -> None:
    first_image = min(Path(sample_config.require_input("images")).iterdir())
    (tmp_path / "images").mkdir()
    shutil.copy(first_image, tmp_path / "images")
    summary = CheckStage().run(with_images(sample_config, tmp_path / "images"), no_progress)
    assert not summary.ok
    assert summary.to_json()["errors"] == summary.to_json()["findings"]["missing"] == 11  # of 12 images


@pytest.mark.parametrize("names", [[], ["notes.txt"], ["another.jpg"]])
def test_a_folder_that_holds_none_of_the_images_is_refused(
    sample_config: Config, tmp_path: Path, names: list[str]
) -> None:
    (tmp_path / "images").mkdir()
    for name in names:
        (tmp_path / "images" / name).touch()
    with pytest.raises(DataError, match=r"^data\.images: .*/images: none of the 12 labelled images is there"):
        CheckStage().run(with_images(sample_config, tmp_path / "images"), no_progress)


def test_findings_about_all_images_come_before_findings_about_one_image() -> None:
    findings = (
        Finding("warning", "coincident", "a.jpg", "at the same place", "correct one"),
        Finding("warning", "sentinel", "", "9 points are at 0, 0", "set it"),
    )
    summary = CheckSummary(9, findings, (), "run/check.csv", images_checked=True)
    assert summary.lines()[1:] == [
        "  warning sentinel: 1, 9 points are at 0, 0; set it",
        "  warning coincident: 1, e.g. a.jpg: at the same place; correct one",
    ]


def test_without_images_only_the_labels_are_checked(sample_config: Config) -> None:
    config = build_config({**sample_config.to_dict(), "data": {"annotations": sample_config.data.annotations}})
    summary = CheckStage().run(config, no_progress)
    assert not summary.images_checked
    assert any("data.images is not set" in line for line in summary.lines())


def test_the_summary_has_one_line_per_kind_with_an_example_and_its_json_counts_the_findings() -> None:
    findings = (
        Finding("warning", "size", "b.jpg", "is small", "look"),
        Finding("error", "empty", "a.jpg", "no bytes", "drop it"),
        Finding("warning", "size", "c.jpg", "is large", "look"),
    )
    summary = CheckSummary(9, findings, ("d.jpg: dropped",), "run/check.csv", images_checked=True)
    assert summary.lines() == [
        "d.jpg: dropped",
        "9 labelled images, 3 findings in run/check.csv",
        "  error empty: 1, e.g. a.jpg: no bytes; drop it",
        "  warning size: 2, e.g. b.jpg: is small; look",
    ]
    assert summary.to_json() == {"images": 9, "errors": 1, "findings": {"empty": 1, "size": 2}}


@pytest.mark.parametrize("key", ["annotations", "images", "corrections"])
def test_the_message_about_an_input_that_does_not_exist_begins_with_its_key(sample_config: Config, key: str) -> None:
    config = build_config({**sample_config.to_dict(), "data": {**sample_config.to_dict()["data"], key: "/nowhere"}})
    with pytest.raises(ConfigError, match=rf"^data\.{key}: .*/nowhere"):
        CheckStage().check(config)
