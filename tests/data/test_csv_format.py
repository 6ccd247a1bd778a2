"""The native CSV of labels."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kp_ray.data.csv_format import to_csv
from kp_ray.data.load import load_annotations
from kp_ray.errors import DataError
from kp_ray.keypoints import DACON24
from tests.helpers.labels import CELLS, CELLS_AFTER_X, HEADER, NUM_KEYPOINTS, make_labels

coordinates = st.one_of(st.none(), st.floats(-1e6, 1e6, allow_subnormal=False))
points = st.tuples(coordinates, coordinates)


@settings(max_examples=25)
@given(st.lists(st.lists(points, min_size=NUM_KEYPOINTS, max_size=NUM_KEYPOINTS), min_size=1, max_size=3))
def test_labels_read_back_exactly_as_written(tmp_path_factory, people):
    xy = np.array([[(np.nan, np.nan) if None in point else point for point in pose] for pose in people], dtype=float)
    assume(len(np.unique(xy[np.isfinite(xy)])) > 1)  # labels that are all at one place are refused
    labels = make_labels([f"walk_A-{number}.jpg" for number in range(len(xy))], xy)
    path = tmp_path_factory.mktemp("csv") / "labels.csv"
    path.write_bytes(to_csv(labels))
    loaded_labels = load_annotations(str(path))
    np.testing.assert_array_equal(loaded_labels.keypoints, labels.keypoints)
    for field in ("images", "scenes", "cameras", "frames"):
        assert getattr(loaded_labels, field) == getattr(labels, field)


def test_columns_in_any_order_and_a_bom_and_crlf_and_blank_lines_are_accepted(write):
    columns = DACON24.columns[::-1]
    cells = [str(DACON24.columns.index(column)) for column in columns]
    labels = load_annotations(
        write("\ufeff" + ",".join([*columns, "image"]) + "\r\n" + ",".join([*cells, "a.jpg"]) + "\r\n\r\n")
    )
    assert labels.skeleton == DACON24
    np.testing.assert_array_equal(labels.keypoints[0, :, :2].ravel(), np.arange(2 * NUM_KEYPOINTS))
    assert (labels.keypoints[0, :, 2] == 2).all()


def test_the_message_about_a_very_long_column_name_shows_only_its_beginning(write):
    with pytest.raises(DataError, match=r"a column's name has 2102 characters.*'\[\[\[") as caught:
        load_annotations(write("image,nose_x,nose_y," + 2100 * "[" + "_x\na.jpg,1,2,3\n"))
    assert len(str(caught.value)) < 500


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
        (HEADER.replace(",", ";") + "\n", "separated by semicolons: save the file"),
        (f"{HEADER},image\n", "'image' twice"),
        (f"{HEADER},age\n", "'age' is not known"),
        ("image\na.jpg\n", "no keypoint columns"),
        (HEADER.replace(",neck_y", "") + "\n", "'neck_y' is missing"),
        (f"{HEADER}\na.jpg,{CELLS}\nb.jpg,{CELLS},1\n", "row 3: 50 cells"),
        (f"{HEADER}\na.jpg,abc,{CELLS_AFTER_X}\n", "row 2: nose_x: 'abc' is not a number"),
        (f"{HEADER}\n\na.jpg,inf,{CELLS_AFTER_X}\n", "row 3: nose_x: 'inf' is not a number"),
        (f"{HEADER}\na.jpg,NaN,{CELLS_AFTER_X}\n", "leave the cell empty"),
        (f"{HEADER}\na.jpg,{CELLS.rpartition(',')[0]},nan\n", "leave the cell empty"),
        (f"{HEADER}\na.jpg,1_0,{CELLS_AFTER_X}\n", "'1_0' is not a number"),
        (f"{HEADER}\na.jpg,,{CELLS_AFTER_X}\n", "row 2: nose has only one of x and y"),
        (f"{HEADER}\na.jpg,{CELLS}\na.jpg,{CELLS}\n", "rows 2 and 3 label a.jpg"),
        (f"{HEADER}\n../a.jpg,{CELLS}\n", "row 2: image '../a.jpg' is not a plain name"),
        (f"{HEADER}\n,{CELLS}\n", "not a plain name"),
        (f"{HEADER}\na.jpg,{CELLS}\n".encode("utf-16"), "save it as CSV UTF-8"),
        (f"{HEADER}\n사진.jpg,{CELLS}\n".encode("cp949"), "save it as CSV UTF-8"),
    ],
)
def test_the_message_about_a_wrong_csv_names_the_file_and_the_mistake(write, content, message):
    path = write(content)
    with pytest.raises(DataError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)


# Tables that other programs write: the message names the cause, and a file corrected by its advice is read.

ROW = f"a.jpg,{CELLS}"


def join_rows(*rows: str, separator: str = ",") -> str:
    return "".join(f"{row}\n" for row in rows).replace(",", separator)


@pytest.mark.parametrize(
    ("content", "messages", "corrected_content"),
    [
        (join_rows(HEADER, ROW, separator=";"), ["semicolons", "commas"], join_rows(HEADER, ROW)),
        (join_rows(HEADER, ROW, separator="\t"), ["tabs", "commas"], join_rows(HEADER, ROW)),
        (join_rows("sep=,", HEADER, ROW), ["row 1 is Excel's line", "delete this line"], join_rows(HEADER, ROW)),
        (
            "sep=;\n" + join_rows(HEADER, ROW, separator=";"),
            ["row 1 is Excel's line 'sep=;'", "separate the columns by commas (now ';')"],
            join_rows(HEADER, ROW),
        ),
        (join_rows(HEADER, ROW, HEADER, f"b.jpg,{CELLS}"), ["row 3: repeats the header", "delete this row"],
         join_rows(HEADER, ROW, f"b.jpg,{CELLS}")),
        (join_rows("My labels", HEADER, ROW), ["row 2 is the header", "delete the rows above row 2"],
         join_rows(HEADER, ROW)),
        (join_rows("Exported,2024,", HEADER, ROW), ["row 2 is the header"], join_rows(HEADER, ROW)),
        (join_rows(f"{HEADER},", f"{ROW},"), ["the header ends in 1 separator too many", "of the other rows"],
         join_rows(HEADER, ROW)),
        (join_rows(f"{HEADER},,,", f"{ROW},,,"), ["the header ends in 3 separators too many"], join_rows(HEADER, ROW)),
        (join_rows(HEADER, f"{ROW},"), ["row 2: ends in 1 separator too many", "at the end of the rows"],
         join_rows(HEADER, ROW)),
        (join_rows(f",{HEADER}", f"0,{ROW}"), ["column 1 of the header is ''", "index=False"], join_rows(HEADER, ROW)),
        (join_rows(f"Unnamed: 0,{HEADER}", f"0,{ROW}"), ["'Unnamed: 0', an index"], join_rows(HEADER, ROW)),
        (join_rows(f"Unnamed: 0.1,{HEADER}", f"0,{ROW}"), ["'Unnamed: 0.1', an index"], join_rows(HEADER, ROW)),
        (join_rows(f"index,{HEADER}", f"0,{ROW}"), ["'index', an index"], join_rows(HEADER, ROW)),
        (join_rows(f"{HEADER},nose_x", f"{ROW},1"), ["'nose_x' twice", "delete one if both hold the same"],
         join_rows(HEADER, ROW)),
        (join_rows(f"{HEADER},nose_x.1,nose_y.1", f"{ROW},0,1"), ["a second 'nose_x'", "delete it if"],
         join_rows(HEADER, ROW)),
        (join_rows(HEADER.replace("image", "Image"), ROW), ["name the column of file names `image` (now 'Image')"],
         join_rows(HEADER, ROW)),
        (join_rows(HEADER.replace("image", "file_name"), ROW), ["(now 'file_name')"], join_rows(HEADER, ROW)),
        (join_rows(ROW), ["row 1 holds numbers, not a header: add a header row"], join_rows(HEADER, ROW)),
        (join_rows("a.jpg,15e-1,2e0", "b.jpg,1,2"), ["row 1 holds numbers, not a header: add a header row"],
         join_rows("image,nose_x,nose_y", "a.jpg,15e-1,2e0", "b.jpg,1,2")),
        (join_rows(HEADER, ROW).encode("utf-16"), ["is UTF-16 text", "save it as CSV UTF-8"], join_rows(HEADER, ROW)),
        (join_rows(HEADER, ROW).encode("utf-16-le"), ["is UTF-16 text without a byte order mark"],
         join_rows(HEADER, ROW)),
        (join_rows(HEADER, ROW).encode("utf-16-be"), ["is UTF-16 text without a byte order mark"],
         join_rows(HEADER, ROW)),
        (join_rows(HEADER, 'a.jpg,"1,5",' + CELLS_AFTER_X), ["row 2: nose_x: '1,5' has a decimal comma: write 1.5"],
         join_rows(HEADER, "a.jpg,1.5," + CELLS_AFTER_X)),
        (join_rows(HEADER, 'a.jpg,"1,000",' + CELLS_AFTER_X),
         ["row 2: nose_x: '1,000' has a comma: write 1000 if it separates thousands"],
         join_rows(HEADER, "a.jpg,1000," + CELLS_AFTER_X)),
        (join_rows(HEADER, "a.jpg,1e9," + CELLS_AFTER_X), ["row 2: nose_x: '1e9' is not a number"],
         join_rows(HEADER, "a.jpg,1e8," + CELLS_AFTER_X)),
        (join_rows(HEADER, '"' + ROW, *[ROW.replace("a.jpg", f"{n}.jpg") for n in range(999)]),
         ["row 2: not CSV: a quote is not closed"], join_rows(HEADER, ROW)),
        (join_rows(HEADER, "a.jpg," + ",".join(f"{n},5" for n in range(2 * NUM_KEYPOINTS))),
         ["97 cells where the header has 49, as if the numbers had decimal commas"],
         join_rows(HEADER, "a.jpg," + ",".join(f"{n}.5" for n in range(2 * NUM_KEYPOINTS)))),
        (join_rows(HEADER, ROW, ROW), ["rows 2 and 3 label a.jpg with the same points: delete one of these two rows"],
         join_rows(HEADER, ROW)),
    ],
)  # fmt: skip
def test_the_message_names_the_cause_and_its_advice_works(write, content, messages, corrected_content):
    path = write(content)
    with pytest.raises(DataError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(path)
    for message in messages:
        assert message in str(caught.value)
    assert load_annotations(write(corrected_content)).images[0] == "a.jpg"


def test_the_message_about_two_different_rows_of_an_image_does_not_advise_deleting_one(write):
    path = write(join_rows(HEADER, ROW, f"a.jpg,90,{CELLS_AFTER_X}"))
    with pytest.raises(
        DataError, match=r"2 people are labelled \(rows 2 and 3.*if one row corrects the other"
    ) as caught:
        load_annotations(path)
    assert "delete" not in str(caught.value)
    assert len(load_annotations(path, people="largest")) == 1


# Files of other kinds where a CSV is expected.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + b"\0" * 26 + b"labels.csv", "holds a ZIP archive, not CSV"),
        (b"PK\x03\x04" + b"\0" * 26 + b"[Content_Types].xml", "holds an Excel or Office file, not CSV"),
        (b"<?xml version='1.0'?><annotations><task/></annotations>", "holds a CVAT XML file, not CSV"),
        (b"<annotation></annotation>", "holds a Pascal VOC XML file, not CSV"),
        (b"PAR1\x15\x04", "holds a Parquet file, not CSV"),
        (b"\x89HDF\r\n\x1a\n", "holds an HDF5 file, not CSV"),
        (b"<!doctype html><title>Sign in</title>", "holds a web page, not CSV"),
        (b'{"images": []}', "holds JSON, not CSV: if it is COCO keypoints JSON, give it a name that ends in .json"),
        (b"version https://git-lfs.github.com/spec/v1\n", "holds a Git LFS pointer"),
        (b"filename,file_size,region_shape_attributes\na.jpg,1,{}\n", "looks like a CSV of the VGG Image Annotator"),
        (b"annotation_id,annotator,id\n1,2,3\n", "looks like a CSV of Label Studio"),
    ],
)
def test_a_file_of_another_kind_is_described(write, content, message):
    path = write(content)
    with pytest.raises(DataError) as caught:
        load_annotations(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)


# Image names that are not plain relative paths.


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("/home/me/images/a.jpg", "the folder"),
        ("C:\\images\\a.jpg", "the folder"),
        ("../images/a.jpg", "the folder"),
        ("b\\c.jpg", "backslashes for slashes"),
        ("/mnt/A.PNG", "two or more of case, .* suffix and folder"),
    ],
)
def test_the_message_about_a_name_that_is_no_plain_path_shows_a_similar_file(write, tmp_path, name, difference):
    for file in ("images/a.jpg", "images/b/c.jpg"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    path = write(join_rows(HEADER, f"{name},{CELLS}"))
    with pytest.raises(DataError, match=rf"row 2: image .*\(1 of 1 differ from a file only in {difference} "):
        load_annotations(path, images=str(tmp_path / "images"))
    with pytest.raises(DataError, match=r"row 2: image .*write e\.g\. a/b\.jpg$"):
        load_annotations(path)
