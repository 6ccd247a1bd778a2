"""Size and labels of generated data sets."""

import numpy as np
import pandas as pd

from kp_ray.keypoints import DACON24, FloatArray

SIZE = {"width": 320, "height": 180}
"""Size of the generated frames in pixels."""


def read_labels(path: str) -> tuple[list[str], FloatArray]:
    """Read a CSV in the competition's format; return N image names and keypoints (N, 24, 2)."""
    table = pd.read_csv(path)
    return list(table["image"]), np.asarray(table[DACON24.columns].to_numpy(float)).reshape(-1, len(DACON24), 2)
