"""Decide whether a labelled or predicted point counts as a label, by its likelihood and its visibility."""

import math

from kp_ray.data.csv_rows import parse_number
from kp_ray.errors import DataError

MIN_LIKELIHOOD = 0.6
"""A predicted point below this likelihood is unlabelled: the default `pcutoff` of a DeepLabCut project."""
_MAX_LIKELIHOOD = 2.0
"""Largest number that is accepted as a likelihood: the peak of a heat map, which some tools write, slightly exceeds 1;
a percentage exceeds 2."""


def label_point(x: float, y: float, likelihood: float, visible: float) -> tuple[float, float, float]:
    """Return x, y, v of a point; NaN, NaN, 0 if it is unlabelled.

    A point is unlabelled if x and y are NaN, its likelihood is below MIN_LIKELIHOOD, or `visible` is 0. Otherwise v is
    `visible`, or 2 if that is NaN.

    Args:
        x, y: pixel indices, both NaN or neither.
        likelihood: 0..1, or NaN if it is unknown.
        visible: COCO's code 0, 1 or 2, or NaN if it is unknown.
    """
    if math.isnan(x) or likelihood < MIN_LIKELIHOOD or visible == 0:
        return math.nan, math.nan, 0.0
    return x, y, 2.0 if math.isnan(visible) else visible


def parse_likelihood(text: str, where: str) -> float:
    """Parse a cell as a likelihood; an empty cell gives NaN.

    Raises:
        DataError: the text is not a number, or the number is below 0 or above 2; the message begins with `where`.
    """
    likelihood = parse_number(text, where)
    if likelihood < 0 or likelihood > _MAX_LIKELIHOOD:
        raise DataError(f"{where}: {text[:40]} is not a likelihood of 0 to 1: divide percentages by 100")
    return likelihood


def parse_visible(text: str, where: str) -> float:
    """Parse a cell as COCO's code of visibility; an empty cell gives NaN.

    Raises:
        DataError: the text is not 0, 1 or 2; the message begins with `where`.
    """
    try:
        visible = parse_number(text, where)
    except DataError:
        visible = math.inf
    if not math.isnan(visible) and visible not in (0, 1, 2):
        raise DataError(f"{where}: {text[:40]} is not 0 (unlabelled), 1 (hidden) or 2 (visible): write one of these")
    return visible
