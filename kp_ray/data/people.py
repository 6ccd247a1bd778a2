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

    A row without a labelled point, e.g. a box without keypoints, does not count as a person: it is kept only if its
    image has no labelled row. Among several labelled rows, `largest` keeps the row with the largest box, and the first
    row if boxes are equal.

    Args:
        table: rows of one person each.
        choice: "error" refuses images with several people, "largest" keeps one person of each.
        path: file of the labels, for messages.

    Returns:
        The table, and a line about the people that were left out, which is "" if nobody was.

    Raises:
        DataError: an image has several people and `choice` is "error".
    """
    counts = Counter(table.images)
    if len(counts) == len(table.images):
        return table, ""
    has_label = np.asarray((table.keypoints[..., 2] > 0).any(axis=1))
    rows_by_image: dict[str, list[int]] = defaultdict(list)
    for row, image in enumerate(table.images):
        rows_by_image[image].append(row)
    people_by_image = {image: [row for row in rows if has_label[row]] for image, rows in rows_by_image.items()}
    multi_person_images = {image: people for image, people in people_by_image.items() if len(people) > 1}
    if multi_person_images and choice == "error":
        raise DataError(f"{path}: {_describe_several_people(table, multi_person_images)}")
    kept_rows = [
        _largest_person(table, people_by_image[image]) if people_by_image[image] else rows[0]
        for image, rows in rows_by_image.items()
    ]
    num_left_out = sum(len(people) - 1 for people in multi_person_images.values())
    note = (
        f"data.people: largest: {num_left_out} people in {len(multi_person_images)} images are left out; they stay in "
        "the images, unlabelled"
    )
    return table.select(kept_rows), note if num_left_out else ""


def _describe_several_people(table: LabelTable, multi_person_images: dict[str, list[int]]) -> str:
    """Describe the first image with several people, and the fix.

    Args:
        table: rows of one person each.
        multi_person_images: image -> rows of its people, for the images with several people.
    """
    image, rows = next(iter(multi_person_images.items()))
    row, next_row = rows[:2]
    kind, place, next_place = table.place_kind, table.places[row], table.places[next_row]
    has_two_places = place != next_place  # a row of DeepLabCut can label several individuals
    places = f"{kind}s {place} and {next_place}" if has_two_places else f"{kind} {place}"
    if has_two_places and np.array_equal(table.keypoints[row], table.keypoints[next_row], equal_nan=True):
        return f"{places} label {image} with the same points: delete one of these two {kind}s"
    count = f"{len(rows)} people are labelled ({places}; images with several people: {len(multi_person_images)})"
    advice = "; if one row corrects the other, keep the correction" if kind == "row" and has_two_places else ""
    return f"{image}: {count}: set data.people: largest to train on the largest of them{advice}"


def _largest_person(table: LabelTable, rows: Sequence[int]) -> int:
    """Return the row with the largest box: the stated box if all rows state one, else the box around the points."""
    boxes = [table.stated[row].bbox_xywh if table.stated else None for row in rows]
    stated_areas = [box[2] * box[3] for box in boxes if box is not None]
    if len(stated_areas) == len(rows):
        return rows[int(np.argmax(stated_areas))]
    xy = table.keypoints[list(rows), :, :2]
    return rows[int(np.argmax(np.prod(np.nanmax(xy, axis=1) - np.nanmin(xy, axis=1), axis=1)))]
