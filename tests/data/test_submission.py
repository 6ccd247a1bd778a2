"""Reading sample submissions, and writing and checking submissions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kp_ray.data.submission import SampleSubmission, read_sample_submission, read_submission, write_submission
from kp_ray.errors import DataError, StorageError
from kp_ray.keypoints import DACON24, Skeleton
from tests.helpers.data import SHARED

AB = Skeleton(names=("a", "b"), flip_pairs=(), sigmas=(0.05, 0.05))
# The columns of SAMPLE are in another order than the keypoints of AB.
SAMPLE = SampleSubmission(images=("1.jpg", "2.jpg", "3.jpg"), columns=("image", "b_x", "b_y", "a_x", "a_y"))
POINTS = np.array([[[10, 20], [30, 40]], [[11, 21], [31, 41]], [[12, 22], [32, 42.5]]], dtype=float)
VALID_LINES = [
    "image,b_x,b_y,a_x,a_y",
    "1.jpg,30.0,40.0,10.0,20.0",
    "2.jpg,31.0,41.0,11.0,21.0",
    "3.jpg,32.0,42.5,12.0,22.0",
]


def write_lines(path: Path, lines: list[str]) -> str:
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def test_a_submission_has_the_samples_rows_and_columns_in_the_samples_order(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "submission.csv")
    order = [2, 0, 1]
    write_submission(path, SAMPLE, [SAMPLE.images[i] for i in order], POINTS[order], AB)
    assert Path(path).read_text().splitlines() == VALID_LINES
    np.testing.assert_array_equal(read_submission(path, SAMPLE, AB), POINTS)


def test_only_x_and_y_of_a_wider_array_are_written(tmp_path: Path) -> None:
    path = str(tmp_path / "submission.csv")
    points_with_scores = np.concatenate([POINTS, np.full((3, 2, 1), np.nan)], axis=2)
    write_submission(path, SAMPLE, SAMPLE.images, points_with_scores, AB)
    assert Path(path).read_text().splitlines() == VALID_LINES


@settings(max_examples=50)
@given(st.lists(st.floats(-50, 1000), min_size=12, max_size=12).filter(lambda values: 0 not in values))
def test_numbers_read_back_exactly_as_written(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = str(tmp_path_factory.mktemp("exact") / "submission.csv")
    points = np.array(values).reshape(3, 2, 2)
    write_submission(path, SAMPLE, SAMPLE.images, points, AB, size=(1920, 1080))
    np.testing.assert_array_equal(read_submission(path, SAMPLE, AB), points)


# With MARGIN_PX = 100, x may be from -100 to 2019, and y from -100 to 1179, in an image of 1920x1080 pixels.
FAULTS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "missing row": (lambda lines: lines[:2] + lines[3:], r"image 2\.jpg of the sample submission is missing"),
    "extra row": (lambda lines: [*lines, "4.jpg,1,1,1,1"], r"row 5: 4\.jpg is not an image of the sample"),
    "duplicate row": (lambda lines: [*lines[:3], lines[2], lines[3]], r"row 4: image 2\.jpg is already in row 3"),
    "unordered rows": (lambda lines: [lines[0], *lines[:0:-1]], r"row 2 \(3\.jpg\): expected 1\.jpg: keep"),
    "swapped columns": (
        lambda lines: ["image,a_x,a_y,b_x,b_y", *lines[1:]],
        r"row 1: column 2 is 'a_x', expected 'b_x'",
    ),
    "lost column": (lambda lines: [line.rpartition(",")[0] for line in lines], r"row 1: 4 columns, expected 5"),
    "short row": (
        lambda lines: [*lines[:3], "3.jpg,1,1,1"],
        r"row 4 \(3\.jpg\): 4 cells where the header has 5: write one cell per column",
    ),
    "text": (
        lambda lines: [*lines[:3], "3.jpg,1,left,1,1"],
        r"row 4 \(3\.jpg\): b_y is 'left', expected a finite",
    ),
    "empty cell": (lambda lines: [*lines[:3], "3.jpg,1,1,,1"], r"row 4 \(3\.jpg\): a_x is ''"),
    "NaN": (lambda lines: [*lines[:3], "3.jpg,1,1,1,nan"], r"row 4 \(3\.jpg\): a_y is 'nan'"),
    "infinity": (lambda lines: [*lines[:3], "3.jpg,-inf,1,1,1"], r"row 4 \(3\.jpg\): b_x is '-inf'"),
    "underscore": (lambda lines: [*lines[:3], "3.jpg,1_0,1,1,1"], r"row 4 \(3\.jpg\): b_x is '1_0'"),
    "all zeros": (lambda lines: [*lines[:3], "3.jpg,0,0,0,0.0"], r"row 4 \(3\.jpg\): all coordinates are zero"),
    "far left": (
        lambda lines: [*lines[:3], "3.jpg,1,1,-101,1"],
        r"row 4 \(3\.jpg\): a at \(-101, 1\) is more than",
    ),
    "far below": (lambda lines: [*lines[:3], "3.jpg,1,1180,1,1"], r"row 4 \(3\.jpg\): b at \(1, 1180\)"),
    "repeated header": (
        lambda lines: [*lines[:3], lines[0], lines[3]],
        r"row 4 \(image\): repeats the header, as if two",
    ),
    "separator at the end": (
        lambda lines: [lines[0], *(f"{line}," for line in lines[1:])],
        r"row 2 .*1 separator too many",
    ),
    "semicolons": (lambda lines: [line.replace(",", ";") for line in lines], "the columns are separated by semicolons"),
    "Excel's sep=": (lambda lines: ["sep=,", *lines], "row 1 is Excel's line 'sep=,', not a header: delete this line"),
    "index": (
        lambda lines: [f"{number},{line}".removeprefix("0") for number, line in enumerate(lines)],
        r"column 1 of the header is '', an index that pandas",
    ),
    "no rows": (lambda lines: lines[:1], r"image 1\.jpg of the sample submission is missing: .* \(2 more problems\)"),
    "empty file": (lambda lines: [], r"the file is empty"),
    "open quote": (lambda lines: [*lines[:3], '"3.jpg,1,1,1,1'], r"row \d: not valid CSV"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_submission_is_refused_with_its_path_and_the_fault(tmp_path: Path, fault: str) -> None:
    break_lines, message = FAULTS[fault]
    path = write_lines(tmp_path / "submission.csv", break_lines(VALID_LINES))
    with pytest.raises(DataError, match=message) as caught:
        read_submission(path, SAMPLE, AB)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_message_names_the_first_problem_and_counts_the_others(tmp_path: Path) -> None:
    lines = [VALID_LINES[0], "1.jpg,x,y,1,1", "2.jpg,0,0,0,0", "4.jpg,1,1,1,1"]
    with pytest.raises(DataError, match=r"row 2 \(1\.jpg\): b_x is 'x'.*\(4 more problems\)$"):
        read_submission(write_lines(tmp_path / "submission.csv", lines), SAMPLE, AB)


def test_points_may_be_outside_the_frame_up_to_the_margin_or_anywhere_if_the_size_is_unknown(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "edge.csv", [*VALID_LINES[:3], "3.jpg,-100,1179,2019,1"])
    assert read_submission(path, SAMPLE, AB)[2].tolist() == [[2019, 1], [-100, 1179]]
    with pytest.raises(DataError, match="outside the 640x360 frame"):
        read_submission(path, SAMPLE, AB, size=(640, 360))
    path = write_lines(tmp_path / "far.csv", [*VALID_LINES[:3], "3.jpg,5000,1,1,1"])
    assert read_submission(path, SAMPLE, AB, size=None)[2, 1, 0] == 5000


def test_byte_order_mark_crlf_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "submission.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*VALID_LINES, "", ""]).encode())
    np.testing.assert_array_equal(read_submission(str(path), SAMPLE, AB), POINTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda points: np.where(points == 21, np.nan, points), r"2\.jpg\): a_y is 'nan'"),
        (lambda points: points * [[[1]], [[0]], [[1]]], r"2\.jpg\): all coordinates are zero"),
        (lambda points: points * [[[1]], [[1]], [[900]]], r"3\.jpg\): b at"),
    ],
)
def test_invalid_predictions_are_not_written_and_an_earlier_file_stays(
    tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    path = tmp_path / "submission.csv"
    path.write_text("earlier")
    with pytest.raises(DataError, match=message):
        write_submission(str(path), SAMPLE, SAMPLE.images, change(POINTS), AB, size=(1920, 1080))
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_images_other_than_the_samples_and_an_array_of_another_length_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "submission.csv")
    with pytest.raises(DataError, match=r"image 3\.jpg of the sample submission is missing"):
        write_submission(path, SAMPLE, SAMPLE.images[:2], POINTS[:2], AB)
    with pytest.raises(DataError, match=r"2\.jpg is already in row"):
        write_submission(path, SAMPLE, ["1.jpg", "2.jpg", "2.jpg"], POINTS, AB)
    with pytest.raises(ValueError, match="keypoints"):
        write_submission(path, SAMPLE, SAMPLE.images, POINTS[:2], AB)
    assert not Path(path).exists()


def test_rows_of_zeros_are_written_only_if_allowed(tmp_path: Path) -> None:
    path = str(tmp_path / "submission.csv")
    points = POINTS.copy()
    points[1] = 0
    write_submission(path, SAMPLE, SAMPLE.images, points, AB, allow_zeros=True)
    np.testing.assert_array_equal(read_submission(path, SAMPLE, AB, allow_zeros=True), points)
    with pytest.raises(DataError, match="all coordinates are zero"):
        read_submission(path, SAMPLE, AB)


def test_a_sample_of_other_keypoints_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "submission.csv", VALID_LINES)
    with pytest.raises(DataError, match="differ in 26 keypoints"):
        read_submission(path, SAMPLE, DACON24)
    with pytest.raises(DataError, match="differ in 26 keypoints"):
        write_submission(path, SAMPLE, SAMPLE.images, np.ones((3, 24, 2)), DACON24)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["name,a_x,a_y", "1.jpg,0,0"], r"name the column of file names `image` \(now 'name'\)"),
        (["image,a_x,b_y", "1.jpg,0,0"], r"row 1: column 3 is 'b_y', expected 'a_y'"),
        (["image,a_y,a_x", "1.jpg,0,0"], r"row 1: column 2 is 'a_y', expected 'a_x'"),
        (["image,a_x,a_y,b_x", "1.jpg,0,0,0"], r"row 1: 4 columns, expected 5"),
        (["image", "1.jpg"], r"row 1: 1 columns, expected 3"),
        (["image;a_x;a_y", "1.jpg;0;0"], "the columns are separated by semicolons"),
        (["image,a_x,a_y,a_x,a_y", "1.jpg,0,0,0,0"], "the header has the column 'a_x' twice: delete one"),
        (["image,_x,_y", "1.jpg,0,0"], r"row 1: column 2 is '_x', expected '<name>_x'"),
        (["image,a_x,a_y"], r"lists no image"),
        (["image,a_x,a_y", "1.jpg,0,0", "1.jpg,0,0"], r"row 3: image 1\.jpg is already in row 2"),
        (["image,a_x,a_y", "1.jpg,0,0", "image,a_x,a_y"], r"row 3: repeats the header, as if two files were joined"),
        (["image,a_x,a_y", "1.jpg,0,0,,"], r"row 2: ends in 2 separators too many, unlike the header"),
        (["image,a_x,a_y", "1.jpg,0,0,7"], r"row 2: 4 cells where the header has 3"),
        (["image,a_x,a_y,", "1.jpg,0,0,"], r"the header ends in 1 separator too many"),
        (["sep=,", "image,a_x,a_y", "1.jpg,0,0"], r"row 1 is Excel's line 'sep=,', not a header"),
        ([",image,a_x,a_y", "0,1.jpg,0,0"], r"column 1 of the header is '', an index that pandas"),
        (['{"images": []}'], r"holds JSON, not CSV"),
        (["<?xml version='1.0'?>"], r"holds an XML file, not CSV"),
        (["PK\x03\x04"], r"holds a ZIP archive, not CSV"),
        (["image,a_x,a_y", ",0,0"], r"row 2: the image name is empty"),
        ([], r"the file is empty"),
    ],
)
def test_a_wrong_sample_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write_lines(tmp_path / "sample.csv", lines)
    with pytest.raises(DataError, match=message) as caught:
        read_sample_submission(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_sample_that_does_not_exist_or_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        read_sample_submission(str(tmp_path / "absent.csv"))
    (tmp_path / "sample.csv").write_text("image,a_x,a_y\n1.jpg,0,0\n", encoding="utf-16-le")
    with pytest.raises(DataError, match="UTF-16 text without a byte order mark: save it as CSV UTF-8"):
        read_sample_submission(str(tmp_path / "sample.csv"))
    (tmp_path / "sample.csv").write_bytes(b"image,a_x,a_y\n\xff\xfe,0,0\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_sample_submission(str(tmp_path / "sample.csv"))


def test_a_sample_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    sample = read_sample_submission(
        write_lines(tmp_path / "sample.csv", [VALID_LINES[0], "9.jpg,0,0,0,0", "1.jpg,0,0,0,0"])
    )
    assert sample == SampleSubmission(images=("9.jpg", "1.jpg"), columns=SAMPLE.columns)
    assert sample.names == ("b", "a")


@pytest.mark.skipif(not (SHARED / "dacon").is_dir(), reason=f"the files of the competition are not in {SHARED}")
def test_the_competition_sample_is_read_but_refused_as_a_submission_of_zeros(tmp_path: Path) -> None:
    path = str(SHARED / "dacon" / "sample_submission.csv")
    sample = read_sample_submission(path)
    assert len(sample.images) == 1600
    assert sample.names == DACON24.names
    with pytest.raises(DataError, match=r"row 2 \(.*\): all coordinates are zero.* \(1599 more problems\)$"):
        read_submission(path, sample, DACON24)
    points = np.random.default_rng(0).uniform([485, 160], [1440, 969], (1600, 24, 2))
    write_submission(str(tmp_path / "s.csv"), sample, sample.images, points, DACON24, size=(1920, 1080))
    np.testing.assert_array_equal(read_submission(str(tmp_path / "s.csv"), sample, DACON24), points)
