"""Section "Speed"."""

from pathlib import Path

from kp_ray.config.schema import Config
from kp_ray.reporting.run_files import read_run_files
from kp_ray.reporting.speed import speed_section
from tests.helpers.run_folders import make_config, write_prediction_details, write_store_and_record


def test_augment_and_the_training_of_each_member_have_a_time(whole_run: Config) -> None:
    section = speed_section(read_run_files(whole_run))
    assert section is not None
    rows = dict(section.rows)
    assert rows["augment"] == "2.5 s, 1 s of it start-up: 17.5 sources/s"
    assert rows["train a"] == rows["train _b$"] == "0.5 s per iteration, 50 s"


def test_predictions_have_images_per_second(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_prediction_details(config)
    section = speed_section(read_run_files(config))
    assert section is not None
    assert section.rows == (("predict", "2 s: 3.5 images/s"),)


def test_augment_is_left_out_if_it_wrote_no_part(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_store_and_record(config, parts_written=0)
    assert speed_section(read_run_files(config)) is None
