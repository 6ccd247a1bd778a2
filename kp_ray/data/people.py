"""Choose one person per image where the labels hold several."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from kp_ray.data.annotations import LabelTable
from kp_ray.errors import DataError

PeopleChoice = Literal["error", "largest"]


def select_people(table: LabelTable, choice: PeopleChoice, path: str) -> tuple[LabelTable, str]:
    """Return a table with one row per image, in the order in which the images first appear.

    Rows without a labelled point, e.g. boxes without keypoints, are no people: they give way to a labelled row. Among
    several labelled rows `largest` takes the one with the largest box, the first of equal ones.

    Args:
        table: rows of one person each.
        choice: "error" refuses images with several people.
        path: file of the labels, for messages.

    Returns:
        The table, and a line about the people that were left out; "" for none.

    Raises:
        DataError: an image has several people and `choice` is "error".
    """
    counts = Counter(table.images)
    if len(counts) == len(table.images):
        return table, ""
    labelled = np.asarray((table.keypoints[..., 2] > 0).any(axis=1))
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, image in enumerate(table.images):
        rows_of[image].append(row)
    people_of = {image: [row for row in rows if labelled[row]] for image, rows in rows_of.items()}
    crowded = {image: rows for image, rows in people_of.items() if len(rows) > 1}
    if crowded and choice == "error":
        raise DataError(f"{path}: {_describe_crowded(table, crowded)}")
    selected = [_largest(table, people_of[image]) if people_of[image] else rows[0] for image, rows in rows_of.items()]
    left_out = sum(len(rows) - 1 for rows in crowded.values())
    note = (
        f"data.people: largest: {left_out} people in {len(crowded)} images are left out; they stay in the images "
        "without labels"
    )
    return table.select(selected), note if left_out else ""


def _describe_crowded(table: LabelTable, crowded: dict[str, list[int]]) -> str:
    """Describe the first image that has several labelled rows, and what to do."""
    image, rows = next(iter(crowded.items()))
    kind, (first, second) = table.place_kind, rows[:2]
    places = f"{kind}s {table.places[first]} and {table.places[second]}"
    if np.array_equal(table.keypoints[first], table.keypoints[second], equal_nan=True):
        return f"{places} label {image} with the same points: delete one of these two {kind}s"
    count = f"{len(rows)} people are labelled ({places}; {len(crowded)} images have several)"
    correction = "; if one row corrects the other, keep that row" if kind == "row" else ""
    return f"{image}: {count}: set data.people: largest to train on the largest of them{correction}"


def _largest(table: LabelTable, rows: Sequence[int]) -> int:
    """Return the row whose box has the largest area: the boxes that the file states, or else those of the points."""
    boxes = [table.stated[row].bbox_xywh if table.stated else None for row in rows]
    stated_areas = [box[2] * box[3] for box in boxes if box is not None]
    if len(stated_areas) == len(rows):
        return rows[int(np.argmax(stated_areas))]
    xy = table.keypoints[list(rows), :, :2]
    return rows[int(np.argmax(np.prod(np.nanmax(xy, axis=1) - np.nanmin(xy, axis=1), axis=1)))]
