"""Weights of the members, fitted on scenes with known truth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from kp_ray.ensemble.fusion import Method, fuse, participants
from kp_ray.errors import DataError
from kp_ray.keypoints import BoolArray, FloatArray

SHRINKAGES = (0.01, 0.1, 1.0)
"""How strongly fitted weights are drawn to equal ones, relative to the members' mean squared error."""
MAX_FOLDS = 10
SURE = 0.975
"""How sure it must be that fitted weights gain: five scenes' luck was once enough for what cost 4 % on new scenes."""
_KINDS = tuple((per_keypoint, shrinkage) for per_keypoint in (False, True) for shrinkage in SHRINKAGES)


@dataclass(frozen=True)
class FittedWeights:
    """Weights from predictions of images with known truth.

    Attributes:
        weights: (M, K), each keypoint's sum is 1.
        chosen: "equal", or the kind and the shrinkage that did best on scenes held out.
        rmse_equal, rmse_fitted: in pixels, of scenes held out; equal when "equal" was chosen.
        num_scenes, num_images: that were fitted on.
    """

    weights: FloatArray
    chosen: str
    rmse_equal: float
    rmse_fitted: float
    num_scenes: int
    num_images: int


def fit_weights(
    keypoints: FloatArray,
    found: BoolArray,
    truth: FloatArray,
    scenes: Sequence[str],
    *,
    method: Method = "mean",
    person_scores: FloatArray | None = None,
    reject_sigmas: float | None = None,
) -> FittedWeights:
    """Weights of M members that make the fused points of images with known truth best, chosen on scenes held out.

    The squared error of a weighted mean is w' G w, G being the products of the members' errors. To make it smallest
    over weights that are not negative and sum to 1 is a non-negative least squares problem (`_simplex_weights`). A
    missing or rejected point stands in G as the equally weighted answer. G plus a multiple of the identity draws the
    weights to equal ones. Six kinds compete: one weight a member or one a keypoint, each drawn with
    one of `SHRINKAGES`. Each is fitted without a fold of scenes and scored by `fuse` on that fold. The best is taken,
    fitted on all scenes, if the gain over equal weights, a mean over scenes, is above 0 by Student's one-sided t test
    at `SURE`; otherwise the weights are equal.

    Args:
        keypoints, found, person_scores, method, reject_sigmas: as in `fuse`.
        truth: (N, K, 2+) x, y in pixels, NaN where unlabelled.
        scenes: (N,); a scene is never fitted on and scored at once.

    Raises:
        DataError: fewer than two scenes have a found person with a labelled point.
    """

    def fused(weights: FloatArray | None, rows: BoolArray) -> FloatArray:
        some = keypoints[:, rows], found[:, rows]
        persons = None if person_scores is None else person_scores[:, rows]
        answer, _ = fuse(*some, method=method, person_scores=persons, weights=weights, reject_sigmas=reject_sigmas)
        return answer[..., :2]

    equal = fused(None, np.ones(len(scenes), dtype=bool))
    labelled = np.asarray(np.isfinite(truth[..., :2]).all(axis=-1))
    usable = np.asarray(found.any(axis=0) & labelled.any(axis=-1))
    names = np.unique(np.array(scenes, dtype=str)[usable]).tolist()
    if len(names) < 2:
        raise DataError(
            f"predict.weights: fitted needs found people of 2 validation scenes or more, there are {len(names)}: "
            "raise split.fraction, or set predict.weights=equal"
        )
    scene_of = np.array([names.index(scene) if one else -1 for scene, one in zip(scenes, usable, strict=True)])
    kept = participants(keypoints, found, None, reject_sigmas)
    errors = np.where(kept[..., None], keypoints[..., :2], equal) - truth[..., :2]  # (M, N, K, 2)
    grams = np.stack([_gram(errors[:, scene_of == scene]) for scene in range(len(names))])  # (S, K, M, M)

    squares = np.vstack([_squares(equal, truth, scene_of, len(names)), _held_out(fused, truth, scene_of, grams)])
    best = int(squares.sum(axis=1).argmin())
    gains = squares[0] - squares[best]
    if gains.mean() <= stdtrit(len(names) - 1, SURE) * gains.std(ddof=1) / np.sqrt(len(names)):
        best = 0
    weights, chosen = np.full((keypoints.shape[0], keypoints.shape[2]), 1 / len(keypoints)), "equal"
    if best:
        per_keypoint, shrinkage = _KINDS[best - 1]
        weights = _fit(grams.sum(axis=0), per_keypoint, shrinkage)
        chosen = f"{'per keypoint' if per_keypoint else 'per member'}, shrinkage {shrinkage:g}"
    before, after = np.sqrt(squares[[0, best]].sum(axis=1) / (2 * labelled[usable].sum())).tolist()
    return FittedWeights(weights, chosen, before, after, len(names), int(usable.sum()))


def _held_out(
    fused: Callable[[FloatArray, BoolArray], FloatArray],
    truth: FloatArray,
    scene_of: npt.NDArray[np.int_],
    grams: FloatArray,
) -> FloatArray:
    """Squared errors (kinds, S) of each scene by weights fitted on the other folds' error products (S, K, M, M)."""
    squares = np.zeros((len(_KINDS), len(grams)))
    folds = np.arange(len(grams)) % MAX_FOLDS
    for fold in np.unique(folds):
        rows = np.isin(scene_of, np.flatnonzero(folds == fold))
        for i, kind in enumerate(_KINDS):
            answer = fused(_fit(grams[folds != fold].sum(axis=0), *kind), rows)
            squares[i] += _squares(answer, truth[rows], scene_of[rows], len(grams))
    return squares


def _gram(errors: FloatArray) -> FloatArray:
    """Products (K, M, M) of the members' errors (M, N, K, 2), summed over images and both coordinates; NaN counts 0."""
    known = np.nan_to_num(errors)
    return np.asarray(np.einsum("mnkc,lnkc->kml", known, known))


def _squares(answer: FloatArray, truth: FloatArray, scene_of: npt.NDArray[np.int_], num_scenes: int) -> FloatArray:
    """Sum of squared errors (S,) of each scene; rows of no scene (-1) are left out."""
    each = np.nan_to_num((answer - truth[..., :2]) ** 2).sum(axis=(1, 2))
    return np.bincount(scene_of[scene_of >= 0], weights=each[scene_of >= 0], minlength=num_scenes).astype(float)


def _fit(grams: FloatArray, per_keypoint: bool, shrinkage: float) -> FloatArray:
    """Weights (M, K) from error products (K, M, M)."""
    grams = grams if per_keypoint else np.broadcast_to(grams.sum(axis=0), grams.shape)
    return _simplex_weights(grams, shrinkage).T


def _simplex_weights(grams: FloatArray, shrinkage: float) -> FloatArray:
    """For each G (..., M, M) the w (..., M) >= 0, sum 1, that make w' (G + shrinkage * mean(diag G) * I) w smallest.

    Non-negative least squares: v >= 0 that makes v' G v / 2 - sum(v) smallest has, divided by its sum, the same
    optimality conditions. Solved by cyclic coordinate descent (Franc, Hlavac and Navara, 2005).
    """
    num = grams.shape[-1]
    scale = np.trace(grams, axis1=-2, axis2=-1)[..., None, None] / num
    matrix = np.where(scale > 0, grams / np.where(scale > 0, scale, 1), 0.0) + shrinkage * np.eye(num)
    v = np.zeros(grams.shape[:-1])
    for _ in range(10_000):
        before = v.copy()
        for m in range(num):
            slope = (matrix[..., m, :] * v).sum(axis=-1) - 1
            v[..., m] = np.maximum(0, v[..., m] - slope / matrix[..., m, m])
        if np.abs(v - before).max(initial=0) <= 1e-12 * v.max(initial=0):
            break
    return np.asarray(v / v.sum(axis=-1, keepdims=True))
