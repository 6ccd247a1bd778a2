"""Corrections applied to labels."""

import numpy as np
import pytest

from kp_ray.data.load import load_annotations
from kp_ray.errors import DataError
from kp_ray.keypoints import DACON24
from tests.helpers.labels import CELLS, HEADER

CORRECTIONS_HEADER = "image,action,keypoint,x,y\n"


def test_images_are_dropped_and_points_moved_or_unlabelled_and_the_changes_are_listed(write):
    labels = write(f"{HEADER}\na.jpg,{CELLS}\nb.jpg,{CELLS}\nc.jpg,{CELLS}\n")
    rows = "b.jpg,drop,,,\na.jpg,point,nose,7.5,8\nc.jpg,point,neck,,\n"
    corrected_labels = load_annotations(labels, corrections=write(CORRECTIONS_HEADER + rows, "corrections.csv"))
    assert corrected_labels.images == ("a.jpg", "c.jpg")
    assert corrected_labels.rows == (0, 2)
    np.testing.assert_array_equal(corrected_labels.keypoints[0, 0], [7.5, 8, 2])
    np.testing.assert_array_equal(corrected_labels.keypoints[1, DACON24.names.index("neck")], [np.nan, np.nan, 0])
    np.testing.assert_array_equal(corrected_labels.keypoints[0, 1:], load_annotations(labels).keypoints[0, 1:])
    assert corrected_labels.corrected == ("b.jpg: dropped", "a.jpg: nose moved to 7.5, 8", "c.jpg: neck unlabelled")


def test_lines_that_begin_with_a_hash_change_nothing_and_keep_the_row_numbers_right(write):
    labels = write(f"{HEADER}\na.jpg,{CELLS}\nb.jpg,{CELLS}\n#c.jpg,{CELLS}\n")
    rows = '# 1. b.jpg: "far", score 4\n  # b.jpg,drop,,,\n"#c.jpg",drop,,,\n'
    corrected_labels = load_annotations(labels, corrections=write(CORRECTIONS_HEADER + rows, "corrections.csv"))
    assert corrected_labels.images == ("a.jpg", "b.jpg")
    path = write(CORRECTIONS_HEADER + "# a comment\nz.jpg,drop,,,\n", "corrections.csv")
    with pytest.raises(DataError, match="row 3: no labelled image"):
        load_annotations(labels, corrections=path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("z.jpg,drop,,,", "row 2: no labelled image is named 'z.jpg'"),
        ("a.jpg,delete,,,", "row 2: the action 'delete'"),
        ("a.jpg,point,tail,1,2", "row 2: no keypoint is named 'tail'"),
        ("a.jpg,point,nose,1,", "row 2: only one of x and y"),
        ("a.jpg,point,nose,1,up", "row 2: y: 'up' is not a number"),
        ("a.jpg,drop,nose,,", "row 2: drop"),
        ("a.jpg,drop,,", "row 2: 4 cells"),
        ("a.jpg,drop,,,", "drops every image"),
    ],
)
def test_a_wrong_row_is_refused_with_the_path_and_the_mistake(write, row, message):
    labels = write(f"{HEADER}\na.jpg,{CELLS}\n")
    path = write(f"{CORRECTIONS_HEADER}{row}\n", "corrections.csv")
    with pytest.raises(DataError) as caught:
        load_annotations(labels, corrections=path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)


def test_a_wrong_header_is_refused(write):
    labels, path = write(f"{HEADER}\na.jpg,{CELLS}\n"), write("image,verb\na.jpg,drop\n", "corrections.csv")
    with pytest.raises(DataError, match=r"corrections\.csv: the header is image,verb"):
        load_annotations(labels, corrections=path)
