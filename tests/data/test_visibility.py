"""Likelihood and visibility of points in the native CSV and in DeepLabCut's CSV."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from kp_ray.data.annotations import Annotations
from kp_ray.data.load import load_annotations
from kp_ray.data.visibility import MIN_LIKELIHOOD
from kp_ray.errors import DataError
from tests.helpers.labels import UNLABELLED, VISIBILITY_CASES

Load = Callable[[str], Annotations]


@pytest.fixture
def load(write) -> Load:
    """Return a function that reads labels from text."""
    return lambda text: load_annotations(write(text), flip_pairs=[], sigmas=[0.1, 0.1])


@pytest.mark.parametrize("suffix", ["visible", "visibility", "v"])
@pytest.mark.parametrize(("cells", "expected"), VISIBILITY_CASES)
def test_a_visibility_column_of_the_native_csv_means_the_same_as_in_a_deeplabcut_csv(load, suffix, cells, expected):
    labels = load(f"image,tail_x,tail_y,paw_x,paw_y,paw_{suffix}\na.jpg,5,6,{cells}\n")
    np.testing.assert_array_equal(labels.keypoints[0], [[5, 6, 2], expected])
    dlc_labels = load(f"scorer,s,s,s,s,s\nbodyparts,tail,tail,paw,paw,paw\ncoords,x,y,x,y,visible\na.jpg,5,6,{cells}\n")
    np.testing.assert_array_equal(labels.keypoints, dlc_labels.keypoints)


def test_a_point_of_low_likelihood_is_unlabelled_in_the_native_csv(load):
    labels = load(
        "paw_likelihood,image,tail_x,tail_y,paw_x,paw_y,tail_likelihood\n"
        f"{MIN_LIKELIHOOD},a.jpg,1,2,3,4,{MIN_LIKELIHOOD - 0.001}\n,b.jpg,1,2,3,4,1.04\n0.9,c.jpg,1,2,,,0\n"
    )
    np.testing.assert_array_equal(labels.keypoints[0], [UNLABELLED, [3, 4, 2]])
    np.testing.assert_array_equal(labels.keypoints[1], [[1, 2, 2], [3, 4, 2]])
    np.testing.assert_array_equal(labels.keypoints[2], [UNLABELLED, UNLABELLED])


def test_a_keypoint_with_likelihood_and_visibility_is_labelled_only_if_both_allow_it(load):
    labels = load(
        "image,tail_x,tail_y,paw_x,paw_y,paw_likelihood,paw_v\na.jpg,5,6,1,2,0.9,1\nb.jpg,5,6,1,2,0.1,2\n"
        "c.jpg,5,6,1,2,0.9,0\n"
    )
    assert labels.keypoints[:, 1, 2].tolist() == [1, 0, 0]


def test_a_keypoint_may_have_a_name_like_a_visibility_column(load):
    labels = load("image,paw_x,paw_y,paw_v_x,paw_v_y\na.jpg,1,2,3,4\n")
    assert labels.skeleton.names == ("paw", "paw_v")
    assert (labels.keypoints[..., 2] == 2).all()


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        ("paw_v", "3", "row 2: paw_v: 3 is not 0 (unlabelled), 1 (hidden) or 2 (visible): write one of these"),
        ("paw_visible", "True", "row 2: paw_visible: True is not 0 (unlabelled)"),
        ("paw_visible", "0.5", "row 2: paw_visible: 0.5 is not 0 (unlabelled)"),
        ("paw_likelihood", "high", "row 2: paw_likelihood: 'high' is not a number"),
        ("paw_likelihood", "97", "row 2: paw_likelihood: 97 is not a likelihood of 0 to 1: divide percentages by 100"),
        ("paw_likelihood", "-0.1", "row 2: paw_likelihood: -0.1 is not a likelihood"),
        ("paw_v,paw_visible", "1,1", "the columns paw_visible and paw_v state the visibility of one keypoint: keep"),
        ("nose_v", "1", "the column 'nose_v' is not known"),
        ("paw_score", "1", "the column 'paw_score' is not known: delete it; the columns of this format are"),
        ("visible", "1", "the column 'visible' is not known"),
    ],
)
def test_a_wrong_or_unknown_column_is_refused_with_its_place(load, columns, cells, message):
    with pytest.raises(DataError, match=re.escape(message)):
        load(f"image,tail_x,tail_y,paw_x,paw_y,{columns}\na.jpg,5,6,1,2,{cells}\n")


def test_a_percentage_in_a_deeplabcut_csv_is_refused_too(load):
    with pytest.raises(DataError, match=r"row 4: paw_likelihood: 97 is not a likelihood of 0 to 1"):
        load("scorer,s,s,s\nbodyparts,paw,paw,paw\ncoords,x,y,likelihood\nv/1.png,1,2,97\n")
