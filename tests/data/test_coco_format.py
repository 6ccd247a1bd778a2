"""COCO keypoints JSON."""

import json
from typing import Any

import numpy as np
import pytest

from kp_ray.data.annotations import StatedFacts
from kp_ray.data.coco_format import to_coco
from kp_ray.data.load import load_annotations
from kp_ray.errors import DataError
from tests.helpers.data import SHARED
from tests.helpers.labels import NUM_KEYPOINTS, make_labels, make_person


def make_coco(**changes: Any) -> dict[str, Any]:
    """Make the JSON of two images, the first with an unlabelled point; `changes` replace keys of the JSON."""
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
    content["images"][1]["group"] = None
    del content["annotations"][1]
    labels = load_annotations(write(json.dumps(content), "labels.json"))
    assert labels.keypoints[0, 0, 2] == 1
    assert labels.scenes[0] == "kitchen"
    assert not np.isfinite(labels.keypoints[1, :, :2]).any()
    written_content = to_coco(labels, [(1920, 1080)] * 2)
    assert written_content["images"][0]["group"] == "kitchen"
    assert "group" not in written_content["images"][1]
    assert len(written_content["annotations"]) == 1


def list_wrong_coco() -> list[tuple[object, str]]:
    """List wrong JSON values, each with a part of the message that refuses it."""
    two_people, missing_number, text_number, missing_image, wrong_v, huge_number, shared_id, shared_name, blank_name = (
        make_coco() for _ in range(9)
    )
    two_people["annotations"][1]["image_id"] = 1
    missing_number["annotations"][1]["keypoints"].pop()
    text_number["annotations"][1]["keypoints"][0] = "12"
    missing_image["annotations"][1]["image_id"] = 7
    wrong_v["annotations"][1]["keypoints"][2] = 3
    huge_number["annotations"][1]["keypoints"][0] = 10**400
    shared_id["images"][1]["id"] = 1
    shared_id["annotations"].pop()
    shared_name["categories"][0]["keypoints"][1] = "nose"
    blank_name["images"][0]["file_name"] += " "
    return [
        (
            two_people,
            "walk_A-1.jpg: 2 people are labelled (annotations 1 and 2; images with several people: 1): set",
        ),
        (missing_number, "b/c.jpg: 71 keypoint numbers"),
        (text_number, "b/c.jpg: a keypoint's x or y is not a finite number"),
        (missing_image, "no image has the id 7"),
        (huge_number, "b/c.jpg: a keypoint's x or y is not a finite number"),
        (wrong_v, "b/c.jpg: a keypoint's v"),
        (shared_id, "share an id"),
        (shared_name, "'nose'"),
        (blank_name, "image 'walk_A-1.jpg ' begins or ends with white space: rename the image"),
        (make_coco(categories=[]), "no category has keypoints"),
        ({"images": []}, "not COCO keypoints JSON"),
        ([1], "not COCO keypoints JSON"),
    ]


@pytest.mark.parametrize(("content", "message"), list_wrong_coco())
def test_a_wrong_json_is_refused_with_its_path_and_the_mistake(write, content, message):
    path = write(json.dumps(content), "labels.json")
    with pytest.raises(DataError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)


def test_text_that_is_not_json_is_refused(write):
    with pytest.raises(DataError, match=r"labels\.json: not valid JSON"):
        load_annotations(write("{", "labels.json"))


@pytest.mark.skipif(not (SHARED / "lsp").is_dir(), reason=f"the label files of LSP are not in {SHARED}")
def test_the_json_and_the_csv_of_a_real_data_set_hold_equal_labels():
    from_csv = load_annotations(str(SHARED / "lsp" / "train_df.csv"))
    from_json = load_annotations(str(SHARED / "lsp" / "annotations_coco24.json"))
    assert from_csv.images == from_json.images
    # The coordinates in the JSON are rounded to 3 decimals.
    np.testing.assert_allclose(from_json.keypoints[..., :2], from_csv.keypoints[..., :2], atol=0.00051)


# An annotation without keypoints is an unlabelled person; an annotation with wrong keypoints is refused.


@pytest.mark.parametrize("keypoints", [None, [], "absent", [None, None, 0] * NUM_KEYPOINTS, [0] * 3 * NUM_KEYPOINTS])
def test_an_annotation_without_keypoints_is_an_unlabelled_person(write, keypoints):
    content = make_coco()
    content["annotations"][1]["keypoints"] = keypoints
    if keypoints == "absent":
        del content["annotations"][1]["keypoints"]
    labels = load_annotations(write(json.dumps(content), "labels.json"))
    assert labels.images == ("walk_A-1.jpg", "b/c.jpg")
    assert not labels.keypoints[1, :, 2].any()


@pytest.mark.parametrize(
    ("keypoints", "message"),
    [
        ("1,2,2", "keypoints is text: a list of 72 numbers x, y, v is expected"),
        ({"nose": [1, 2, 2]}, "keypoints is an object"),
        (7, "keypoints is a number"),
        (True, "keypoints is true or false"),
        ([[1, 2, 2]] * NUM_KEYPOINTS, "24 keypoint numbers where 72 are expected"),
        ([1.0, 2.0] * NUM_KEYPOINTS, "48 keypoint numbers where 72 are expected, as if v were missing"),
        ([1, 2, 2] * 17, "51 keypoint numbers where 72 are expected"),
        ([None, 2, 2] * NUM_KEYPOINTS, "a keypoint's x or y is not a finite number (got None, 2)"),
        (["1", 2, 2] * NUM_KEYPOINTS, "a keypoint's x or y is not a finite number (got '1', 2)"),
        ([float("nan"), 2, 2] * NUM_KEYPOINTS, "a keypoint's x or y is not a finite number (got nan, 2)"),
        ([1, 2, None] * NUM_KEYPOINTS, "a keypoint's v is None"),
        ([1, 2, 0.93] * NUM_KEYPOINTS, "a keypoint's v is 0.93: write 0 (unlabelled), 1 (hidden) or 2 (visible)"),
    ],
)
def test_the_message_about_wrong_keypoints_names_annotation_and_image(write, keypoints, message):
    content = make_coco()
    content["annotations"][1] |= {"keypoints": keypoints, "id": 77}
    path = write(json.dumps(content), "labels.json")
    with pytest.raises(DataError) as caught:
        load_annotations(path)
    assert f"{path}: annotation 77 of b/c.jpg: {message}" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "index", "changes", "message"),
    [
        ("annotations", 1, {"image_id": None}, "annotation 2: image_id is absent or null"),
        ("annotations", 1, {"image_id": [1]}, "annotation 2: image_id is a list"),
        ("annotations", 1, {"image_id": "2"}, "annotation 2: image_id is text ('2'), but the image's id is not"),
        ("annotations", 1, {"image_id": 9}, "annotation 2: no image has the id 9"),
        (
            "annotations",
            1,
            {"category_id": "1"},
            "annotation 2: category_id is text ('1'), but the category's id is not",
        ),
        (
            "categories",
            0,
            {"id": 0},
            "no annotation belongs to the category with keypoints, whose id is 0 (the first has",
        ),
        ("images", 1, {"file_name": None}, "images[1]: file_name is absent or null"),
        ("images", 1, {"file_name": 5}, "images[1]: file_name is a number"),
        ("images", 1, {"id": None}, "images[1] (b/c.jpg): id is absent or null"),
        ("images", 1, {"id": {}}, "images[1] (b/c.jpg): id is an object"),
        ("categories", 0, {"keypoints": "nose"}, "needs an id and a list of keypoint names"),
        ("categories", 0, {"id": None}, "needs an id and a list of keypoint names"),
        ("categories", 0, {"keypoints": None}, "no category has keypoints, as in a file of boxes"),
        ("categories", 0, {"keypoints": []}, "no category has keypoints"),
    ],
)
def test_the_message_about_a_wrong_entry_names_its_place(write, key, index, changes, message):
    content = make_coco()
    content[key][index] |= changes
    path = write(json.dumps(content), "labels.json")
    with pytest.raises(DataError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize(
    ("value", "message"), [({}, "is an object"), (None, "is absent or null"), ([3], "[0] is a nu")]
)
def test_a_key_without_a_list_of_objects_is_named(write, key, value, message):
    path = write(json.dumps(make_coco(**{key: value})), "labels.json")
    with pytest.raises(DataError, match=r"list of objects|object is expected") as caught:
        load_annotations(path)
    assert f"{key}{'' if message[0] == '[' else ' '}{message}" in str(caught.value)


# Shared ids and repeated entries: the message names the cause and does not advise deleting a good label.


def test_images_that_share_an_id_are_described_as_joined_files(write):
    content = make_coco()
    content["images"][1]["id"] = 1
    with pytest.raises(DataError, match=r"walk_A-1\.jpg and b/c\.jpg share an id \(1\), as if two files") as caught:
        load_annotations(write(json.dumps(content), "labels.json"))
    assert "delete" not in str(caught.value)
    content["images"][1]["id"] = 2  # its own id, to which the annotation refers already
    assert len(load_annotations(write(json.dumps(content), "labels.json"))) == 2


def test_a_repeated_image_entry_is_named(write):
    content = make_coco()
    content["images"].append(dict(content["images"][0]))
    with pytest.raises(DataError, match=r"walk_A-1\.jpg is listed twice with the id 1: delete one entry"):
        load_annotations(write(json.dumps(content), "labels.json"))
    content["images"].pop()
    assert len(load_annotations(write(json.dumps(content), "labels.json"))) == 2


def test_an_annotation_without_id_and_category_is_named_by_its_number(write):
    content = make_coco()
    del content["annotations"][1]["id"], content["annotations"][1]["category_id"]
    with pytest.raises(DataError, match=r"annotation no\. 1: has no category_id"):
        load_annotations(write(json.dumps(content), "labels.json"))


def test_ids_may_be_text_or_decimal_numbers(write):
    content = make_coco()
    for entry, key in ((content["images"], "id"), (content["annotations"], "image_id")):
        entry[0][key], entry[1][key] = "a", 2.0
    assert len(load_annotations(write(json.dumps(content), "labels.json"))) == 2


def test_annotations_that_share_an_id_are_read(write):
    content = make_coco()
    content["annotations"][1]["id"] = 1
    labels = load_annotations(write(json.dumps(content), "labels.json"))
    np.testing.assert_array_equal(labels.keypoints[1, :, :2], make_person(1))


def test_the_message_about_a_repeated_annotation_names_both(write):
    content = make_coco()
    content["annotations"].append({**content["annotations"][1], "id": 3})
    with pytest.raises(
        DataError, match=r"annotations 2 and 3 label b/c\.jpg with the same points: delete one of these"
    ):
        load_annotations(write(json.dumps(content), "labels.json"))


# Files of other kinds where COCO keypoints JSON is expected.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "an empty JSON list"),
        ([{"image_id": 1, "keypoints": [], "score": 0.5}], "a list of COCO results or annotations"),
        ([{"id": 1, "data": {}, "annotations": []}], "a Label Studio export"),
        ([{"tags": [], "shapes": [], "tracks": []}], "a backup of a CVAT task"),
        ([{"image": "a.jpg", "joints": []}], "a list of MPII annotations"),
        ([[1, 2]], "a JSON list of 1 entries"),
        ({"version": "5.0", "flags": {}, "shapes": [], "imagePath": "a.jpg"}, "a labelme file of one image"),
        ({"version": 1.3, "people": [{"pose_keypoints_2d": []}]}, "an OpenPose file of one image"),
        ({"info": {}, "categories": {}, "items": []}, "a Datumaro file, as CVAT exports it"),
        ({"_via_settings": {}, "_via_img_metadata": {}}, "a project of the VGG Image Annotator"),
        ({"a.jpg123": {"filename": "a.jpg", "regions": []}}, "annotations of the VGG Image Annotator"),
        ({"images": [], "categories": []}, "COCO JSON without the key annotations"),
        ({"a": 1, "b": 2}, "a JSON object with the keys a, b"),
        ({}, "an empty JSON object"),
        (3, "a single JSON value"),
    ],
)
def test_json_of_another_kind_is_described(write, content, message):
    path = write(json.dumps(content), "labels.json")
    with pytest.raises(DataError) as caught:
        load_annotations(path)
    assert f"{path}: not COCO keypoints JSON: it looks like {message}" in str(caught.value)
    assert "COCO keypoints JSON with images, annotations and categories expected" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + b"\0" * 40, "it looks like a ZIP archive"),
        (b"<?xml version='1.0'?><annotations/>", "it looks like a CVAT XML file"),
        (b"\x1f\x8b\x08\0", "it looks like a gzip archive"),
        (b"", "it looks like an empty file"),
        (b"image,nose_x,nose_y\na.jpg,1,2\n", "not valid JSON but a CSV: give it a name that ends in .csv"),
        (b"scorer,me,me\nbodyparts,nose,nose\ncoords,x,y\n", "not valid JSON but a CSV"),
        (b'{"images": [', "not valid JSON"),
    ],
)
def test_a_file_that_is_no_json_is_described(write, content, message):
    path = write(content, "labels.json")
    with pytest.raises(DataError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["file_name", "group"])
def test_half_of_a_character_is_refused(write, key):
    content = make_coco()
    content["images"][0][key] = "a\ud800.jpg"
    path = write(json.dumps(content), "labels.json")
    with pytest.raises(DataError, match=r"\\ud800' is only half of a character") as caught:
        load_annotations(path)
    assert str(caught.value).startswith(path)
    content["images"][0] |= {"file_name": "a.jpg", "group": "a\U0001f4a1"}  # json escapes it as two halves
    assert load_annotations(write(json.dumps(content), "labels.json")).scenes[0] == "a\U0001f4a1"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_another_unicode_encoding_is_read(write, encoding):
    assert len(load_annotations(write(json.dumps(make_coco()).encode(encoding), "labels.json"))) == 2


def test_stated_facts_are_kept_with_their_image(write):
    content = make_coco()
    content["images"][0] |= {"width": "wide"}
    del content["annotations"][0]
    facts = load_annotations(write(json.dumps(content), "labels.json")).stated
    assert facts[0] == StatedFacts()
    assert (facts[1].size, facts[1].num_keypoints) == ((1920, 1080), NUM_KEYPOINTS)
    np.testing.assert_allclose(facts[1].bbox_xywh[:2], make_person(1).min(axis=0))
