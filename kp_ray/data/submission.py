"""Read, validate and write submissions: CSVs of predicted points with the rows and columns of a sample submission.

Coordinates are pixel indices. Rows are numbered as an editor shows them: the header is row 1.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from kp_ray.data.csv_header import check_header
from kp_ray.data.csv_rows import NumberedRow, check_num_cells, refuse_unexpected_content
from kp_ray.errors import DataError, shorten
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.storage import read_bytes, write_bytes

MARGIN_PX = 100.0
"""Maximum distance of a point from its image: limbs may be slightly outside, points farther outside are mistakes."""

ImageSizes = Mapping[str, tuple[int, int]] | tuple[int, int] | None
"""(width, height) in pixels by image name, or the size that all images have. None, a name that is not listed, and
(0, 0) mean an unknown size."""


@dataclass(frozen=True)
class SampleSubmission:
    """Rows and columns that a submission must have.

    Attributes:
        images: image names in the order of the rows.
        columns: the header: `image`, then `<name>_x`, `<name>_y` per keypoint.
    """

    images: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The K keypoint names, in the order of the columns."""
        return tuple(column.removesuffix("_x") for column in self.columns[1::2])


def read_sample_submission(path: str) -> SampleSubmission:
    """Read the rows and columns of a sample submission; its coordinates are ignored.

    Raises:
        DataError: the file is not a CSV or has no rows, its header is not `image` with pairs of `<name>_x`, `<name>_y`,
            or a column or an image is listed twice.
        StorageError: the file cannot be read.
    """
    columns, rows = _read_table(path)
    check_header(columns, rows[:5], path)
    problems = _header_problems(columns, _expected_header(columns))
    if not rows:
        problems.append("it lists no image: a row per image is expected")
    row_by_image: dict[str, int] = {}
    for number, cells in rows:
        image = cells[0]
        if len(cells) >= len(columns):  # a row may hold the image name alone
            check_num_cells(cells, columns, f"{path}: row {number}")
        if not image.strip():
            problems.append(f"row {number}: the image name is empty: write one, or delete the row")
        elif image in row_by_image:
            problems.append(f"row {number}: image {image} is already in row {row_by_image[image]}: drop one row")
        row_by_image.setdefault(image, number)
    if problems:
        _refuse(path, problems)
    return SampleSubmission(images=tuple(row_by_image), columns=tuple(columns))


def write_submission(
    path: str,
    sample: SampleSubmission,
    images: Sequence[str],
    keypoints: FloatArray,
    skeleton: Skeleton,
    *,
    size: ImageSizes = None,
    allow_zeros: bool = False,
) -> None:
    """Validate predictions and write them with the rows and columns of the sample submission.

    Numbers are written so that reading gives the same float64.

    Args:
        path: a local path or URL; a file there is replaced only if everything is valid.
        sample: the sample submission.
        images: the N names of the sample's images, in any order, without duplicates.
        keypoints: (N, K, 2 or more) x, y in pixels, in the skeleton's order.
        skeleton: the sample's K keypoints, in any order.
        size, allow_zeros: as in `validate_submission`.

    Raises:
        DataError: as `validate_submission`; or the keypoints of sample and skeleton differ.
        StorageError: the file cannot be written.
        ValueError: the shape of `keypoints` does not fit `images` and `skeleton`.
    """
    if keypoints.shape[:2] != (len(images), len(skeleton)) or keypoints.ndim != 3 or keypoints.shape[2] < 2:
        raise ValueError(f"keypoints {keypoints.shape} must be ({len(images)}, {len(skeleton)}, 2 or more)")
    check_same_keypoints(sample, skeleton)
    keypoint_indices = [skeleton.names.index(name) for name in sample.names]
    values = np.asarray(keypoints[:, keypoint_indices, :2], dtype=float).reshape(len(images), -1)
    position = {image: row for row, image in enumerate(images)}
    if len(position) == len(images) and set(position) == set(sample.images):
        values, images = values[[position[image] for image in sample.images]], sample.images
    rows = [[image, *map(repr, row)] for image, row in zip(images, values.tolist(), strict=True)]
    validate_submission(path, sample, list(enumerate(rows, 2)), size=size, allow_zeros=allow_zeros)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([sample.columns, *rows])
    write_bytes(path, text.getvalue().encode())


def read_submission(
    path: str,
    sample: SampleSubmission,
    skeleton: Skeleton,
    *,
    size: ImageSizes = (1920, 1080),
    allow_zeros: bool = False,
) -> FloatArray:
    """Read and validate a submission.

    Args:
        path: a local path or URL.
        sample: the sample submission.
        skeleton: the sample's K keypoints, in any order.
        size, allow_zeros: as in `validate_submission`.

    Returns:
        (N, K, 2) points in pixels, rows in the sample's order, keypoints in the skeleton's.

    Raises:
        DataError: the file is not a CSV, its header is not the sample's, or the keypoints of sample and skeleton
            differ; and as `validate_submission`.
        StorageError: the file cannot be read.
    """
    check_same_keypoints(sample, skeleton)
    columns, rows = _read_table(path)
    if problems := _header_problems(columns, sample.columns):
        check_header(columns, rows[:5], path)
        _refuse(path, problems)
    xy = validate_submission(path, sample, rows, size=size, allow_zeros=allow_zeros)
    return xy[:, [sample.names.index(name) for name in skeleton.names]]


def validate_submission(
    path: str,
    sample: SampleSubmission,
    rows: Sequence[NumberedRow],
    *,
    size: ImageSizes,
    allow_zeros: bool = False,
) -> FloatArray:
    """Validate all rows of a submission and parse their numbers.

    Args:
        path: file of the submission, for the message.
        sample: the sample submission.
        rows: row numbers and cells: the image, and 2K numbers as text.
        size: sizes of the images; the points of an image of unknown size may be anywhere.
        allow_zeros: accept rows of zeros, which mean that nobody was found. One such row in 1600 raises a typical RMSE
            from 7 px to 21 px.

    Returns:
        (N, K, 2) points in pixels, rows and keypoints in the sample's order.

    Raises:
        DataError: a row is missing, unknown, repeated or out of order; has too few or too many cells, a cell that is
            not a finite number, only zeros, or a point more than MARGIN_PX outside its image. The message names the
            row and image of the first problem and counts the others.
    """
    problems: list[str] = []
    values = np.zeros((len(rows), len(sample.columns) - 1))
    first_row: dict[str, int] = {}
    expected_images = set(sample.images)
    for i, (number, cells) in enumerate(rows):
        image, where = cells[0], f"row {number} ({cells[0]})"
        try:
            check_num_cells(cells, sample.columns, where)
        except DataError as error:
            problems.append(str(error))
            first_row.setdefault(image, number)
            continue
        if image in first_row:
            problems.append(f"row {number}: image {image} is already in row {first_row[image]}: drop one row")
        elif image not in expected_images:
            problems.append(f"row {number}: {image} is not an image of the sample submission: drop the row")
        first_row.setdefault(image, number)
        values[i] = [_parse_number(cell) for cell in cells[1:]]
        image_size = size.get(image) if isinstance(size, Mapping) else size
        problems += _row_problems(where, cells, values[i], sample, image_size, allow_zeros)
    missing_images = [image for image in sample.images if image not in first_row]
    problems += [f"image {image} of the sample submission is missing: add its row" for image in missing_images]
    if not problems:
        for (number, cells), image in zip(rows, sample.images, strict=True):
            if cells[0] != image:  # a misplaced row moves all later rows, so that only the first is reported
                problems.append(f"row {number} ({cells[0]}): expected {image}: keep the sample submission's order")
                break
    if problems:
        _refuse(path, problems)
    return values.reshape(len(rows), -1, 2)


def check_same_keypoints(sample: SampleSubmission, skeleton: Skeleton, origin: str = "data.sample_submission") -> None:
    """Refuse a submission that has other keypoint names than the skeleton; their order may differ.

    Args:
        sample: columns of the submission.
        skeleton: the keypoints of the labels.
        origin: the file, or the setting that names it, with which the message begins.

    Raises:
        DataError: the names differ; the message has the first difference.
    """
    differences = sorted(set(sample.names) ^ set(skeleton.names))
    if differences:
        raise DataError(
            f"{origin}: this submission and the labels differ in {len(differences)} keypoints, first "
            f"{differences[0]!r}: use a submission of the same data set"
        )


def _row_problems(
    where: str,
    cells: Sequence[str],
    values: FloatArray,
    sample: SampleSubmission,
    size: tuple[int, int] | None,
    allow_zeros: bool,
) -> list[str]:
    """List the problems of one row.

    Args:
        where: row number and image, for messages.
        cells: the row's cells.
        values: (2K,) numbers in the cells after the image; NaN for a cell without a number.
        sample: the sample submission.
        size: (width, height) of the image in pixels; None or (0, 0) if it is unknown.
        allow_zeros: accept a row that is all zero.
    """
    bad_columns = np.flatnonzero(~np.isfinite(values))
    if len(bad_columns):
        return [
            f"{where}: {sample.columns[j + 1]} is {cells[j + 1]!r}, expected a finite number"
            for j in bad_columns.tolist()
        ]
    if not values.any():
        problem = f"{where}: all coordinates are zero: fill in a pose, e.g. the pose in the nearest frame"
        return [] if allow_zeros else [problem]
    if size is None or not all(size):
        return []
    xy = values.reshape(-1, 2)
    limit = np.array(size) - 1
    is_outside = ((xy < -MARGIN_PX) | (xy > limit + MARGIN_PX)).any(axis=1)
    return [
        f"{where}: {sample.names[k]} at ({xy[k, 0]:g}, {xy[k, 1]:g}) is more than {MARGIN_PX:g} px outside the "
        f"{size[0]}x{size[1]} frame: correct the point"
        for k in np.flatnonzero(is_outside).tolist()
    ]


def _parse_number(cell: str) -> float:
    """Parse a cell as a number; return NaN if the cell holds no number."""
    try:
        return float(cell) if "_" not in cell else np.nan  # float() accepts 1_000, other CSV readers do not
    except ValueError:
        return np.nan


def _read_table(path: str) -> tuple[list[str], list[NumberedRow]]:
    """Read the header and the numbered rows of a CSV; blank lines are skipped."""
    content = read_bytes(path)
    refuse_unexpected_content(content, path)
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        rows = [(reader.line_num, cells) for cells in reader if cells]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: save it as CSV (UTF-8)") from error
    except csv.Error as error:
        raise DataError(f"{path}: row {reader.line_num}: not valid CSV: {error}") from error
    if not rows:
        raise DataError(f"{path}: the file is empty: a header and a row per image are expected")
    return rows[0][1], rows[1:]


def _header_problems(columns: Sequence[str], expected: Sequence[str]) -> list[str]:
    """List the differences between a header and the expected one."""
    problems = [
        f"row 1: column {i} is {column!r}, expected {name!r}"
        for i, (column, name) in enumerate(zip(columns, expected, strict=False), 1)
        if column != name
    ]
    if len(columns) != len(expected):
        problems.append(f"row 1: {len(columns)} columns, expected {len(expected)}")
    return problems


def _expected_header(columns: Sequence[str]) -> list[str]:
    """Return the header that a sample submission should have: `image`, then `<name>_x`, `<name>_y` at least once."""
    expected = ["image"]
    for column in columns[1::2] or [""]:
        name = column[:-2] if column.endswith(("_x", "_y")) and len(column) > 2 else "<name>"
        expected += [f"{name}_x", f"{name}_y"]
    return expected


def _refuse(path: str, problems: Sequence[str]) -> NoReturn:
    """Raise a `DataError` with the first problem and the number of further problems."""
    more = f" ({len(problems) - 1} more problems)" if len(problems) > 1 else ""
    raise DataError(f"{path}: {shorten(problems[0])}{more}")
