"""The reader and writer of `predictions.parquet`."""

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
    scenes, cameras, frames = predictions.places
    assert (scenes, cameras, frames) == (("s", "s", "other"), ("A", "A", ""), (2, 1, -1))


def change_table(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path)


def test_a_file_of_another_program_is_refused(path: Path) -> None:
    table = pq.read_table(path)
    change_table(path, table.replace_schema_metadata({}))
    with pytest.raises(StorageError, match=f"{path}: another program wrote it"):
        read_predictions(str(path))
    change_table(path, table.replace_schema_metadata({"kp_ray": "[]"}))
    with pytest.raises(StorageError, match="another program wrote it"):
        read_predictions(str(path))
    change_table(path, table.drop_columns(["reason"]))
    with pytest.raises(StorageError, match="its columns are not those of predictions"):
        read_predictions(str(path))


@pytest.mark.parametrize("rows", [[], [0, 1, 2], [0, 2, 1, 3, 4, 5], [0, 1, 0, 1, 4, 5]])
def test_rows_that_are_not_one_per_image_and_member_are_refused(path: Path, rows: list[int]) -> None:
    table = pq.read_table(path)
    change_table(path, table.take(pa.array(rows, pa.int64())).replace_schema_metadata(table.schema.metadata))
    with pytest.raises(StorageError, match="rows are not one per image and member"):
        read_predictions(str(path))


def test_a_damaged_file_is_refused_by_its_path(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(StorageError, match=f"{path}: .*run predict again"):
        read_predictions(str(path))
