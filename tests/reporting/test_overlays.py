"""Images with skeletons drawn over them."""

from pathlib import Path

import numpy as np

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.keypoints import DACON24
from kp_ray.reporting.overlays import overlay_uri, prediction_image_folders, read_image
from kp_ray.reporting.run_files import read_truth
from tests.helpers.data import tiny_config
from tests.helpers.run_folders import OUTSIDE_NAME
from tests.helpers.stores import HEIGHT, STORE_IMAGES, WIDTH, make_points


def test_images_are_read_only_from_the_folders_of_the_config(whole_run: Config) -> None:
    image = read_image(prediction_image_folders(whole_run), STORE_IMAGES[0])
    assert image is not None
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert Path(whole_run.require_input("test_images"), OUTSIDE_NAME).exists()
    assert read_image(prediction_image_folders(whole_run), OUTSIDE_NAME) is None
    assert read_image(prediction_image_folders(whole_run), "nowhere.jpg") is None


def test_images_of_a_predicted_split_of_the_store_are_those_of_the_labels(tmp_path: Path) -> None:
    """A test image of the same name is another image, and `data.truth` does not hold the store's labels."""
    config = tiny_config({"images": "labels", "test_images": "test", "truth": "truth.csv"}, tmp_path)
    store_config = build_config({**config.to_dict(), "predict": {"images": "store:val"}})
    assert prediction_image_folders(config)[1:] == (config.data.test_images, config.data.images)
    assert prediction_image_folders(store_config) == (config.data.images,)
    assert read_truth(store_config, None) is None


def test_an_image_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    (tmp_path / "b.jpg").write_text("no image")
    assert read_image([str(tmp_path)], "a.jpg") is None
    assert read_image([str(tmp_path)], "b.jpg") is None


def test_an_image_without_finite_points_has_no_overlay(whole_run: Config) -> None:
    no_points = np.full((len(DACON24), 3), np.nan)
    assert overlay_uri(prediction_image_folders(whole_run), STORE_IMAGES[0], [(no_points, DACON24, None)]) is None
    assert overlay_uri(prediction_image_folders(whole_run), STORE_IMAGES[0], []) is None
    points = np.column_stack([make_points(0), np.ones(len(DACON24))])
    assert overlay_uri(prediction_image_folders(whole_run), STORE_IMAGES[0], [(points, DACON24, None)])
