"""The colors of skeletons, members and plots."""

from kp_ray.keypoints import Skeleton

Color = tuple[int, int, int]
"""Blue, green, red."""
# From Okabe and Ito's palette ("Color Universal Design", 2008), made for people with color vision deficiency.
LEFT: Color = (0, 159, 230)
RIGHT: Color = (233, 180, 86)
MIDDLE: Color = (245, 245, 245)
TRUTH: Color = (190, 80, 225)
SERIES = ("#3b8fd4", "#e0851b", "#2a9d74", "#c8599c", "#8b78d8", "#a8862b")
"""Colors of things that are compared, e.g. members: a thing has the same color in every plot and picture."""


def series_color(index: int) -> Color:
    """Return the color in `SERIES` of the thing with this index."""
    red, green, blue = (int(SERIES[index % len(SERIES)][i : i + 2], 16) for i in (1, 3, 5))
    return blue, green, red


def side_colors(skeleton: Skeleton) -> list[Color]:
    """Return the color of each keypoint: left, right or middle."""
    side = {name: color for pair in skeleton.flip_pairs for name, color in zip(pair, (LEFT, RIGHT), strict=True)}
    return [side.get(name, MIDDLE) for name in skeleton.names]
