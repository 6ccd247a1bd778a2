"""Facts that a COCO JSON states, compared with the image files and the points."""

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


def check_person(facts: StatedFacts, size: tuple[int, int] | None = SIZE, offset_px: float = 0.0):
    """Check the stated facts of an image of one person, whose points have x 840..960 and y 300..770 px.

    `offset_px` moves the person to the right and downwards.
    """
    labels = dataclasses.replace(make_labels(["a.jpg"], make_person()[None] + offset_px), stated=(facts,))
    return check_stated_facts(labels, {} if size is None else {"a.jpg": size})


def test_facts_that_fit_cause_no_findings():
    low, high = make_person().min(axis=0), make_person().max(axis=0)
    box = (*low.tolist(), *(high - low).tolist())
    assert check_person(StatedFacts(SIZE, NUM_KEYPOINTS, NUM_KEYPOINTS, box)) == []
    assert check_person(StatedFacts()) == check_person(StatedFacts((9, 9)), size=None) == []
    assert check_stated_facts(make_labels(["a.jpg"], make_person()[None]), SIZE) == []


@pytest.mark.parametrize(
    ("stated_size", "size", "kind", "message", "fix"),
    [
        ((1080, 1920), SIZE, "swapped_size", "is turned", "exchange width and height"),
        (SIZE, (1080, 1920), "swapped_size", "is turned", "exchange width and height"),
        ((1600, 900), (900, 1600), "swapped_size", "is turned", "remove the EXIF orientation"),
        (SIZE, (960, 540), "stated_size", "resized by 0.5", "multiply the points by 0.5"),
        (SIZE, (640, 360), "stated_size", "resized by 0.333", "use the images of the stated size"),
        ((1000, 667), (500, 333), "stated_size", "resized by 0.5", "multiply the points by 0.5"),
        ((960, 540), SIZE, "stated_size", "resized by 2", "correct width and height"),
        (
            (1280, 720),
            (1280, 800),
            "stated_size",
            "cropped, or replaced by an image of the same name",
            "use the images that were labelled",
        ),
    ],
)
def test_a_stated_size_other_than_the_size_of_the_image_is_reported(stated_size, size, kind, message, fix):
    (finding,) = check_person(StatedFacts(stated_size), size)
    assert (finding.kind, finding.level, finding.image) == (kind, "warning", "a.jpg")
    assert message in finding.message
    assert fix in finding.fix


def test_the_points_decide_whether_the_labels_or_the_files_are_wrong():
    fix_for_points_inside = check_person(StatedFacts(SIZE), (1440, 810))[0].fix
    assert "if the points fit already" in fix_for_points_inside
    fix_for_points_outside = check_person(StatedFacts(SIZE), (960, 540))[0].fix
    assert "if the points fit already" not in fix_for_points_outside


@pytest.mark.parametrize("num_keypoints", [0, 17, 240])
def test_a_wrong_num_keypoints_is_reported(num_keypoints):
    (finding,) = check_person(StatedFacts(num_keypoints=num_keypoints, num_labelled=NUM_KEYPOINTS))
    assert finding.kind == "num_keypoints"
    assert f"num_keypoints is {num_keypoints}, {NUM_KEYPOINTS} points have v > 0" in finding.message


def test_points_that_missing_values_or_corrections_remove_cause_no_findings(tmp_path):
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
        ((0.0, 0.0, 50.0, 50.0), "0 of 24 points are inside bbox"),
        ((420.0, 150.0, 60.0, 240.0), "0 of 24 points are inside bbox"),
        ((830.0, 290.0, 40.0, 200.0), "points are inside bbox"),
        ((-500.0, 0.0, 1500.0, 700.0), "leaves the"),
    ],
)
def test_a_box_that_does_not_hold_the_points_is_reported(box, message):
    (finding,) = check_person(StatedFacts(bbox_xywh=box))
    assert (finding.kind, message in finding.message) == ("bbox", True)


def test_a_box_of_two_corners_is_recognized():
    labels = make_labels(["a.jpg"], np.linspace((300.0, 30.0), (310.0, 500.0), NUM_KEYPOINTS)[None])
    labels = dataclasses.replace(labels, stated=(StatedFacts(bbox_xywh=(298.0, 25.0, 315.0, 505.0)),))
    assert check_stated_facts(labels) == []  # read as x, y, width, height, the box holds the points as well
    labels = make_labels(["a.jpg"], make_person()[None])
    labels = dataclasses.replace(labels, stated=(StatedFacts(bbox_xywh=(830.0, 1.0, 970.0, 2.0)),))
    assert [finding.kind for finding in check_stated_facts(labels)] == ["bbox"]


def test_a_box_that_leaves_the_image_is_reported():
    xy = make_person() + 200
    facts = StatedFacts(bbox_xywh=(*xy.min(axis=0).tolist(), *xy.max(axis=0).tolist()))  # two corners
    (finding,) = check_person(facts, offset_px=200)
    assert (finding.kind, "two corners" in finding.message) == ("bbox", True)
    assert check_person(dataclasses.replace(facts, size=SIZE), size=None, offset_px=200) == [finding]
    assert check_person(facts, size=None, offset_px=200) == []  # without a size, the box may be x, y, width, height
    (finding,) = check_person(StatedFacts(bbox_xywh=(0.0, 0.0, 3 * SIZE[0], 800.0)))
    assert "leaves the" in finding.message


def test_a_box_without_an_area_is_ignored():
    assert check_person(StatedFacts(bbox_xywh=(0.0, 0.0, 0.0, 0.0))) == []


def test_a_stated_size_is_compared_with_the_size_of_the_upright_image(tmp_path):
    content = encode_with_pillow(corner_image(), "JPEG", exif=exif_orientation(6))  # 96x64 px, seen as 64x96
    (tmp_path / "a.jpg").write_bytes(content)
    labels = make_labels(["a.jpg"], np.linspace(5, 50, 2 * NUM_KEYPOINTS).reshape(1, NUM_KEYPOINTS, 2))
    _, sizes = check_images(labels, str(tmp_path))
    for stated_size, kinds in (((64, 96), []), ((96, 64), ["swapped_size"])):
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(to_coco(labels, [stated_size])))
        assert [finding.kind for finding in check_stated_facts(load_annotations(str(path)), sizes)] == kinds


@pytest.mark.skipif(not (SHARED / "lsp").is_dir(), reason=f"the images of LSP are not in {SHARED}")
def test_the_stated_facts_of_a_real_data_set_fit():
    labels = load_annotations(str(SHARED / "lsp" / "annotations_coco24.json"))
    _, sizes = check_images(labels, str(SHARED / "lsp" / "images"))
    assert check_stated_facts(labels, sizes) == []
