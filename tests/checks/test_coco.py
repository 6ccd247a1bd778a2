"""What a COCO JSON states, compared with the image files and the points."""

import dataclasses
import json

import numpy as np
import pytest

from kp_ray.checks.coco import check_stated_facts
from kp_ray.checks.images import check_images
from kp_ray.data.annotations import StatedFacts
from kp_ray.data.coco_format import to_coco
from kp_ray.data.load import load_annotations
from tests.helpers.data import SHARED
from tests.helpers.images import corner_image, encode_with_pillow, exif_orientation
from tests.helpers.labels import NUM_KEYPOINTS, make_labels, make_person

SIZE = (1920, 1080)


def findings_of(stated: StatedFacts, size: tuple[int, int] | None = SIZE):
    """Check one image of a person, whose points reach from 840 to 960 and from 300 to 770 px."""
    labels = dataclasses.replace(make_labels(["a.jpg"], make_person()[None]), stated=(stated,))
    return check_stated_facts(labels, {} if size is None else {"a.jpg": size})


def test_facts_that_fit_are_no_findings():
    low, high = make_person().min(axis=0), make_person().max(axis=0)
    box = (*low.tolist(), *(high - low).tolist())
    assert findings_of(StatedFacts(SIZE, NUM_KEYPOINTS, NUM_KEYPOINTS, box)) == []
    assert findings_of(StatedFacts()) == findings_of(StatedFacts((9, 9)), size=None) == []
    assert check_stated_facts(make_labels(["a.jpg"], make_person()[None]), SIZE) == []


@pytest.mark.parametrize(
    ("stated", "size", "kind", "message", "fix"),
    [
        ((1080, 1920), SIZE, "swapped_size", "is turned", "exchange width and height"),
        (SIZE, (1080, 1920), "swapped_size", "is turned", "exchange width and height"),
        ((1600, 900), (900, 1600), "swapped_size", "is turned", "remove the EXIF orientation"),
        (SIZE, (960, 540), "stated_size", "resized by 0.5", "multiply the points by 0.5"),
        (SIZE, (640, 360), "stated_size", "resized by 0.333", "use the images of the stated size"),
        ((1000, 667), (500, 333), "stated_size", "resized by 0.5", "multiply the points by 0.5"),
        ((960, 540), SIZE, "stated_size", "resized by 2", "correct width and height"),
        ((1280, 720), (1280, 800), "stated_size", "cropped or is another one", "use the images that were labelled"),
    ],
)
def test_a_stated_size_that_is_not_the_images_is_reported(stated, size, kind, message, fix):
    (finding,) = findings_of(StatedFacts(stated), size)
    assert (finding.kind, finding.level, finding.image) == (kind, "warning", "a.jpg")
    assert message in finding.message
    assert fix in finding.fix


def test_the_points_decide_whether_the_labels_or_the_files_are_wrong():
    inside, outside = (findings_of(StatedFacts(SIZE), size)[0].fix for size in ((1440, 810), (960, 540)))
    assert "if the points fit already" in inside
    assert "if the points fit already" not in outside


@pytest.mark.parametrize("num_keypoints", [0, 17, 240])
def test_another_number_of_points_than_stated_is_reported(num_keypoints):
    (finding,) = findings_of(StatedFacts(num_keypoints=num_keypoints, num_labelled=NUM_KEYPOINTS))
    assert finding.kind == "num_keypoints"
    assert f"num_keypoints is {num_keypoints}, {NUM_KEYPOINTS} points have v > 0" in finding.message


def test_points_that_missing_values_or_corrections_remove_are_no_findings(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps(to_coco(make_labels(["a.jpg"], make_person()[None]), [SIZE])))
    (tmp_path / "corrections.csv").write_text("image,action,keypoint,x,y\na.jpg,point,nose,,\n")
    eye = make_person()[1].tolist()
    labels = load_annotations(
        str(tmp_path / "labels.json"), corrections=str(tmp_path / "corrections.csv"), missing_values=[(eye[0], eye[1])]
    )
    assert (labels.keypoints[0, :2, 2] == 0).all()
    assert check_stated_facts(labels) == []


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0.0, 0.0, 50.0, 50.0), "0 of 24 points are in its bbox"),
        ((420.0, 150.0, 60.0, 240.0), "0 of 24 points are in its bbox"),
        ((830.0, 290.0, 40.0, 200.0), "points are in its bbox"),
    ],
)
def test_a_box_that_does_not_hold_the_points_is_reported(box, message):
    (finding,) = findings_of(StatedFacts(bbox_xywh=box))
    assert (finding.kind, message in finding.message) == ("bbox", True)


def test_a_box_of_two_corners_is_recognized():
    labels = make_labels(["a.jpg"], np.linspace((300.0, 30.0), (310.0, 500.0), NUM_KEYPOINTS)[None])
    labels = dataclasses.replace(labels, stated=(StatedFacts(bbox_xywh=(298.0, 25.0, 315.0, 505.0)),))
    assert check_stated_facts(labels) == []  # x, y, width, height would hold the points as well: nothing is certain
    labels = make_labels(["a.jpg"], make_person()[None])
    labels = dataclasses.replace(labels, stated=(StatedFacts(bbox_xywh=(830.0, 1.0, 970.0, 2.0)),))
    assert [finding.kind for finding in check_stated_facts(labels)] == ["bbox"]


def test_a_box_that_leaves_the_image_is_reported():
    low, high = make_person().min(axis=0), make_person().max(axis=0)
    stated = StatedFacts(bbox_xywh=(*low.tolist(), *high.tolist()))  # two corners; it holds all points
    for finding in [*findings_of(stated), *findings_of(dataclasses.replace(stated, size=SIZE), size=None)]:
        assert (finding.kind, "two corners" in finding.message) == ("bbox", True)
    assert findings_of(stated, size=None) == []
    (finding,) = findings_of(StatedFacts(bbox_xywh=(0.0, 0.0, 3 * SIZE[0], 800.0)))
    assert "leaves the" in finding.message


def test_boxes_that_are_not_boxes_are_left_alone():
    assert findings_of(StatedFacts(bbox_xywh=(0.0, 0.0, 0.0, 0.0))) == []


def test_the_size_is_that_of_the_image_as_seen(tmp_path):
    content = encode_with_pillow(corner_image(), "JPEG", exif=exif_orientation(6))  # 96x64 px, seen as 64x96
    (tmp_path / "a.jpg").write_bytes(content)
    labels = make_labels(["a.jpg"], np.linspace(5, 50, 2 * NUM_KEYPOINTS).reshape(1, NUM_KEYPOINTS, 2))
    _, sizes = check_images(labels, str(tmp_path))
    for stated, kinds in (((64, 96), []), ((96, 64), ["swapped_size"])):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(to_coco(labels, [stated])))
        assert [finding.kind for finding in check_stated_facts(load_annotations(str(path)), sizes)] == kinds


@pytest.mark.skipif(not (SHARED / "lsp").is_dir(), reason=f"the images of LSP are not in {SHARED}")
def test_a_real_data_set_states_what_its_images_and_points_are():
    labels = load_annotations(str(SHARED / "lsp" / "annotations_coco24.json"))
    _, sizes = check_images(labels, str(SHARED / "lsp" / "images"))
    assert check_stated_facts(labels, sizes) == []
