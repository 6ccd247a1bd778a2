"""YOLO-pose label files."""

import json

import numpy as np
import pytest

from kp_ray.data.coco_format import to_coco
from kp_ray.data.yolo_format import write_yolo
from kp_ray.errors import StorageError
from tests.helpers.labels import NUM_KEYPOINTS, make_labels


def test_a_file_has_one_line_per_person_with_coordinates_as_shares_of_the_image_size(tmp_path):
    xy = np.full((2, NUM_KEYPOINTS, 2), np.nan)
    xy[0, 0], xy[0, 1] = (480, 270), (960, 810)
    coco = to_coco(make_labels(["Original-0/a.jpg", "b.png"], xy), [(1920, 1080)] * 2)
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    assert write_yolo(str(tmp_path)) == 2
    (line,) = (tmp_path / "labels" / "Original-0" / "a.txt").read_text().splitlines()
    numbers = [float(cell) for cell in line.split()]
    assert len(numbers) == 5 + 3 * NUM_KEYPOINTS
    assert numbers[:11] == [0, 0.375, 0.5, 0.25, 0.5, 0.25, 0.25, 2, 0.5, 0.75, 2]
    assert set(numbers[11:]) == {0}
    assert (tmp_path / "labels" / "b.txt").read_text() == ""


def test_the_label_of_an_image_in_a_folder_called_images_is_where_ultralytics_looks_for_it(tmp_path):
    coco = to_coco(make_labels(["Original-0/images/a.jpg"], np.ones((1, NUM_KEYPOINTS, 2))), [(1920, 1080)])
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    write_yolo(str(tmp_path))
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt")] == [
        "images/Original-0/labels/a.txt"
    ]


def test_a_folder_without_an_export_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"annotations\.json"):
        write_yolo(str(tmp_path))
