"""COCO keypoints JSON."""

import json
from typing import Any

import numpy as np
import pytest

from kp_ray.data.coco_format import to_coco
from kp_ray.data.load import load_annotations
from kp_ray.errors import DataError
from tests.helpers.data import SHARED
from tests.helpers.labels import NUM_KEYPOINTS, make_labels, make_person


def make_coco(**changes: Any) -> dict[str, Any]:
    """Make the JSON of two images, one point of the first unlabelled, with some of its keys replaced."""
    xy = np.stack([make_person(), make_person(1)])
    xy[0, 3] = np.nan
    return {**to_coco(make_labels(["walk_A-1.jpg", "b/c.jpg"], xy), [(1920, 1080)] * 2), **changes}


def test_labels_read_back_as_written_and_boxes_hold_the_labelled_points(write):
    content = make_coco()
    labels = load_annotations(write(json.dumps(content), "labels.json"))
    assert labels.images == ("walk_A-1.jpg", "b/c.jpg")
    np.testing.assert_array_equal(labels.keypoints[1, :, :2], make_person(1))
    assert np.isnan(labels.keypoints[0, 3, :2]).all()
    assert content["annotations"][0]["num_keypoints"] == NUM_KEYPOINTS - 1
    assert content["annotations"][0]["keypoints"][9:12] == [0.0, 0.0, 0]
    x, y, width, height = content["annotations"][1]["bbox"]
    np.testing.assert_allclose([x, y], make_person(1).min(axis=0))
    np.testing.assert_allclose([x + width, y + height], make_person(1).max(axis=0))


def test_hidden_points_groups_and_images_without_a_person_are_kept(write):
    content = make_coco()
    content["annotations"][0]["keypoints"][2] = 1
    content["images"][0]["group"] = "kitchen"
    del content["annotations"][1]
    labels = load_annotations(write(json.dumps(content), "labels.json"))
    assert labels.keypoints[0, 0, 2] == 1
    assert labels.scenes[0] == "kitchen"
    assert not np.isfinite(labels.keypoints[1, :, :2]).any()
    written = to_coco(labels, [(1920, 1080)] * 2)
    assert written["images"][0]["group"] == "kitchen"
    assert len(written["annotations"]) == 1


def wrong_coco() -> list[tuple[object, str]]:
    """List wrong JSON values, each with a part of the message."""
    twice, short, text, lost, wrong_v, huge, same_id = (make_coco() for _ in range(7))
    twice["annotations"][1]["image_id"] = 1
    short["annotations"][1]["keypoints"].pop()
    text["annotations"][1]["keypoints"][0] = "12"
    lost["annotations"][1]["image_id"] = 7
    wrong_v["annotations"][1]["keypoints"][2] = 3
    huge["annotations"][1]["keypoints"][0] = 10**400
    same_id["images"][1]["id"] = 1
    same_id["annotations"].pop()
    same_name = make_coco()
    same_name["categories"][0]["keypoints"][1] = "nose"
    return [
        (twice, "walk_A-1.jpg: two people"),
        (short, "b/c.jpg: 71 keypoint numbers"),
        (text, "b/c.jpg: a keypoint is not a finite number"),
        (lost, "no image has its id 7"),
        (huge, "b/c.jpg: a keypoint is not a finite number"),
        (wrong_v, "b/c.jpg: a keypoint's v"),
        (same_id, "share an id"),
        (same_name, "'nose'"),
        (make_coco(categories=[]), "0 categories have keypoints"),
        ({"images": []}, "not COCO keypoints JSON"),
        ([1], "not COCO keypoints JSON"),
    ]


@pytest.mark.parametrize(("content", "message"), wrong_coco())
def test_a_wrong_json_is_refused_in_one_line_with_file_and_image(write, content, message):
    path = write(json.dumps(content), "labels.json")
    with pytest.raises(DataError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_json_is_refused(write):
    with pytest.raises(DataError, match=r"labels\.json: not valid JSON"):
        load_annotations(write("{", "labels.json"))


@pytest.mark.skipif(not (SHARED / "lsp").is_dir(), reason=f"the label files of LSP are not in {SHARED}")
def test_the_json_and_the_csv_of_a_real_data_set_are_equal():
    from_csv = load_annotations(str(SHARED / "lsp" / "train_df.csv"))
    from_json = load_annotations(str(SHARED / "lsp" / "annotations_coco24.json"))
    assert from_csv.images == from_json.images
    np.testing.assert_allclose(from_json.keypoints[..., :2], from_csv.keypoints[..., :2], atol=0.00051)
