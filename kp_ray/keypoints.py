"""Skeletons, the pixel convention, and geometry of points and boxes.

All coordinates in kp_ray are OpenCV pixel indices: the centre of the top-left pixel is (0, 0), so an integer is a
pixel's centre and an image of width w spans [-0.5, w - 0.5). Detectron2 and COCO use continuous coordinates, in which
the same centre is (0.5, 0.5). `CONTINUOUS_OFFSET` is added exactly once, when a dataset dict is made, and subtracted
exactly once, when a model's output is read.

Visibility v follows COCO: 0 is unlabelled or outside the image, 1 labelled but hidden, 2 labelled and visible.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONTINUOUS_OFFSET = 0.5
"""Difference in pixels between a continuous coordinate and a pixel index."""

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Skeleton:
    """K keypoints in a fixed order.

    Attributes:
        names: K unique names, in the order of every array and CSV.
        flip_pairs: pairs of (left, right) names that a horizontal flip exchanges.
        sigmas: K OKS standard deviations, relative to the square root of the person's area.
        limbs: pairs of names between which a line is drawn.

    Raises:
        ValueError: names, pairs, sigmas and limbs do not fit together.
    """

    names: tuple[str, ...]
    flip_pairs: tuple[tuple[str, str], ...]
    sigmas: tuple[float, ...]
    limbs: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or not self.names:
            raise ValueError("names: keypoint names must be present and unique: name each keypoint once")
        if len(self.sigmas) != len(self.names):
            raise ValueError(
                f"sigmas: {len(self.names)} keypoints need as many sigmas (got {len(self.sigmas)}): correct them"
            )
        if not all(0 < sigma < float("inf") for sigma in self.sigmas):
            raise ValueError(f"sigmas: each must be a positive number (got {list(self.sigmas)}): correct them")
        paired_names = [name for pair in self.flip_pairs for name in pair]
        repeated_names = sorted({name for name in paired_names if paired_names.count(name) > 1})
        if repeated_names:
            raise ValueError(f"flip_pairs: {repeated_names[0]!r} is listed twice: list it once")
        for field, pairs in (("flip_pairs", self.flip_pairs), ("limbs", self.limbs)):
            unknown_names = sorted({name for pair in pairs for name in pair} - set(self.names))
            if unknown_names:
                raise ValueError(f"{field}: not the labels' keypoints (got {', '.join(unknown_names)}): correct them")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def columns(self) -> list[str]:
        """Names of the 2K coordinate columns of the native CSV: `<name>_x, <name>_y` per keypoint."""
        return [f"{name}_{axis}" for name in self.names for axis in "xy"]

    @property
    def flip_indices(self) -> list[int]:
        """K indices: `keypoints[flip_indices]` exchanges left and right."""
        partners = {a: b for pair in self.flip_pairs for a, b in (pair, pair[::-1])}
        return [self.names.index(partners.get(name, name)) for name in self.names]

    @property
    def limb_indices(self) -> list[tuple[int, int]]:
        """The limbs as pairs of keypoint indices."""
        return [(self.names.index(a), self.names.index(b)) for a, b in self.limbs]


_SIDED_PARTS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle", "palm", "instep")

# The first 17 sigmas are COCO's (cocodataset.org, keypoint evaluation); kp_ray adds seven. Five copy a COCO joint that
# is about as hard to place: neck and spine2(back) copy the shoulders, spine1(waist) the hips, the palms the wrists.
# The insteps' 0.079 is close to 0.080, the mean of COCO-WholeBody's foot points (Jin et al., ECCV 2020).
DACON24 = Skeleton(
    names=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
        "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee",
        "right_knee", "left_ankle", "right_ankle", "neck", "left_palm", "right_palm", "spine2(back)",
        "spine1(waist)", "left_instep", "right_instep",
    ),
    flip_pairs=tuple((f"left_{part}", f"right_{part}") for part in _SIDED_PARTS),
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
"""Skeleton of the competition's labels, with 24 keypoints."""


def skeleton_for(
    names: Sequence[str],
    flip_pairs: Sequence[tuple[str, str]] | None = None,
    sigmas: Sequence[float] | None = None,
) -> Skeleton:
    """Build the skeleton for the keypoint names in a file of labels.

    If `names` are the competition's 24, in any order, the skeleton has the order of `DACON24`. Other names keep their
    order. Names that are all among the 24, such as COCO's 17, take flip pairs and sigmas from `DACON24` by name.

    Args:
        names: keypoint names in the order of the file.
        flip_pairs: pairs of (left, right) names; None takes the pairs of `DACON24`.
        sigmas: one per keypoint, in the order of the returned skeleton's names; None takes the sigmas of `DACON24`.

    Raises:
        ValueError: `flip_pairs` or `sigmas` do not fit the names, or one of them is None although a name is not among
            the competition's 24.
    """
    competition_sigmas, name_set = dict(zip(DACON24.names, DACON24.sigmas, strict=True)), set(names)
    other_names = [name for name in names if name not in competition_sigmas]
    if other_names and (flip_pairs is None or sigmas is None):
        raise ValueError(
            f"header: {len(other_names)} of the {len(names)} keypoint names are not among the competition's 24 (got "
            f"{other_names[0]!r:.80}): set skeleton.flip_pairs and skeleton.sigmas in the config"
        )
    if flip_pairs is None:
        flip_pairs = _pairs_among(name_set, DACON24.flip_pairs)
        paired_names = {name for pair in flip_pairs for name in pair}
        # Refuse lone names, because a flip would label such a point as a point of the other side of the body.
        lone_names = [name for name in names if name not in paired_names and name.startswith(("left_", "right_"))]
        if lone_names:
            raise ValueError(f"header: {lone_names[0]} has no keypoint on the other side: set skeleton.flip_pairs")
    ordered_names = DACON24.names if name_set == set(DACON24.names) else tuple(names)
    return Skeleton(
        names=ordered_names,
        flip_pairs=tuple((a, b) for a, b in flip_pairs),
        sigmas=tuple(sigmas if sigmas is not None else (competition_sigmas[name] for name in ordered_names)),
        limbs=_pairs_among(name_set, DACON24.limbs),
    )


def _pairs_among(names: set[str], pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of which both names are in `names`."""
    return tuple(pair for pair in pairs if set(pair) <= names)


def is_inside_image(xy: FloatArray, width: int, height: int) -> BoolArray:
    """Return which points (..., 2), in pixel indices, are in [0, width) x [0, height); a point with NaN is outside.

    Augmentation sets v = 0 for the points outside a variant's image.
    """
    limit = np.array([width, height])
    with np.errstate(invalid="ignore"):
        return np.asarray(((xy >= 0) & (xy < limit)).all(axis=-1))


def labelled_box(keypoints: FloatArray, width: int, height: int, margin_px: float = 0.0) -> FloatArray:
    """Compute the box (4,) x1, y1, x2, y2 around the labelled points of one person.

    Args:
        keypoints: (K, 3) x, y, v in pixels; a point is labelled if its coordinates are finite.
        width, height: size of the image in pixels.
        margin_px: distance added on every side before clipping.

    Returns:
        The box in pixel indices, clipped to [0, width] x [0, height]; zeros if no point is labelled.
    """
    xy = keypoints[np.isfinite(keypoints[:, :2]).all(axis=1), :2]
    if not len(xy):
        return np.zeros(4)
    low, high = xy.min(axis=0) - margin_px, xy.max(axis=0) + margin_px
    limit = np.array([width, height], dtype=float)
    return np.concatenate([np.clip(low, 0, limit), np.clip(high, 0, limit)])


def apply_affine(affine: FloatArray, xy: FloatArray) -> FloatArray:
    """Map points (N, 2) in pixels by an affine matrix (2, 3)."""
    return np.asarray(xy @ affine[:, :2].T + affine[:, 2])
