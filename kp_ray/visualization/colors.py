"""The colors of skeletons, members and plots."""

from kp_ray.keypoints import Skeleton

Color = tuple[int, int, int]
"""Blue, green, red, each 0-255."""
# LEFT and RIGHT are from the palette of Okabe and Ito ("Color Universal Design", 2008), which people with color vision
# deficiency can tell apart.
LEFT: Color = (0, 159, 230)
RIGHT: Color = (233, 180, 86)
MIDDLE: Color = (245, 245, 245)
TRUTH: Color = (190, 80, 225)
SERIES = ("#3b8fd4", "#e0851b", "#2a9d74", "#c8599c", "#8b78d8", "#a8862b")
"""Colors ("#rrggbb") of compared items such as members; an item has the same color in every plot and image."""


def series_color(index: int) -> Color:
    """Return the color of the compared item with this index; `SERIES` repeats after its last color."""
    red, green, blue = (int(SERIES[index % len(SERIES)][i : i + 2], 16) for i in (1, 3, 5))
    return blue, green, red


def side_colors(skeleton: Skeleton) -> list[Color]:
    """Return K colors: LEFT or RIGHT for keypoints of a flip pair, MIDDLE for the others."""
    colors = {left: LEFT for left, _ in skeleton.flip_pairs} | {right: RIGHT for _, right in skeleton.flip_pairs}
    return [colors.get(name, MIDDLE) for name in skeleton.names]


def limb_colors(skeleton: Skeleton) -> list[Color]:
    """Return the color of each limb; a limb from a middle keypoint to a side has the color of that side."""
    colors = side_colors(skeleton)
    return [colors[a] if colors[a] != MIDDLE else colors[b] for a, b in skeleton.limb_indices]
