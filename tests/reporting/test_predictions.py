"""Section "Predictions"."""

import re
from pathlib import Path

import numpy as np
import pytest

from kp_ray.config.schema import Config
from kp_ray.keypoints import DACON24
from kp_ray.prediction.records import FilledImage
from kp_ray.reporting.predictions import PredictionSection, prediction_section
from kp_ray.reporting.run_files import read_run_files
from tests.helpers.pages import Page
from tests.helpers.run_folders import HOSTILE_NAME, OUTSIDE_NAME, SPREAD_PX, make_config, write_prediction_details
from tests.helpers.stores import STORE_IMAGES, make_points


@pytest.fixture(scope="module")
def section(whole_run: Config) -> PredictionSection:
    """Build the section of `whole_run`."""
    whole_section = prediction_section(whole_run, read_run_files(whole_run))
    assert whole_section is not None
    return whole_section


def test_disputed_images_are_sorted_by_the_members_spread(section: PredictionSection) -> None:
    # In STORE_IMAGES[4] the members' points are SPREAD_PX apart in x and in y, in all other images 1 px. Each point is
    # half of the diagonal away from the mean of both.
    spread_px = np.sqrt(2) * SPREAD_PX / 2
    assert section.disputed_tiles[0].image == STORE_IMAGES[4]
    assert section.disputed_tiles[0].value == f"{spread_px:.4g}"
    assert len(section.disputed_tiles) == 5
    assert section.median_spread_px == pytest.approx(np.sqrt(2) / 2)
    assert section.num_missed_images == {"b": 1}


def test_the_caption_names_the_keypoint_with_the_largest_error(section: PredictionSection) -> None:
    errors = np.linalg.norm(make_points(50) - make_points(0), axis=1)
    (tile,) = section.worst_tiles  # the file of the other worst image does not exist
    note = f" px, {DACON24.names[errors.argmax()]} by {errors.max():.0f} px"
    assert (tile.image, tile.value, tile.note) == (STORE_IMAGES[0], "31.25", note)


def test_filled_images_are_counted_by_fallback(section: PredictionSection, whole_page: Page) -> None:
    assert section.num_filled == 2
    assert section.fallbacks == {"a near frame": 1, "mean pose": 1}
    assert "a near frame (1), mean pose (1)" in whole_page.text
    # The other filled image is outside the image folder.
    assert [tile.image for tile in section.filled_tiles] == [STORE_IMAGES[1]]


def test_all_worst_and_filled_images_are_listed(section: PredictionSection) -> None:
    worst_list, filled_list = section.lists
    assert worst_list.rows == ((STORE_IMAGES[0], "31.25"), (HOSTILE_NAME, "3"))
    assert filled_list.rows == ((STORE_IMAGES[1], "frame 12"), (OUTSIDE_NAME, "mean pose"))


def test_the_page_counts_the_images_in_which_a_member_found_nobody(whole_page: Page) -> None:
    assert "Member b found nobody in 1 of 7 images." in whole_page.text
    assert re.search(
        r"over the images is 0\.7071 px\. a b 42\.43 px apart " + re.escape(STORE_IMAGES[4]), whole_page.text
    )


def test_before_an_evaluation_filled_images_come_from_predict_json(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    write_prediction_details(config, (FilledImage(image="x.jpg", how="zeros"),))
    section = prediction_section(config, read_run_files(config))
    assert section is not None
    assert (section.num_filled, section.fallbacks) == (1, {"zeros": 1})


def test_a_run_without_predictions_has_no_section(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    assert prediction_section(config, read_run_files(config)) is None
