"""`show`: images of variants and of predictions."""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, DataError, KpRayError, StoreError
from kp_ray.images import decode_preview
from kp_ray.keypoints import DACON24
from kp_ray.reporting.show import ShowSummary, show
from kp_ray.visualization.colors import LEFT, MIDDLE, RIGHT, TRUTH, Color, series_color
from tests.helpers.predictions import write_prediction_arrays
from tests.helpers.run_folders import OUTSIDE_NAME, make_config
from tests.helpers.stores import STORE_IMAGES, make_image, make_points

JPEG_ERROR = 60
"""Maximum difference of a color channel at the centre of a disc; JPEG mixes in the color of the disc's edge."""


def assert_colors(image: np.ndarray, points: np.ndarray, *colors: Color) -> None:
    """Assert that the pixel at each point (n, 2) has one of the colors."""
    for x, y in np.rint(points).astype(int):
        differences = [np.abs(image[y, x].astype(int) - color).max() for color in colors]
        assert min(differences) <= JPEG_ERROR, (x, y, image[y, x].tolist())


def test_variants_are_chosen_by_seed_recipe_and_image(whole_run: Config, tmp_path: Path) -> None:
    store = str(Path(whole_run.run_dir, "store"))

    def show_files(**selection: Any) -> dict[str, bytes]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        assert show(store, str(folder), **selection).pictures == len(list(folder.glob("*.jpg"))) - 1
        return {path.name: path.read_bytes() for path in folder.glob("*.jpg")}

    files = show_files(num=2, seed=1)
    assert len(files) == 3  # two images and the sheet
    assert files == show_files(num=2, seed=1)
    assert any(files != show_files(num=2, seed=seed) for seed in (2, 3, 4))
    assert all(decode_preview(content) is not None for content in files.values())
    stem = STORE_IMAGES[1].removesuffix(".jpg")
    assert show_files(recipe="Rotate45_CenterCrop", image=STORE_IMAGES[1]).keys() == {
        f"Rotate45_CenterCrop-0-{stem}.jpg",
        "sheet.jpg",
    }


def test_the_skeleton_of_a_variant_is_drawn_at_its_keypoints(whole_run: Config, tmp_path: Path) -> None:
    show(str(Path(whole_run.run_dir, "store")), str(tmp_path), recipe="Rotate45_CenterCrop", image=STORE_IMAGES[0])
    stem = STORE_IMAGES[0].removesuffix(".jpg")
    canvas = decode_preview((tmp_path / f"Rotate45_CenterCrop-0-{stem}.jpg").read_bytes())
    assert canvas is not None
    points = make_points(0)  # the test store's rotated variants have the points of their source
    distances = np.linalg.norm(points[:, None] - points, axis=2) + 1000 * np.eye(len(points))
    is_isolated = distances.min(axis=1) > 12  # discs of closer points may cover each other
    assert is_isolated.sum() > 8
    assert_colors(canvas, points[is_isolated], LEFT, RIGHT, MIDDLE)


def test_predictions_and_truth_are_drawn_at_their_keypoints(tmp_path: Path) -> None:
    image = STORE_IMAGES[0]
    config = make_config(tmp_path, data={"test_images": str(tmp_path), "truth": str(tmp_path / "truth.csv")})
    cv2.imwrite(str(tmp_path / image), make_image(0))
    truth_xy, a_xy, b_xy = (make_point_grid(left) for left in (15, 120, 225))
    write_point_csv(tmp_path / "truth.csv", image, truth_xy)
    keypoints = np.dstack([np.stack([a_xy, b_xy]), np.ones((2, 24))])[:, None]
    write_prediction_arrays(config.path("predictions.parquet"), ["a", "b"], [image], keypoints, DACON24.names)
    config.save()
    show(config.path("predictions.parquet"), str(tmp_path / "out"))
    canvas = decode_preview((tmp_path / "out" / image).read_bytes())
    assert canvas is not None
    assert_colors(canvas, truth_xy, TRUTH)
    assert_colors(canvas, a_xy, series_color(0))
    assert_colors(canvas, b_xy, series_color(1))


def test_if_no_image_could_be_used_the_reason_is_given(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    path = config.path("predictions.parquet")
    write_prediction_arrays(path, ["a"], ["x.jpg"], np.full((1, 1, 24, 3), np.nan), DACON24.names)
    table = pq.read_table(path)
    reason = pa.array(["is not an image"])
    pq.write_table(table.set_column(table.column_names.index("reason"), "reason", reason), path)
    config.save()
    with pytest.raises(DataError, match=r"no image could be used, e\.g\. x\.jpg: is not an image"):
        show(path, str(tmp_path / "out"))


def make_point_grid(left: int) -> np.ndarray:
    """Make points (24, 2) on a grid, 75 px wide, whose left edge is at x = `left`."""
    x, y = np.meshgrid(np.arange(4) * 25, np.arange(6) * 25)
    return np.column_stack([x.ravel() + left, y.ravel() + 80])


def write_point_csv(path: Path, image: str, xy: np.ndarray) -> None:
    """Write the points (24, 2) of one image as labels or as a submission."""
    header = ",".join(["image", *DACON24.columns])
    path.write_text(f"{header}\n{image},{','.join(map(str, xy.ravel()))}\n")


def test_the_runs_submission_and_other_submissions_are_drawn_beside_the_members(tmp_path: Path) -> None:
    image = STORE_IMAGES[0]
    config = make_config(tmp_path, data={"test_images": str(tmp_path)})
    cv2.imwrite(str(tmp_path / image), make_image(0))
    member_xy, run_xy, other_xy = (make_point_grid(left) for left in (15, 120, 225))
    keypoints = np.column_stack([member_xy, np.ones(24)])[None, None]
    write_prediction_arrays(config.path("predictions.parquet"), ["a"], [image], keypoints, DACON24.names)
    config.save()
    write_point_csv(Path(config.path("submission.csv")), image, run_xy)
    write_point_csv(tmp_path / "nobody.csv", image, np.zeros((24, 2)))
    write_point_csv(tmp_path / "other.csv", image, other_xy)
    submissions = [str(tmp_path / "nobody.csv"), str(tmp_path / "other.csv")]
    show(config.path("predictions.parquet"), str(tmp_path / "out"), submissions=submissions)
    canvas = decode_preview((tmp_path / "out" / image).read_bytes())
    assert canvas is not None
    assert_colors(canvas, member_xy, series_color(0))
    assert_colors(canvas, run_xy, series_color(1))
    assert_colors(canvas, other_xy, series_color(3))  # color 2 is that of nobody.csv, in which nobody was found


def test_a_submission_with_other_keypoints_is_named(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    keypoints = np.column_stack([make_point_grid(15), np.ones(24)])[None, None]
    write_prediction_arrays(config.path("predictions.parquet"), ["a"], [STORE_IMAGES[0]], keypoints, DACON24.names)
    config.save()
    (tmp_path / "other.csv").write_text(f"image,nose_x,nose_y\n{STORE_IMAGES[0]},1,2\n")
    with pytest.raises(DataError, match=rf"^{tmp_path}/other\.csv: this submission and the labels differ"):
        show(config.path("predictions.parquet"), submissions=[str(tmp_path / "other.csv")])


def test_the_default_folder_is_show_beside_the_store(whole_run: Config) -> None:
    folder = str(Path(whole_run.run_dir, "show"))
    summary = show(str(Path(whole_run.run_dir, "store")), num=1)
    assert summary == ShowSummary(pictures=1, folder=folder)
    assert summary.lines() == [f"1 image and sheet.jpg in {folder}"]
    assert summary.to_json() == {"pictures": 1, "folder": folder}


@pytest.mark.parametrize(
    ("path", "selection", "error", "message"),
    [
        ("nowhere", {}, ConfigError, "neither a store nor predictions"),
        ("", {}, ConfigError, "neither a store nor predictions"),
        ("store", {"recipe": "Rotate46"}, StoreError, "no recipe 'Rotate46'"),
        ("store", {"image": "x.jpg"}, DataError, "nothing matches --recipe and --image"),
        ("store", {"submissions": ["a.csv"]}, ConfigError, "a store has no submissions"),
        ("predictions.parquet", {"submissions": ["gone.csv"]}, KpRayError, "gone.csv: there is no such file"),
        ("predictions.parquet", {"recipe": "Original"}, ConfigError, "predictions have no recipe"),
        ("predictions.parquet", {"image": "x.jpg"}, DataError, "has no image x.jpg: correct --image"),
        ("predictions.parquet", {"image": OUTSIDE_NAME}, DataError, f"image {OUTSIDE_NAME} is not in the folders of"),
    ],
)
def test_a_selection_that_cannot_be_shown_is_refused(
    whole_run: Config, tmp_path: Path, path: str, selection: dict[str, Any], error: type[KpRayError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        show(str(Path(whole_run.run_dir, path)), str(tmp_path / "out"), **selection)
    assert not (tmp_path / "out").exists()
