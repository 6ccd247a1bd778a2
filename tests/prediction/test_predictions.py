"""Test reading and writing `predictions.parquet`."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kp_ray.errors import StorageError
from kp_ray.keypoints import DACON24
from kp_ray.prediction.predictions import read_predictions
from tests.helpers.predictions import write_prediction_arrays

IMAGES = ["s_A-2.jpg", "s_A-1.jpg", "other.jpg"]
MEMBERS = ["b", "a"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    keypoints = np.arange(2 * 3 * 24 * 3, dtype=float).reshape(2, 3, 24, 3)
    keypoints[1, 2] = np.nan
    path = tmp_path / "predictions.parquet"
    write_prediction_arrays(str(path), MEMBERS, IMAGES, keypoints, DACON24.names, size=(64, 48))
    return path


def test_predictions_are_read_by_member_and_image(path: Path) -> None:
    predictions = read_predictions(str(path))
    assert (predictions.members, predictions.images) == (tuple(MEMBERS), tuple(IMAGES))
    assert predictions.keypoint_names == DACON24.names
    assert predictions.keypoints.shape == (2, 3, 24, 3)
    assert predictions.keypoints[1, 0, 0].tolist() == [216, 217, 218]
    assert np.isnan(predictions.keypoints[1, 2]).all()
    assert predictions.scores.tolist() == [[0.9, 0.9, 0.9], [0.9, 0.9, 0.0]]
    assert predictions.sizes == ((64, 48),) * 3
    assert predictions.reasons == ("",) * 3
    scenes, cameras, frames = predictions.scenes_cameras_frames
    assert (scenes, cameras, frames) == (("s", "s", "other"), ("A", "A", ""), (2, 1, -1))


def test_a_file_that_another_program_wrote_is_refused(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({}), path)
    with pytest.raises(StorageError, match=f"{path}: is not a predictions.parquet of kp_ray"):
        read_predictions(str(path))
    pq.write_table(table.replace_schema_metadata({"kp_ray": "[]"}), path)
    with pytest.raises(StorageError, match="damaged: delete it"):
        read_predictions(str(path))
    pq.write_table(table.drop_columns(["reason"]), path)
    with pytest.raises(StorageError, match="does not have the columns of predictions"):
        read_predictions(str(path))


@pytest.mark.parametrize("rows", [[], [0, 1, 2], [0, 2, 1, 3, 4, 5], [0, 1, 0, 1, 4, 5]])
def test_a_file_without_one_row_per_image_and_member_is_refused(path: Path, rows: list[int]) -> None:
    table = pq.read_table(path)
    table_of_rows = table.take(pa.array(rows, pa.int64()))
    pq.write_table(table_of_rows.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(StorageError, match="does not have one row per image and member"):
        read_predictions(str(path))


def test_the_error_about_a_damaged_file_names_its_path(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StorageError, match=f"{path}: .*run predict again"):
        read_predictions(str(path))
