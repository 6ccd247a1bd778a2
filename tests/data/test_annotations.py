"""The table of labels, and the rules of image names."""

import numpy as np
import pytest

from kp_ray.data.annotations import check_image_name, parse_name, reorder_keypoints
from kp_ray.errors import DataError
from kp_ray.keypoints import DACON24, Skeleton
from tests.helpers.labels import make_clips, make_labels, make_person


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("001-1-1-01-Z17_A-0000001.jpg", ("001-1-1-01-Z17", "A", 1)),
        ("day1/001-1-1-01-Z17_E-0000031.png", ("day1/001-1-1-01-Z17", "E", 31)),
        ("lspet_im00004.jpg", ("lspet_im00004", "", -1)),
        ("a/b.jpg", ("a/b", "", -1)),
        ("a.b/c", ("a.b/c", "", -1)),
        ("IMG_20230101-0001.jpg", ("IMG_20230101-0001", "", -1)),
        ("x_A-" + "9" * 5000 + ".jpg", ("x_A-" + "9" * 5000, "", -1)),
    ],
)
def test_an_image_name_gives_scene_camera_and_frame(image, expected):
    assert parse_name(image) == expected


@pytest.mark.parametrize("image", ["a.jpg", "a/b.jpg", "사진.jpg", "a b#%.jpg", "a..b.jpg", "3.00\u202fPM\u3000.png"])
def test_a_name_inside_the_image_folder_is_accepted(image):
    assert check_image_name(image, "labels.csv") == image


@pytest.mark.parametrize(
    "image",
    ["", "..", "../a.jpg", "a/../b.jpg", "/etc/a.jpg", "a//b.jpg", "./a.jpg", "C:a.jpg", "a\\b.jpg", "a\0b", "a/"],
)
def test_a_name_that_leads_out_of_the_image_folder_is_refused(image):
    with pytest.raises(DataError, match=r"^labels\.csv: .*not a plain name"):
        check_image_name(image, "labels.csv")


def test_select_keeps_the_fields_of_an_image_together_and_its_row_in_the_file():
    labels = make_clips("AB", num_frames=3).select(np.array([4, 0]))
    assert labels.images == ("walk_B-0000001.jpg", "walk_A-0000000.jpg")
    assert (labels.cameras, labels.frames, labels.rows, len(labels)) == (("B", "A"), (1, 0), (4, 0), 2)
    assert labels.select([0]).rows == (4,)


def test_keypoints_are_reordered_to_a_skeleton_of_the_same_names():
    labels = make_labels(["a.jpg"], make_person()[None])
    skeleton = Skeleton(DACON24.names[::-1], DACON24.flip_pairs, DACON24.sigmas[::-1])
    reordered_labels = reorder_keypoints(labels, skeleton, "truth.csv")
    assert reordered_labels.skeleton == skeleton
    np.testing.assert_array_equal(reordered_labels.keypoints, labels.keypoints[:, ::-1])


def test_labels_with_other_keypoint_names_than_the_skeleton_are_refused():
    skeleton = Skeleton(("paw", *DACON24.names[1:]), (), DACON24.sigmas)
    with pytest.raises(DataError, match=r"^truth\.csv: .*'nose'"):
        reorder_keypoints(make_labels(["a.jpg"], make_person()[None]), skeleton, "truth.csv")
