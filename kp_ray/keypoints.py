"""The skeleton: names, column order, flip pairs, limbs and OKS sigmas, and the pixel convention.

Coordinates everywhere in kp_ray are OpenCV pixel indices: the centre of the top-left pixel is (0, 0), so an
integer is a pixel's centre and a picture of width w spans [-0.5, w - 0.5). Detectron2 and COCO use continuous
coordinates, where that same centre is (0.5, 0.5). `CONTINUOUS_OFFSET` is added exactly once when a dataset dict
is made and taken off exactly once when a prediction is read.

Visibility follows COCO: 0 unlabelled or outside the picture, 1 labelled but hidden, 2 labelled and visible.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONTINUOUS_OFFSET = 0.5

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Skeleton:
    """A set of keypoints in a fixed order.

    Attributes:
        names: K unique keypoint names, in the order of every array and CSV.
        flip_pairs: (left, right) names that a horizontal mirror exchanges.
        sigmas: K per-keypoint OKS standard deviations, relative to the square root of the person's area.
        limbs: pairs of names to draw a line between.
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[str, str], ...]
    sigmas: tuple[float, ...]
    limbs: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or not self.names:
            raise ValueError("skeleton: keypoint names must be present and unique")
        if len(self.sigmas) != len(self.names):
            raise ValueError(f"skeleton: {len(self.names)} keypoints need as many sigmas, got {len(self.sigmas)}")
        if not all(0 < sigma < float("inf") for sigma in self.sigmas):
            raise ValueError("skeleton: sigmas must be positive numbers")
        paired = [name for pair in self.flip_pairs for name in pair]
        if len(set(paired)) != len(paired):
            raise ValueError("skeleton: a keypoint stands in two flip pairs")
        unknown = (set(paired) | {name for limb in self.limbs for name in limb}) - set(self.names)
        if unknown:
            raise ValueError(f"skeleton: not a keypoint of this skeleton: {', '.join(sorted(unknown))}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def columns(self) -> list[str]:
        """The 2K coordinate columns of the native CSV, `<name>_x, <name>_y` per keypoint."""
        return [f"{name}_{axis}" for name in self.names for axis in "xy"]

    @property
    def flip_indices(self) -> list[int]:
        """K indices; `keypoints[flip_indices]` exchanges left and right."""
        partner = {a: b for pair in self.flip_pairs for a, b in (pair, pair[::-1])}
        return [self.names.index(partner.get(name, name)) for name in self.names]

    @property
    def limb_indices(self) -> list[tuple[int, int]]:
        """The limbs as index pairs."""
        return [(self.names.index(a), self.names.index(b)) for a, b in self.limbs]


_SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "palm", "instep")

# The first 17 sigmas are COCO's (cocodataset.org, keypoint evaluation). The rest take the sigma of the COCO joint
# that is as hard to place: neck and upper spine a shoulder's, waist a hip's, palms a wrist's; insteps 0.079, the
# mean of COCO-WholeBody's foot points (Jin et al., ECCV 2020).
DACON24 = Skeleton(
    names=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
        "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee",
        "right_knee", "left_ankle", "right_ankle", "neck", "left_palm", "right_palm", "spine2(back)",
        "spine1(waist)", "left_instep", "right_instep",
    ),
    flip_pairs=tuple((f"left_{part}", f"right_{part}") for part in _SIDED),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087,
        0.087, 0.089, 0.089, 0.079, 0.062, 0.062, 0.079, 0.107, 0.079, 0.079,
    ),
    limbs=(
        ("nose", "left_eye"), ("nose", "right_eye"), ("left_eye", "left_ear"), ("right_eye", "right_ear"),
        ("nose", "neck"), ("neck", "left_shoulder"), ("neck", "right_shoulder"),
        ("left_shoulder", "left_elbow"), ("left_elbow", "left_wrist"), ("left_wrist", "left_palm"),
        ("right_shoulder", "right_elbow"), ("right_elbow", "right_wrist"), ("right_wrist", "right_palm"),
        ("neck", "spine2(back)"), ("spine2(back)", "spine1(waist)"),
        ("spine1(waist)", "left_hip"), ("spine1(waist)", "right_hip"),
        ("left_hip", "left_knee"), ("left_knee", "left_ankle"), ("left_ankle", "left_instep"),
        ("right_hip", "right_knee"), ("right_knee", "right_ankle"), ("right_ankle", "right_instep"),
    ),
)  # fmt: skip


def skeleton_for(
    names: Sequence[str],
    flip_pairs: Sequence[tuple[str, str]] | None = None,
    sigmas: Sequence[float] | None = None,
) -> Skeleton:
    """The skeleton of a CSV header.

    The 24 competition names give `DACON24`. Any other set keeps the header's order and needs flip pairs and
    sigmas from the config.

    Raises:
        ValueError: the names are new and `flip_pairs` or `sigmas` are not given, or they do not fit the names.
    """
    known = set(names) == set(DACON24.names)
    base = DACON24 if known else None
    if base is None and (flip_pairs is None or sigmas is None):
        raise ValueError(
            f"the header names {len(names)} keypoints that are not the competition's 24: set skeleton.flip_pairs "
            "and skeleton.sigmas in the config"
        )
    ordered = base.names if base else tuple(names)
    return Skeleton(
        names=ordered,
        flip_pairs=tuple((a, b) for a, b in flip_pairs) if flip_pairs is not None else DACON24.flip_pairs,
        sigmas=tuple(sigmas) if sigmas is not None else DACON24.sigmas,
        limbs=tuple(limb for limb in DACON24.limbs if set(limb) <= set(ordered)),
    )


def inside(xy: FloatArray, width: int, height: int) -> npt.NDArray[np.bool_]:
    """Which points (..., 2) lie in [0, width) x [0, height); NaN does not."""
    limit = np.array([width, height])
    with np.errstate(invalid="ignore"):
        return np.asarray(((xy >= 0) & (xy < limit)).all(axis=-1))


def visible_box(keypoints: FloatArray, width: int, height: int, margin_px: float = 0.0) -> FloatArray:
    """The box (4,) x1, y1, x2, y2 of the labelled points of one person, clipped to the picture.

    Args:
        keypoints: (K, 3) x, y, v in pixels; a point counts as labelled when its coordinates are finite.
        width, height: of the picture, in pixels.
        margin_px: added on every side before clipping.

    Returns:
        Zeros when no point is labelled.
    """
    xy = keypoints[np.isfinite(keypoints[:, :2]).all(axis=1), :2]
    if not len(xy):
        return np.zeros(4)
    low, high = xy.min(axis=0) - margin_px, xy.max(axis=0) + margin_px
    limit = np.array([width, height], dtype=float)
    return np.concatenate([np.clip(low, 0, limit), np.clip(high, 0, limit)])


def apply_affine(affine: FloatArray, xy: FloatArray) -> FloatArray:
    """Points (N, 2) mapped by an affine (2, 3)."""
    return np.asarray(xy @ affine[:, :2].T + affine[:, 2])
