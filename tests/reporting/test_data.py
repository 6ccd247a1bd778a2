"""Section "Data"."""

from pathlib import Path

from kp_ray.config.schema import Config
from kp_ray.reporting.data import SplitSide, data_section
from kp_ray.reporting.run_files import read_run_files
from tests.helpers.pages import Page, write_page
from tests.helpers.run_folders import make_config, write_check_findings, write_store_and_record
from tests.helpers.stores import STORE_IMAGES


def test_findings_are_grouped_by_kind_with_errors_first(whole_run: Config) -> None:
    section = data_section(whole_run, read_run_files(whole_run))
    assert section is not None
    assert section.num_findings == 7
    assert [(kind.level, kind.kind, kind.count) for kind in section.kinds] == [
        ("error", "truncated", 1),
        ("warning", "swap", 6),
    ]
    assert [example.image for example in section.kinds[1].examples] == list(STORE_IMAGES[:3])


def test_the_store_gives_sides_cameras_and_frame_sizes(whole_run: Config, whole_page: Page) -> None:
    section = data_section(whole_run, read_run_files(whole_run))
    assert section is not None
    assert section.sides == (SplitSide("train", 6, 2), SplitSide("val", 3, 1))
    assert (section.cameras, section.frame_sizes) == (("A",), ("320x240",))
    assert (section.num_sources, section.num_keypoints) == (1234, 24)
    assert "train variants 6 of 2 scenes" in whole_page.text


def test_after_check_alone_the_page_has_the_findings(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_check_findings(config)
    page = write_page(config)
    assert page.sections == ["data", "config"]
    assert "check findings 7" in page.text


def test_without_check_csv_the_page_does_not_mention_findings(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_store_and_record(config)
    assert "findings" not in write_page(config).text


def test_a_run_without_check_and_store_has_no_section(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert data_section(config, read_run_files(config)) is None
