"""The colours of skeletons, members and plots."""

Color = tuple[int, int, int]
"""Blue, green, red."""
# Okabe and Ito's palette ("Color universal design", 2008) tells apart under the common colour deficiencies.
LEFT: Color = (0, 159, 230)
RIGHT: Color = (233, 180, 86)
MIDDLE: Color = (245, 245, 245)
TRUTH: Color = (190, 80, 225)
SERIES = ("#3b8fd4", "#e0851b", "#2a9d74", "#c8599c", "#8b78d8", "#a8862b")
"""Colours of things compared, such as members: the same one has the same colour in every plot and picture."""


def series_color(index: int) -> Color:
    """The colour of `SERIES` for the thing with this index."""
    red, green, blue = (int(SERIES[index % len(SERIES)][i : i + 2], 16) for i in (1, 3, 5))
    return blue, green, red
