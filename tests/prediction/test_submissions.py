"""Test the fusion of submissions of any origin."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kp_ray.ensemble.fusion import fuse_clips
from kp_ray.errors import ConfigError, DataError
from kp_ray.prediction.submissions import fuse_submissions

IMAGES = [f"s_A-{frame:07d}.jpg" for frame in (1, 2, 3)]
HEADER = "image,nose_x,nose_y,neck_x,neck_y"


def write_points(path: Path, points: np.ndarray, images: list[str] = IMAGES, header: str = HEADER) -> str:
    """Write a submission with points (N, 2, 2) and return the path."""
    rows = [",".join([image, *map(repr, row.ravel().tolist())]) for image, row in zip(images, points, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def read_points(path: Path) -> np.ndarray:
    """Read the points (N, 2, 2) of a submission whose rows are IMAGES."""
    header, *rows = path.read_text().splitlines()
    assert (header, [row.split(",")[0] for row in rows]) == (HEADER, IMAGES)
    return np.array([row.split(",")[1:] for row in rows], dtype=float).reshape(-1, 2, 2)


@pytest.fixture
def points() -> np.ndarray:
    """Return the points (M, N, K, 2) of three submissions."""
    return np.random.default_rng(0).uniform(1, 100, (3, len(IMAGES), 2, 2))


def write_submissions(folder: Path, points: np.ndarray) -> list[str]:
    """Write submissions with points (M, N, 2, 2) and return their paths."""
    return [write_points(folder / f"{number}.csv", file_points) for number, file_points in enumerate(points)]


@pytest.mark.parametrize("method", ["mean", "median"])
def test_submissions_are_fused_like_members(tmp_path: Path, points: np.ndarray, method: str) -> None:
    paths, target = write_submissions(tmp_path, points), tmp_path / "out.csv"
    summary = fuse_submissions(paths, str(target), weights=[2, 1, 0.5], method=method, reject_sigmas=3)  # type: ignore[arg-type]
    keypoints = np.concatenate([points, np.ones((*points.shape[:3], 1))], axis=3)
    expected = fuse_clips(
        keypoints,
        np.ones(points.shape[:2]),
        ["s"] * 3,
        ["A"] * 3,
        [1, 2, 3],
        thresholds=(0.7, 0.05),
        method=method,  # type: ignore[arg-type]
        weights=np.array([2, 1, 0.5]),
        reject_sigmas=3,
    )
    assert np.array_equal(read_points(target), expected.keypoints[..., :2])
    assert summary.lines() == [f"3 images of 3 submissions: {target}"]


def test_a_row_of_zeros_is_left_out_of_the_fusion(tmp_path: Path, points: np.ndarray) -> None:
    points[0, 1] = points[:, 2] = 0
    paths, target = write_submissions(tmp_path, points), tmp_path / "out.csv"
    summary = fuse_submissions(paths, str(target))
    fused_points = read_points(target)
    assert np.allclose(fused_points[0], points[:, 0].mean(axis=0))
    assert np.allclose(fused_points[1], points[1:, 1].mean(axis=0))
    assert np.array_equal(fused_points[2], fused_points[1]), "frame 2 is the nearest frame of the clip"
    assert summary.lines()[1:] == [
        f"{paths[0]}: nobody in 2 images",
        f"{paths[1]}: nobody in 1 images",
        f"{paths[2]}: nobody in 1 images",
        "nobody in any submission: 1 by near frame",
    ]
    fuse_submissions(paths, str(target), missing="zeros")
    assert not read_points(target)[2].any()


def test_the_order_of_rows_and_columns_may_differ(tmp_path: Path, points: np.ndarray) -> None:
    path_a = write_points(tmp_path / "a.csv", points[0])
    header = "image,neck_x,neck_y,nose_x,nose_y"
    path_b = write_points(tmp_path / "b.csv", points[1, ::-1, ::-1], IMAGES[::-1], header)
    fuse_submissions([path_a, path_b], str(tmp_path / "out.csv"))
    assert np.allclose(read_points(tmp_path / "out.csv"), points[:2].mean(axis=0))


def test_invalid_files_and_options_are_refused_and_nothing_is_written(tmp_path: Path, points: np.ndarray) -> None:
    path_a, path_b = write_submissions(tmp_path, points[:2])
    target = tmp_path / "out.csv"
    hip_path = write_points(tmp_path / "hip.csv", points[0], header=HEADER.replace("neck", "hip"))
    short_path = write_points(tmp_path / "short.csv", points[0, :2], IMAGES[:2])
    message = rf"hip\.csv: differs from {path_a} in 4 columns \(first hip_x, only in .*hip\.csv"
    with pytest.raises(DataError, match=message):
        fuse_submissions([path_a, hip_path], str(target))
    message = rf"short\.csv: differs from {path_a} in 1 images \(first {IMAGES[2]}, only in {path_a}\)"
    with pytest.raises(DataError, match=message):
        fuse_submissions([path_a, short_path], str(target))
    for paths, options, message in (
        ([path_a], {}, r"fuse: needs two or more submissions \(got 1\)"),
        ([path_a, path_a], {}, "a submission is named twice"),
        ([path_a, f"{tmp_path}/./{Path(path_a).name}"], {}, "a submission is named twice"),
        ([path_a, path_b], {"weights": [1.0]}, r"--weights: 2 submissions need as many weights, .* \(got 1\)"),
        ([path_a, path_b], {"weights": [0.0, 0.0]}, "--weights"),
        ([path_a, f"{tmp_path}/./{target.name}"], {}, r"--out: .*out\.csv is one of the submissions"),
    ):
        with pytest.raises(ConfigError, match=message):
            fuse_submissions(paths, str(target), **options)
    empty_paths = [write_points(tmp_path / f"empty{number}.csv", np.zeros((3, 2, 2))) for number in (1, 2)]
    with pytest.raises(DataError, match="every row of every submission is zero"):
        fuse_submissions(empty_paths, str(target))
    assert not target.exists()


def test_the_command_fuse_needs_neither_ray_nor_torch(tmp_path: Path, points: np.ndarray) -> None:
    path_a, path_b = write_submissions(tmp_path, points[:2])
    code = (
        "import sys\nfor name in ('ray', 'torch', 'detectron2'): sys.modules[name] = None\n"
        "from kp_ray.cli.main import main\nmain(sys.argv[1:])"
    )
    target = tmp_path / "out.csv"
    arguments = ["fuse", path_a, path_b, "--out", str(target), "--weights", "3,1"]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, f"3 images of 2 submissions: {target}\n")
    assert np.allclose(read_points(target), (3 * points[0] + points[1]) / 4)
