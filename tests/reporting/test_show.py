"""`show`: images of variants and of predictions."""

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, DataError, KpRayError, StoreError
from kp_ray.images import decode_preview
from kp_ray.keypoints import DACON24
from kp_ray.reporting.show import ShowSummary, show
from kp_ray.visualization.colors import LEFT, MIDDLE, RIGHT, TRUTH, Color, series_color
from tests.helpers.predictions import write_prediction_arrays
from tests.helpers.run_folders import OUTSIDE, make_config
from tests.helpers.stores import STORE_IMAGES, make_image, make_points

JPEG_ERROR = 60
"""Maximum difference of a color channel at the centre of a disc, because JPEG blurs the sharp edges near it."""


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

    two = show_files(num=2, seed=1)
    assert two == show_files(num=2, seed=1)
    assert any(two != show_files(num=2, seed=seed) for seed in (2, 3, 4))
    assert all(decode_preview(content) is not None for content in two.values())
    stem = STORE_IMAGES[1].removesuffix(".jpg")
    assert show_files(recipe="Rotate45_CenterCrop", image=STORE_IMAGES[1]).keys() == {
        f"Rotate45_CenterCrop-0-{stem}.jpg", "sheet.jpg"
    }  # fmt: skip


def test_the_skeleton_of_a_variant_is_drawn_at_its_keypoints(whole_run: Config, tmp_path: Path) -> None:
    show(str(Path(whole_run.run_dir, "store")), str(tmp_path), recipe="Rotate45_CenterCrop", image=STORE_IMAGES[0])
    stem = STORE_IMAGES[0].removesuffix(".jpg")
    drawn = decode_preview((tmp_path / f"Rotate45_CenterCrop-0-{stem}.jpg").read_bytes())
    assert drawn is not None
    points = make_points(0)
    gaps = np.linalg.norm(points[:, None] - points, axis=2) + 1000 * np.eye(len(points))
    is_isolated = gaps.min(axis=1) > 12  # discs of points that are closer may cover each other
    assert is_isolated.sum() > 8
    assert_colors(drawn, points[is_isolated], LEFT, RIGHT, MIDDLE)


def test_predictions_and_truth_are_drawn_at_their_keypoints(tmp_path: Path) -> None:
    """Place ground truth and members side by side, so that no skeleton covers another one."""
    image = STORE_IMAGES[0]
    config = make_config(tmp_path, data={"test_images": str(tmp_path), "truth": str(tmp_path / "truth.csv")})
    cv2.imwrite(str(tmp_path / image), make_image(0))
    x, y = np.meshgrid(np.arange(4) * 25, np.arange(6) * 25)
    truth, first, second = (np.column_stack([x.ravel() + left, y.ravel() + 80]) for left in (15, 120, 225))
    header = ",".join(["image", *DACON24.columns])
    (tmp_path / "truth.csv").write_text(f"{header}\n{image},{','.join(map(str, truth.ravel()))}\n")
    keypoints = np.dstack([np.stack([first, second]), np.ones((2, 24))])[:, None]
    write_prediction_arrays(config.path("predictions.parquet"), ["a", "b"], [image], keypoints, DACON24.names)
    config.save()
    show(config.path("predictions.parquet"), str(tmp_path / "out"))
    drawn = decode_preview((tmp_path / "out" / image).read_bytes())
    assert drawn is not None
    assert_colors(drawn, truth, TRUTH)
    assert_colors(drawn, first, series_color(0))
    assert_colors(drawn, second, series_color(1))


def test_the_fused_answer_and_submissions_are_drawn_beside_the_members(tmp_path: Path) -> None:
    image = STORE_IMAGES[0]
    config = make_config(tmp_path, data={"test_images": str(tmp_path)})
    cv2.imwrite(str(tmp_path / image), make_image(0))
    x, y = np.meshgrid(np.arange(4) * 25, np.arange(6) * 25)
    member, fused, other = (np.column_stack([x.ravel() + left, y.ravel() + 80]) for left in (15, 120, 225))
    write_prediction_arrays(
        config.path("predictions.parquet"),
        ["a"],
        [image],
        np.column_stack([member, np.ones(24)])[None, None],
        DACON24.names,
    )
    config.save()
    header = ",".join(["image", *DACON24.columns])
    files = {"run/submission.csv": fused, "other.csv": other, "nobody.csv": np.zeros((24, 2))}
    for name, points in files.items():
        path = Path(config.path("submission.csv")) if name.startswith("run/") else tmp_path / name
        path.write_text(f"{header}\n{image},{','.join(map(str, points.ravel()))}\n")
    submissions = [str(tmp_path / "nobody.csv"), str(tmp_path / "other.csv")]
    show(config.path("predictions.parquet"), str(tmp_path / "out"), submissions=submissions)
    drawn = decode_preview((tmp_path / "out" / image).read_bytes())
    assert drawn is not None
    assert_colors(drawn, member, series_color(0))
    assert_colors(drawn, fused, series_color(1))
    assert_colors(drawn, other, series_color(3))


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
        ("predictions.parquet", {"image": OUTSIDE}, DataError, f"image {OUTSIDE} is not in data.test_images"),
    ],
)
def test_a_selection_that_cannot_be_shown_is_refused(
    whole_run: Config, tmp_path: Path, path: str, selection: dict[str, Any], error: type[KpRayError], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        show(str(Path(whole_run.run_dir, path)), str(tmp_path / "out"), **selection)
    assert not (tmp_path / "out").exists()
