"""The submission CSV: the form it has to fill, its writer, and the strict validator both reader and writer use.

Coordinates are OpenCV pixel indices. Rows are numbered as an editor shows them: the header is row 1.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from kp_ray.errors import DataError
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.storage import read_bytes, write_bytes

MARGIN_PX = 100.0
"""How far outside the frame a point may lie: a limb leaves the picture a little, a wrong unit or frame by more."""
Rows = list[tuple[int, list[str]]]


@dataclass(frozen=True)
class SampleSubmission:
    """What a submission must look like, from `sample_submission.csv`.

    Attributes:
        images: the names, in the order of the rows.
        columns: the whole header: `image`, then `<name>_x, <name>_y` per keypoint.
    """

    images: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The K keypoint names, in the order of the columns."""
        return tuple(column.removesuffix("_x") for column in self.columns[1::2])


def read_sample_submission(path: str) -> SampleSubmission:
    """The form of a sample submission; its coordinates are not looked at.

    Raises:
        DataError: the file is missing or no CSV, has no rows, its header is not `image` and pairs of `<name>_x`,
            `<name>_y`, or a column or an image stands in it twice.
    """
    columns, rows = _read_table(path)
    problems = _header_problems(columns, _pairs(columns))
    problems += [f"row 1: column {name!r} stands twice" for i, name in enumerate(columns) if name in columns[:i]]
    if not rows:
        problems.append("there are no images in it")
    seen: dict[str, int] = {}
    for number, cells in rows:
        image = cells[0]
        if not image.strip():
            problems.append(f"row {number}: the image name is empty")
        elif image in seen:
            problems.append(f"row {number} ({image}): stands already in row {seen[image]}: drop one")
        seen.setdefault(image, number)
    if problems:
        _refuse(path, problems)
    return SampleSubmission(images=tuple(seen), columns=tuple(columns))


def write_submission(
    path: str,
    form: SampleSubmission,
    images: Sequence[str],
    keypoints: FloatArray,
    skeleton: Skeleton,
    *,
    size: Mapping[str, tuple[int, int]] | tuple[int, int] | None = None,
    allow_zeros: bool = False,
) -> None:
    """Check the predictions, then write them whole, rows and columns in the form's order.

    Numbers are written so that reading gives the same float64 again.

    Args:
        path: local or remote; it does not exist, or stays as it was, until everything is in order.
        images: (N,) names, each of the form's once, in any order.
        keypoints: (N, K, 2+) x, y in pixels, in the skeleton's order.
        size, allow_zeros: as in `validate_submission`.

    Raises:
        DataError: see `validate_submission`; or the form and the skeleton differ in their keypoints.
        ValueError: `keypoints` has another shape.
    """
    if keypoints.shape[:2] != (len(images), len(skeleton)) or keypoints.ndim != 3 or keypoints.shape[2] < 2:
        raise ValueError(f"keypoints {keypoints.shape} must be ({len(images)}, {len(skeleton)}, 2 or more)")
    check_same_keypoints(form, skeleton)
    columns = [skeleton.names.index(name) for name in form.names]
    values = np.asarray(keypoints[:, columns, :2], dtype=float).reshape(len(images), -1)
    position = {image: row for row, image in enumerate(images)}
    if len(position) == len(images) and set(position) == set(form.images):
        values, images = values[[position[image] for image in form.images]], form.images
    rows = [[image, *map(repr, row)] for image, row in zip(images, values.tolist(), strict=True)]
    validate_submission(path, form, list(enumerate(rows, 2)), size=size, allow_zeros=allow_zeros)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([form.columns, *rows])
    write_bytes(path, text.getvalue().encode())


def read_submission(
    path: str,
    form: SampleSubmission,
    skeleton: Skeleton,
    *,
    size: Mapping[str, tuple[int, int]] | tuple[int, int] | None = (1920, 1080),
    allow_zeros: bool = False,
) -> FloatArray:
    """The points (N, K, 2) of a submission in pixels, rows in the form's order, keypoints in the skeleton's.

    Args:
        size, allow_zeros: as in `validate_submission`.

    Raises:
        DataError: the file is missing or no CSV, its header is not the form's, see `validate_submission`; or the form
            and the skeleton differ in their keypoints.
    """
    check_same_keypoints(form, skeleton)
    columns, rows = _read_table(path)
    if problems := _header_problems(columns, form.columns):
        _refuse(path, problems)
    xy = validate_submission(path, form, rows, size=size, allow_zeros=allow_zeros)
    return xy[:, [form.names.index(name) for name in skeleton.names]]


def validate_submission(
    path: str,
    form: SampleSubmission,
    rows: Sequence[tuple[int, Sequence[str]]],
    *,
    size: Mapping[str, tuple[int, int]] | tuple[int, int] | None,
    allow_zeros: bool = False,
) -> FloatArray:
    """The points (N, K, 2) of a submission's rows, in the form's order of columns, if all of it is in order.

    Args:
        path: named in the message.
        rows: (row number in the file, cells: image and 2K numbers as text).
        size: width and height in pixels of the frames, or of each image; where there is none, or (0, 0), the points may
            lie anywhere.
        allow_zeros: let rows pass that are all zero. They stand for "nobody found" and ruin the error: one in 1600 at
            a typical pose lifts an RMSE of 7 px to 21.

    Raises:
        DataError: a row is missing, superfluous, double or out of order, has too few or too many cells, a cell that
            is no finite number, only zeros, or a point too far outside the frame. The line names the file and the
            first problem's row and image, and counts the others.
    """
    problems, values = [], np.zeros((len(rows), len(form.columns) - 1))
    first_row: dict[str, int] = {}
    wanted = set(form.images)
    for i, (number, cells) in enumerate(rows):
        image, where = cells[0], f"row {number} ({cells[0]})"
        if image in first_row:
            problems.append(f"{where}: stands already in row {first_row[image]}: drop one")
        elif image not in wanted:
            problems.append(f"{where}: is not an image of the form: drop it")
        first_row.setdefault(image, number)
        if len(cells) != len(form.columns):
            problems.append(f"{where}: {len(cells)} cells, expected {len(form.columns)}")
            continue
        values[i] = [_number(cell) for cell in cells[1:]]
        frame = size.get(image) if isinstance(size, Mapping) else size
        problems += _row_problems(where, cells, values[i], form, frame, allow_zeros)
    problems += [
        f"image {image} of the form is missing: add its row" for image in form.images if image not in first_row
    ]
    if not problems:
        ordered = zip(rows, form.images, strict=True)
        problems += [
            f"row {number} ({cells[0]}): expected {image} here: keep the form's order"
            for (number, cells), image in ordered
            if cells[0] != image
        ][:1]  # one row out of place displaces all that follow
    if problems:
        _refuse(path, problems)
    return values.reshape(len(rows), -1, 2)


def _row_problems(
    where: str,
    cells: Sequence[str],
    values: FloatArray,
    form: SampleSubmission,
    size: tuple[int, int] | None,
    allow_zeros: bool,
) -> list[str]:
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        return [f"{where}: {form.columns[j + 1]} is {cells[j + 1]!r}, expected a finite number" for j in wrong.tolist()]
    if not values.any():
        return [] if allow_zeros else [f"{where}: all coordinates are zero: fill in a person, e.g. of a near frame"]
    if size is None or not all(size):
        return []
    xy = values.reshape(-1, 2)
    limit = np.array(size) - 1
    outside = ((xy < -MARGIN_PX) | (xy > limit + MARGIN_PX)).any(axis=1)
    return [
        f"{where}: {form.names[k]} at ({xy[k, 0]:g}, {xy[k, 1]:g}) lies more than {MARGIN_PX:g} px outside the "
        f"{size[0]}x{size[1]} frame"
        for k in np.flatnonzero(outside).tolist()
    ]


def _number(cell: str) -> float:
    """The number in a cell; NaN if there is none (also for Python's 1_000)."""
    try:
        return float(cell) if "_" not in cell else np.nan
    except ValueError:
        return np.nan


def _read_table(path: str) -> tuple[list[str], Rows]:
    """The header and the numbered rows of a CSV; blank lines are passed over."""
    try:
        reader = csv.reader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline=""), strict=True)
        rows = [(reader.line_num, cells) for cells in reader if cells]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: save it as CSV (UTF-8)") from error
    except csv.Error as error:
        raise DataError(f"{path}: row {reader.line_num}: not valid CSV: {error}") from error
    if not rows:
        raise DataError(f"{path}: the file is empty: a header and one row an image are expected")
    return rows[0][1], rows[1:]


def _header_problems(columns: Sequence[str], wanted: Sequence[str]) -> list[str]:
    problems = [
        f"row 1: column {i} is {column!r}, expected {name!r}"
        for i, (column, name) in enumerate(zip(columns, wanted, strict=False), 1)
        if column != name
    ]
    if len(columns) != len(wanted):
        problems.append(f"row 1: {len(columns)} columns, expected {len(wanted)}")
    return problems


def _pairs(columns: Sequence[str]) -> list[str]:
    """The header these columns should be: `image`, then at least one pair of `<name>_x`, `<name>_y`."""
    expected = ["image"]
    for column in columns[1::2] or [""]:
        name = column[:-2] if column.endswith(("_x", "_y")) and len(column) > 2 else "<name>"
        expected += [f"{name}_x", f"{name}_y"]
    return expected


def check_same_keypoints(form: SampleSubmission, skeleton: Skeleton) -> None:
    """Refuse a form of other keypoints than the skeleton's; their order may differ.

    Raises:
        DataError: naming the first keypoint that only one of them has.
    """
    different = sorted(set(form.names) ^ set(skeleton.names))
    if different:
        raise DataError(
            f"the submission form and the labels differ in {len(different)} keypoints, first {different[0]!r}: "
            "use the form of the same data set"
        )


def _refuse(path: str, problems: Sequence[str]) -> NoReturn:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise DataError(f"{path}: {problems[0]}{more}")
