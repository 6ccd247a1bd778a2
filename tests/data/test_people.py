"""Several people in one image."""

import json
from typing import Any

import numpy as np
import pytest

from kp_ray.config.load import build_config
from kp_ray.data.coco_format import to_coco
from kp_ray.data.load import load_annotations, load_labels
from kp_ray.errors import ConfigError, DataError
from tests.helpers.labels import CELLS, CELLS_AFTER_X, HEADER, make_labels, make_person


def make_multi_person_coco() -> dict[str, Any]:
    """Make COCO JSON of three images: a.jpg shows three people, b.jpg one, c.jpg two.

    The second person of a.jpg and of c.jpg is twice as large as the others.
    """
    sizes = [(1920, 1080)] * 3
    small_xy, large_xy = make_person(), 2 * make_person(1)
    content = to_coco(make_labels(["a.jpg", "b.jpg", "c.jpg"], np.stack([small_xy] * 3)), sizes)
    added_xy = np.stack([large_xy, small_xy + 9, large_xy])
    added_people = to_coco(make_labels(["1.jpg", "2.jpg", "3.jpg"], added_xy), sizes)["annotations"]
    for number, (person, image_id) in enumerate(zip(added_people, (1, 1, 3), strict=True), start=4):
        content["annotations"].append({**person, "id": number, "image_id": image_id})
    return content


def test_several_people_are_refused_with_the_setting_that_accepts_them(write):
    path = write(json.dumps(make_multi_person_coco()), "labels.json")
    with pytest.raises(DataError) as caught:
        load_annotations(path)
    assert str(caught.value) == (
        f"{path}: a.jpg: 3 people are labelled (annotations 1 and 4; images with several people: 2): set data.people: "
        "largest to train on the largest of them"
    )


def test_the_largest_person_is_kept_and_the_people_left_out_are_counted(write):
    labels = load_annotations(write(json.dumps(make_multi_person_coco()), "labels.json"), people="largest")
    assert labels.images == ("a.jpg", "b.jpg", "c.jpg")
    np.testing.assert_array_equal(labels.keypoints[0, :, :2], 2 * make_person(1))
    np.testing.assert_array_equal(labels.keypoints[1, :, :2], make_person())
    assert labels.stated[0].bbox_xywh[2] > labels.stated[1].bbox_xywh[2]
    assert labels.notes == (
        "data.people: largest: 3 people in 2 images are left out; they stay in the images, unlabelled",
    )


def test_without_boxes_the_points_decide_which_person_is_largest_and_of_equal_people_the_first_is_kept(write):
    content = make_multi_person_coco()
    for person in content["annotations"]:
        del person["bbox"]
    labels = load_annotations(write(json.dumps(content), "labels.json"), people="largest")
    np.testing.assert_array_equal(labels.keypoints[0, :, :2], 2 * make_person(1))
    first_person = content["annotations"][0]
    # The second person of a.jpg is the first, moved by 5 px; a number of 2 or less is a v, and stays.
    moved_keypoints = [value + 5 if value > 2 else value for value in first_person["keypoints"]]
    content["annotations"] = [first_person, {**first_person, "id": 2, "keypoints": moved_keypoints}]
    labels = load_annotations(write(json.dumps(content), "labels.json"), people="largest")
    np.testing.assert_array_equal(labels.keypoints[0, :, :2], make_person())


@pytest.mark.parametrize("people", ["error", "largest"])
def test_boxes_without_keypoints_and_crowds_do_not_count_as_people(write, people):
    content = make_multi_person_coco()
    content["annotations"] = content["annotations"][:3]
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 1900, 1000]}
    content["annotations"] += [
        {**box, "id": 7},
        {**box, "id": 8, "keypoints": content["annotations"][0]["keypoints"], "iscrowd": 1},
    ]
    labels = load_annotations(write(json.dumps(content), "labels.json"), people=people)
    np.testing.assert_array_equal(labels.keypoints[0, :, :2], make_person())
    assert labels.notes == ()


def test_load_labels_uses_data_people_of_the_config(write):
    path = write(json.dumps(make_multi_person_coco()), "labels.json")
    config = build_config({"data": {"annotations": path, "people": "largest"}})
    assert len(load_labels(config)) == 3
    with pytest.raises(DataError, match=r"data\.people: largest"):
        load_labels(build_config({"data": {"annotations": path}}))
    with pytest.raises(ConfigError, match=r"data\.people"):
        build_config({"data": {"people": "all"}})


def test_data_people_applies_to_the_rows_of_a_csv_too(write):
    path = write(f"{HEADER}\na.jpg,{CELLS}\nb.jpg,{CELLS}\na.jpg,90,{CELLS_AFTER_X}\n")  # the second box is wider
    labels = load_annotations(path, people="largest")
    assert labels.images == ("a.jpg", "b.jpg")
    assert labels.keypoints[0, 0, 0] == 90
