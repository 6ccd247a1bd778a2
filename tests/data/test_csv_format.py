"""The native CSV of labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kp_ray.data.csv_format import to_csv
from kp_ray.data.load import load_annotations
from kp_ray.errors import DataError
from kp_ray.keypoints import DACON24
from tests.helpers.labels import CELLS, HEADER, NUM_KEYPOINTS, make_labels

coordinates = st.one_of(st.none(), st.floats(-1e6, 1e6, allow_subnormal=False))
points = st.tuples(coordinates, coordinates)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(points, min_size=NUM_KEYPOINTS, max_size=NUM_KEYPOINTS), min_size=1, max_size=3))
def test_labels_read_back_exactly_as_written(tmp_path_factory, people):
    xy = np.array([[(np.nan, np.nan) if None in point else point for point in pose] for pose in people], dtype=float)
    labels = make_labels([f"walk_A-{number}.jpg" for number in range(len(xy))], xy)
    path = tmp_path_factory.mktemp("csv") / "labels.csv"
    path.write_bytes(to_csv(labels))
    read = load_annotations(str(path))
    np.testing.assert_array_equal(read.keypoints, labels.keypoints)
    for field in ("images", "scenes", "cameras", "frames"):
        assert getattr(read, field) == getattr(labels, field)


def test_reordered_columns_byte_order_mark_crlf_and_blank_lines_are_accepted(write):
    columns = DACON24.columns[::-1]
    cells = [str(DACON24.columns.index(column)) for column in columns]
    labels = load_annotations(
        write("\ufeff" + ",".join([*columns, "image"]) + "\r\n" + ",".join([*cells, "a.jpg"]) + "\r\n\r\n")
    )
    assert labels.skeleton == DACON24
    np.testing.assert_array_equal(labels.keypoints[0, :, :2].ravel(), np.arange(2 * NUM_KEYPOINTS))
    assert (labels.keypoints[0, :, 2] == 2).all()


def test_a_group_column_replaces_the_scene_and_is_written_back(write):
    labels = load_annotations(write(f"group,{HEADER}\nkitchen,walk_A-1.jpg,{CELLS}\n,walk_A-2.jpg,{CELLS}\n"))
    assert labels.scenes == ("kitchen", "walk")
    assert labels.cameras == ("A", "A")
    assert load_annotations(write(to_csv(labels), "again.csv")).scenes == labels.scenes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (HEADER, "no labelled image"),
        (HEADER.replace("image", "file") + "\n", "no `image` column: name"),
        (HEADER.replace(",", ";") + "\n", "separate the columns by commas"),
        (f"{HEADER},image\n", "'image' twice"),
        (f"{HEADER},age\n", "'age' is not known"),
        ("image\na.jpg\n", "no keypoint columns"),
        (HEADER.replace(",neck_y", "") + "\n", "'neck_y' is missing"),
        (f"{HEADER}\na.jpg,{CELLS}\nb.jpg,{CELLS},1\n", "row 3: 50 cells"),
        (f"{HEADER}\na.jpg,abc,{CELLS[2:]}\n", "row 2: nose_x: 'abc' is not a number"),
        (f"{HEADER}\n\na.jpg,inf,{CELLS[2:]}\n", "row 3: nose_x: 'inf' is not a number"),
        (f"{HEADER}\na.jpg,NaN,{CELLS[2:]}\n", "leave the cell empty"),
        (f"{HEADER}\na.jpg,1_0,{CELLS[2:]}\n", "'1_0' is not a number"),
        (f"{HEADER}\na.jpg,,{CELLS[2:]}\n", "row 2: nose has only one of x and y"),
        (f"{HEADER}\na.jpg,{CELLS}\na.jpg,{CELLS}\n", "a.jpg"),
        (f"{HEADER}\n../a.jpg,{CELLS}\n", "row 2: image '../a.jpg' is not a plain name"),
        (f"{HEADER}\n,{CELLS}\n", "not a plain name"),
        (f"{HEADER}\na.jpg,{CELLS}\n".encode("utf-16"), "save it as CSV UTF-8"),
        (f"{HEADER}\n사진.jpg,{CELLS}\n".encode("cp949"), "save it as CSV UTF-8"),
    ],
)
def test_a_wrong_csv_is_refused_in_one_line_with_file_and_place(write, content, message):
    path = write(content)
    with pytest.raises(DataError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
