"""The CSV of DeepLabCut and Lightning Pose."""

from collections.abc import Callable

import numpy as np
import pytest

from kp_ray.data.annotations import Annotations
from kp_ray.data.load import load_annotations
from kp_ray.data.visibility import MIN_LIKELIHOOD
from kp_ray.errors import DataError
from tests.helpers.labels import VISIBILITY_CASES

Load = Callable[[str], Annotations]
LABELS = """scorer,Ann,Ann,Ann,Ann
bodyparts,paw_l,paw_l,paw_r,paw_r
coords,x,y,x,y
labeled-data/walk/img001.png,10.5,20,30,40
labeled-data/run/img002.png,11,21,,
"""


@pytest.fixture
def load(write) -> Load:
    """Return a function that reads labels from text."""
    skeleton = {"flip_pairs": [("paw_l", "paw_r")], "sigmas": [0.1, 0.1]}
    return lambda text: load_annotations(write(text), **skeleton)


def test_labels_of_deeplabcut_are_read_and_the_video_is_the_scene(load):
    labels = load(LABELS)
    assert labels.skeleton.names == ("paw_l", "paw_r")
    assert labels.images == ("labeled-data/walk/img001.png", "labeled-data/run/img002.png")
    assert labels.scenes == ("labeled-data/walk", "labeled-data/run")
    np.testing.assert_array_equal(labels.keypoints[0], [[10.5, 20, 2], [30, 40, 2]])
    np.testing.assert_array_equal(labels.keypoints[1], [[11, 21, 2], [np.nan, np.nan, 0]])


def test_names_in_three_columns_and_names_with_backslashes_give_the_same_images(load):
    text = LABELS.replace("/", ",")
    for word in ("scorer", "bodyparts", "coords"):
        text = text.replace(f"{word},", f"{word},,,")
    assert load(text).images == load(LABELS).images
    assert load(LABELS.replace("/", "\\")).images == load(LABELS).images


def test_a_point_of_low_likelihood_is_unlabelled(load):
    labels = load(
        "scorer,net,net,net,net,net,net\nbodyparts,paw_l,paw_l,paw_l,paw_r,paw_r,paw_r\n"
        "coords,x,y,likelihood,x,y,likelihood\n"
        f"v/1.png,1,2,{MIN_LIKELIHOOD},3,4,{MIN_LIKELIHOOD - 0.001}\nv/2.png,1,2,1,3,4,\n"
    )
    np.testing.assert_array_equal(labels.keypoints[0], [[1, 2, 2], [np.nan, np.nan, 0]])
    np.testing.assert_array_equal(labels.keypoints[1], [[1, 2, 2], [3, 4, 2]])


@pytest.mark.parametrize(("cells", "expected"), VISIBILITY_CASES)
def test_the_visible_column_of_lightning_pose_sets_v(load, cells, expected):
    labels = load(
        f"scorer,s,s,s,s,s\nbodyparts,paw_l,paw_l,paw_r,paw_r,paw_r\ncoords,x,y,x,y,visible\nv/1.png,5,6,{cells}\n"
    )
    np.testing.assert_array_equal(labels.keypoints[0, 1], expected)


def test_the_set_column_of_predictions_on_labelled_frames_is_ignored(load):
    text = "scorer,n,n,n,n,set\nbodyparts,paw_l,paw_l,paw_r,paw_r,\ncoords,x,y,x,y,\nv/1.png,1,2,3,4,train\n"
    assert load(text).keypoints[0, 1].tolist() == [3, 4, 2]


def test_data_people_decides_about_several_individuals(write):
    text = (
        "scorer,s,s,s,s\nindividuals,tom,tom,ann,ann\nbodyparts,paw,paw,paw,paw\ncoords,x,y,x,y\n"
        "v/1.png,1,2,,\nv/2.png,,,7,8\nv/3.png,,,,\n"
    )
    labels = load_annotations(write(text), flip_pairs=[], sigmas=[0.1])
    assert labels.keypoints[:, 0, 2].tolist() == [2, 2, 0]
    message = r"v/4\.png: 2 people are labelled \(row 8; .*data\.people: largest to train on the largest of them$"
    for points in ("1,2,7,8", "1,2,1,2"):
        path = write(text + f"v/4.png,{points}\n")
        with pytest.raises(DataError, match=message):
            load_annotations(path, flip_pairs=[], sigmas=[0.1])
    assert len(load_annotations(path, people="largest", flip_pairs=[], sigmas=[0.1])) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("labeled-data/walk/img001.png", "17"), "row 4: the image is named '17', the number of a video's frame"),
        (("coords,x,y,x,y\n", ""), "its header has no row 'coords'"),
        (("bodyparts,paw_l,paw_l,paw_r,paw_r\n", ""), "its header has no row 'bodyparts'"),
        (("coords,x,y,x,y", "coords,x,y,x,z"), "column 5 (paw_r, z): is not known"),
        (("coords,x,y,x,y", "coords,x,y,x,x"), "column 5 (paw_r, x): occurs a second time"),
        (("coords,x,y,x,y", "coords,x,y,x"), "the header row 'scorer' has 5 cells and the row 'coords' 4"),
        (("paw_r,paw_r", "paw_r,paw_q"), "'paw_r' lacks its column x or y"),
        (("10.5,20,30,40", "10.5,20,30,"), "row 4: paw_r has only one of x and y"),
        (("10.5,20,30,40", "10.5,20,30,a"), "row 4: paw_r_y: 'a' is not a number"),
        (("10.5,20,30,40", "10.5,20,30"), "row 4: 4 cells where the header has 5"),
        (("labeled-data/walk/", "../"), "row 4: image '../img001.png' is not a plain name"),
        (("labeled-data/run/img002.png,11,21,,\n", "scorer,Ann,Ann,Ann,Ann\n"), "row 5: paw_l_x: 'Ann' is not a num"),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(write, change, message):
    path = write(LABELS.replace(*change))
    with pytest.raises(DataError) as caught:
        load_annotations(path, flip_pairs=[], sigmas=[0.1, 0.1])
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_visibility_other_than_cocos_codes_is_refused(load):
    with pytest.raises(DataError, match="row 4: paw_l_visible: 3 is not 0"):
        load("scorer,s,s,s\nbodyparts,paw_l,paw_l,paw_l\ncoords,x,y,visible\nv/1.png,1,2,3\n")
