"""Several models' predictions -> one: choose the person, mask who found nobody, combine, fill, smooth.

Coordinates are OpenCV pixel indices. Fusing does not depend on the order of the members, to the last bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from kp_ray.config import InputError
from kp_ray.keypoints import FloatArray

BoolArray = npt.NDArray[np.bool_]

SCALE_FLOOR_PX = 2.0
"""Smallest robust sigma: members that differ by a few pixels agree, however closely the others coincide."""
TRACK_FRAMES = 8
"""How many of a clip's nearest frames say where its person is."""
SHRINKAGES = (0.01, 0.1, 1.0)
"""How strongly fitted weights are drawn to equal ones, relative to the members' mean squared error."""
MAX_FOLDS = 10
SURE = 0.975
"""How sure it must be that fitted weights gain: five scenes' luck was once enough for what cost 4 % on new scenes."""
_KINDS = tuple((per_keypoint, shrinkage) for per_keypoint in (False, True) for shrinkage in SHRINKAGES)
_MAD_TO_SIGMA = 1.4826  # of a normal distribution
_REACH_SIGMAS = 3.0  # beyond it a Gaussian's weight is below 0.012

Method = Literal["mean", "median", "score"]


@dataclass(frozen=True)
class Fusion:
    """What `fuse_clips` made of N images.

    Attributes:
        keypoints: (N, K, 3) x, y, score in pixels; finite everywhere.
        found: (N,) whether some member was sure of a person.
        how: where the points of each row came from: "" (members that were sure), "low score" (members that were not),
            "frame <number>" and "mean pose" (see `fill_missing`), or "zeros".
        rejected: (M,) how many points of each member were dropped as outliers.
    """

    keypoints: FloatArray
    found: BoolArray
    how: list[str]
    rejected: list[int]


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


def fuse_clips(
    keypoints: FloatArray,
    scores: FloatArray,
    scenes: Sequence[str],
    cameras: Sequence[str],
    frames: Sequence[int | None],
    *,
    thresholds: tuple[float, float],
    method: Method = "mean",
    weights: FloatArray | None = None,
    reject_sigmas: float | None = None,
    missing: Literal["fill", "zeros"] = "fill",
    mean_pose: FloatArray | None = None,
    smooth_frames: float | None = None,
) -> Fusion:
    """One prediction an image of M members' for N images, whatever it takes: the fallbacks are told in `how`.

    Members sure of a person are fused; where none is, those that are not; where nobody found anyone, `missing` decides
    between `fill_missing` and zeros. Then `smooth_clips`.

    Args:
        keypoints: (M, N, K, 3) x, y, score in pixels; anything where the person's score is 0.
        scores: (M, N) of the persons, 0 where a member found nobody.
        scenes, cameras, frames: (N,) of the images.
        thresholds: of the person's score: sure, and unsure.
        method, weights, reject_sigmas: as in `fuse`; the persons' scores go into method "score".
        mean_pose: (K, 2), as in `fill_missing`.
        smooth_frames: None does not smooth.

    Raises:
        InputError: as `fuse` and `fill_missing`.
    """
    found, sure = trusted(scores, thresholds)
    points, seen = fuse(
        keypoints, found, method=method, person_scores=scores, weights=weights, reject_sigmas=reject_sigmas
    )
    before, after = (_participants(keypoints, found, weights, sigmas) for sigmas in (None, reject_sigmas))
    rejected = (before & ~after).sum(axis=(1, 2))
    if missing == "zeros":
        points, how = np.where(seen[:, None, None], points, 0.0), ["" if one else "zeros" for one in seen.tolist()]
    else:
        points, how = fill_missing(points, seen, scenes, cameras, frames, mean_pose=mean_pose)
    if smooth_frames is not None:
        points = smooth_clips(points, seen, scenes, cameras, frames, smooth_frames)
    how = ["low score" if low else note for low, note in zip((seen & ~sure).tolist(), how, strict=True)]
    return Fusion(points, sure, how, rejected.tolist())


def trusted(scores: FloatArray, thresholds: tuple[float, float]) -> tuple[BoolArray, BoolArray]:
    """Whose person counts (M, N): of the members that are sure, or, where none is, of those that are not.

    Args:
        scores: (M, N) of the persons, 0 where a member found nobody.
        thresholds: of the score: sure, and unsure.

    Returns:
        That, and in which images (N,) some member is sure.
    """
    sure, unsure = ((scores >= threshold) & (scores > 0) for threshold in thresholds)
    some_sure = np.asarray(sure.any(axis=0))
    return np.where(some_sure, sure, sure | unsure), some_sure


def fuse(
    keypoints: FloatArray,
    found: BoolArray,
    *,
    method: Method = "mean",
    person_scores: FloatArray | None = None,
    weights: FloatArray | None = None,
    reject_sigmas: float | None = None,
) -> tuple[FloatArray, BoolArray]:
    """One prediction an image out of those of M members.

    A member that found nobody in an image takes no part in it. Of the others, those farther from the members' median
    than `reject_sigmas` robust sigmas are dropped, point by point (see `inliers`). The rest is combined column by
    column, the scores like the coordinates.

    Args:
        keypoints: (M, N, K, 3) x, y, score in pixels; anything, also NaN, where `found` is False.
        found: (M, N) whether a member found a person in an image.
        method: weighted mean, weighted median, or mean weighted by keypoint score * person score as well.
        person_scores: (M, N) not negative, for method "score"; None: 1.
        weights: (M,) or (M, K), not negative; None: equal. A member with weight 0 counts only where none with
            weight found someone.
        reject_sigmas: None keeps every point.

    Returns:
        keypoints (N, K, 3), NaN where no member found anyone, and found (N,). Where one member alone found someone,
        its answer unchanged.

    Raises:
        InputError: a found person has a number that is not finite, or a score or weight is negative or not finite.
        ValueError: shapes do not fit, or the method is unknown.
    """
    if method not in ("mean", "median", "score"):
        raise ValueError(f"method {method!r} is not one of mean, median, score")
    keypoints, found = np.asarray(keypoints, dtype=float), np.asarray(found, dtype=bool)
    _check_members(keypoints, found)
    shares = np.broadcast_to(_member_weights(weights, keypoints), keypoints.shape[:3])
    taking_part = _participants(keypoints, found, weights, reject_sigmas)
    if method == "score":
        persons = np.ones(found.shape) if person_scores is None else np.asarray(person_scores, dtype=float)
        scores = np.where(found[..., None], persons[..., None] * keypoints[..., 2], 0.0)
        _check_weights("scores", scores)
        shares = shares * scores
    shares = np.where(taking_part, shares, 0.0)
    # Members whose weights are all zero count equally.
    shares = np.where(shares.any(axis=0), shares, taking_part)

    combine = _weighted_median if method == "median" else _weighted_mean
    found_by_any = np.asarray(found.any(axis=0))
    fused = np.full(keypoints.shape[1:], np.nan)
    fused[found_by_any] = combine(
        np.where(taking_part[..., None], keypoints, np.inf)[:, found_by_any], shares[:, found_by_any, :, None]
    )
    return fused, found_by_any


def inliers(points: FloatArray, reject_sigmas: float) -> BoolArray:
    """Which members' points (M, N, K) stand near enough to the others'.

    The distance of each point from the members' per-coordinate median is compared with a robust sigma: 1.4826 times
    the median of those distances (the MAD of a normal distribution), at least `SCALE_FLOOR_PX`. The nearer half is
    always kept. With fewer than three members there is no majority, so nothing is rejected.

    Args:
        points: (M, N, K, 2+) x, y in pixels; NaN takes no part and is no inlier.
        reject_sigmas: positive.
    """
    if not reject_sigmas > 0:
        raise ValueError(f"reject_sigmas must be positive, got {reject_sigmas}")
    present = np.isfinite(points[..., 0])
    xy = points[..., :2]
    centre = _weighted_median(np.where(present[..., None], xy, np.inf), present[..., None])
    distances = np.linalg.norm(xy - centre, axis=-1)
    typical = _weighted_median(np.where(present, distances, np.inf), present)
    limit = np.maximum(reject_sigmas * np.maximum(_MAD_TO_SIGMA * typical, SCALE_FLOOR_PX), typical)
    return np.asarray(present & ((distances <= limit) | (present.sum(axis=0) < 3)))


def _numbers(frames: Sequence[int | None]) -> FloatArray:
    """Frame numbers, NaN for an image without one."""
    numbers = np.array(frames, dtype=float)
    numbers[numbers < 0] = np.nan
    return numbers


def fill_missing(
    keypoints: FloatArray,
    found: BoolArray,
    scenes: Sequence[str],
    cameras: Sequence[str],
    frames: Sequence[int | None],
    *,
    mean_pose: FloatArray | None = None,
) -> tuple[FloatArray, list[str]]:
    """Give every image in which nobody was found the most plausible keypoints, with score 0.

    From the nearest found frame of the same clip (scene and camera; of two equally near, the earlier); if the clip has
    none, the mean of all found people; if there are none at all, `mean_pose`.

    Args:
        keypoints: (N, K, 3) x, y, score in pixels; anything where `found` is False.
        found: (N,).
        scenes, cameras, frames: (N,) of the images; a frame None or -1 has no neighbours.
        mean_pose: (K, 2) in pixels.

    Returns:
        keypoints (N, K, 3), a copy; and for each row where its points came from: "" (found), "frame <number>",
        "mean pose".

    Raises:
        InputError: nobody was found in any image and there is no `mean_pose`, or what to fill from is not finite.
        ValueError: lengths differ.
    """
    found = np.asarray(found, dtype=bool)
    if not len(keypoints) == len(found) == len(scenes) == len(cameras) == len(frames):
        raise ValueError("keypoints, found, scenes, cameras and frames must be equally long")
    filled, notes = np.array(keypoints, dtype=float), [""] * len(found)
    if not np.isfinite(filled[found]).all():
        raise InputError("predictions: a person that was found has a number that is not finite: predict again")
    numbers = _numbers(frames)
    # By frame number, so that of two equally near rows argmin takes the earlier.
    candidates = _rows_by_clip(scenes, cameras, numbers, found)
    pose = None if found.all() else _mean_pose(filled[found], mean_pose)
    for row in np.flatnonzero(~found).tolist():
        neighbours = candidates.get((scenes[row], cameras[row]))
        if neighbours is not None and np.isfinite(numbers[row]):
            nearest = neighbours[np.abs(numbers[neighbours] - numbers[row]).argmin()]
            filled[row], notes[row] = filled[nearest], f"frame {int(numbers[nearest])}"
        else:
            filled[row, :, :2], notes[row] = pose, "mean pose"
        filled[row, :, 2] = 0
    return filled, notes


def smooth_clips(
    keypoints: FloatArray,
    found: BoolArray,
    scenes: Sequence[str],
    cameras: Sequence[str],
    frames: Sequence[int | None],
    sigma_frames: float,
) -> FloatArray:
    """Every found person's points moved to a line through those of the clip's near frames.

    Each coordinate is fitted by local linear regression over the frame number, weighted by a Gaussian: a straight
    motion stays as it is, also at a clip's ends, where a plain average would drag behind. Frames where nobody was found
    take no part and stay as they are; so do images without a frame number.

    Args:
        keypoints: (N, K, 3) x, y, score in pixels, finite; the scores are not smoothed.
        found: (N,).
        scenes, cameras, frames: (N,) of the images.
        sigma_frames: of the Gaussian, in frame numbers; three sigmas away its reach ends.

    Returns:
        (N, K, 3), a copy.
    """
    if not sigma_frames > 0:
        raise ValueError(f"sigma_frames must be positive, got {sigma_frames}")
    smoothed = np.array(keypoints, dtype=float)
    numbers = _numbers(frames)
    for rows in _rows_by_clip(scenes, cameras, numbers, found).values():
        for row in rows.tolist():
            near = rows[np.abs(numbers[rows] - numbers[row]) <= _REACH_SIGMAS * sigma_frames]
            offsets = numbers[near] - numbers[row]
            shares = np.exp(-0.5 * (offsets / sigma_frames) ** 2)
            centre = (shares * offsets).sum() / shares.sum()
            spread = (shares * (offsets - centre) ** 2).sum()
            # The line's value at this frame, as weights of the near frames.
            tilt = -centre * (offsets - centre) / spread if spread > 0 else np.zeros(len(near))
            smoothed[row, :, :2] = np.tensordot(shares * (1 / shares.sum() + tilt), keypoints[near, :, :2], axes=1)
    return smoothed


def choose_people(
    rows: Sequence[int],
    boxes: FloatArray,
    scores: FloatArray,
    scenes: Sequence[str],
    cameras: Sequence[str],
    frames: Sequence[int | None],
    *,
    asked: Sequence[int],
    rule: Literal["score", "largest", "track"],
    threshold: float,
) -> tuple[list[int], int, int]:
    """The one person of each answer, an answer being what one member said of one image.

    People below `threshold` are looked at only in an answer that has none above it. A clip's track at an image is the
    median of the best-scoring boxes, of all members, in its `TRACK_FRAMES` nearest other frames. Closeness is
    exp(-d / s): d the mean distance of the box's two corners from the track's, s the longer side of the track's box.

    Args:
        rows: (P,) image of each person, an index into `scenes`.
        boxes: (P, 4) x1, y1, x2, y2 in pixels.
        scores: (P,).
        scenes, cameras, frames: (N,) of the images.
        asked: (P,) the answer each person belongs to, any numbers.
        rule: best score; largest box; or best score times closeness (best score where a clip has no other frame).

    Returns:
        The chosen persons in rising order, one an answer; in how many answers there were several to choose from; and
        in how many of those the choice was another than the best score.
    """
    answers: dict[int, list[int]] = {}
    for person, answer in enumerate(asked):
        answers.setdefault(answer, []).append(person)
    best = {answer: max(people, key=lambda one: (scores[one], -one)) for answer, people in answers.items()}
    numbers = _numbers(frames)
    boxes_of: dict[int, list[FloatArray]] = {}
    for person in best.values():
        boxes_of.setdefault(rows[person], []).append(boxes[person])
    seen = np.zeros(len(scenes), dtype=bool)
    seen[list(boxes_of)] = True
    clips = _rows_by_clip(scenes, cameras, numbers, seen)
    chosen, several, changed = [], 0, 0
    for answer, people in answers.items():
        choice = best[answer]
        sure = [one for one in people if scores[one] >= threshold] or people
        if len(sure) > 1:
            several += 1
            image = rows[choice]
            track = None
            if rule == "track":
                track = _track(clips.get((scenes[image], cameras[image])), image, numbers, boxes_of)
            worth = _worth(boxes[sure], scores[sure], rule, track)
            choice = sure[int(worth.argmax())] if worth.max() > worth[sure.index(choice)] else choice
            changed += choice != best[answer]
        chosen.append(choice)
    return sorted(chosen), several, changed


def _worth(boxes: FloatArray, scores: FloatArray, rule: str, track: FloatArray | None) -> FloatArray:
    if rule == "largest":
        return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    if track is None:
        return scores
    distance = np.linalg.norm((boxes - track).reshape(-1, 2, 2), axis=2).mean(axis=1)
    return np.asarray(scores * np.exp(-distance / max(*(track[2:] - track[:2]), 1.0)))


def _track(
    clip: npt.NDArray[np.intp] | None, image: int, numbers: FloatArray, boxes_of: dict[int, list[FloatArray]]
) -> FloatArray | None:
    others = clip[clip != image] if clip is not None else np.empty(0, dtype=np.intp)
    if not len(others):
        return None
    near = others[np.argsort(np.abs(numbers[others] - numbers[image]), kind="stable")[:TRACK_FRAMES]]
    return np.asarray(np.median([box for row in near.tolist() for box in boxes_of[row]], axis=0))


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
        InputError: fewer than two scenes have a found person with a labelled point.
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
        raise InputError(
            f"predict.weights: fitted needs found people of 2 validation scenes or more, there are {len(names)}: "
            "raise split.fraction, or set predict.weights=equal"
        )
    scene_of = np.array([names.index(scene) if one else -1 for scene, one in zip(scenes, usable, strict=True)])
    kept = _participants(keypoints, found, None, reject_sigmas)
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


def _rows_by_clip(
    scenes: Sequence[str], cameras: Sequence[str], numbers: FloatArray, found: BoolArray
) -> dict[tuple[str, str], npt.NDArray[np.intp]]:
    """The rows of each clip in which someone was found, by rising frame number; images without one have no clip."""
    rows_of_clip: dict[tuple[str, str], list[int]] = {}
    for row in np.argsort(numbers, kind="stable").tolist():
        if found[row] and np.isfinite(numbers[row]):
            rows_of_clip.setdefault((scenes[row], cameras[row]), []).append(row)
    return {clip: np.array(rows) for clip, rows in rows_of_clip.items()}


def _mean_pose(people: FloatArray, otherwise: FloatArray | None) -> FloatArray:
    if len(people):
        return np.asarray(people[..., :2].mean(axis=0))
    if otherwise is None:
        raise InputError(
            "nobody found in any image: lower predict.score_threshold and predict.fallback_threshold, or train longer"
        )
    if not np.isfinite(otherwise).all():
        raise InputError("mean pose: a keypoint has no place: give a pose with every keypoint")
    return otherwise


def _check_members(keypoints: FloatArray, found: BoolArray) -> None:
    if keypoints.ndim != 4 or keypoints.shape[-1] != 3 or not len(keypoints) or found.shape != keypoints.shape[:2]:
        raise ValueError(f"keypoints {keypoints.shape} must be (M, N, K, 3), M > 0, and found {found.shape} (M, N)")
    wrong = np.argwhere(found & ~np.isfinite(keypoints).all(axis=(2, 3)))
    if len(wrong):
        member, row = wrong[0]
        raise InputError(f"member {member}: row {row}: a number of the person found is not finite: predict it again")


def _check_weights(name: str, values: FloatArray) -> None:
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise InputError(f"{name}: every value must be finite and not negative")


def _member_weights(weights: FloatArray | None, keypoints: FloatArray) -> FloatArray:
    num_members, _, num_keypoints, _ = keypoints.shape
    given = np.ones(num_members) if weights is None else np.asarray(weights, dtype=float)
    if given.shape not in ((num_members,), (num_members, num_keypoints)):
        raise ValueError(f"weights {given.shape} must be ({num_members},) or ({num_members}, {num_keypoints})")
    _check_weights("weights", given)
    return given.reshape(num_members, 1, -1)


def _participants(
    keypoints: FloatArray, found: BoolArray, weights: FloatArray | None, reject_sigmas: float | None
) -> BoolArray:
    """Which points (M, N, K) are combined: of members that found someone, have weight and are not rejected."""
    shares = np.broadcast_to(_member_weights(weights, keypoints), keypoints.shape[:3])
    present = np.broadcast_to(found[:, :, None], shares.shape)
    taking_part = _unless_none_left(present & (shares > 0), present)
    if reject_sigmas is None:
        return taking_part
    return inliers(np.where(taking_part[..., None], keypoints, np.nan), reject_sigmas)


def _unless_none_left(chosen: BoolArray, otherwise: BoolArray) -> BoolArray:
    return np.asarray(np.where(chosen.any(axis=0), chosen, otherwise))


def _sorted_by_value(values: FloatArray, weights: FloatArray | BoolArray) -> tuple[FloatArray, FloatArray]:
    """Values (M, ...) in rising order, infinite ones last, with their weights: the members' order leaves no trace."""
    shares = np.broadcast_to(np.asarray(weights, dtype=float), values.shape)
    order = np.lexsort((shares, values), axis=0)
    return np.take_along_axis(values, order, axis=0), np.take_along_axis(shares, order, axis=0)


def _weighted_mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    values, weights = _sorted_by_value(values, weights)
    # Measured from the smallest value, so that equal values, or a single one, come out unchanged.
    offsets = np.where(np.isfinite(values), values - values[0], 0.0)
    return np.asarray(values[0] + (weights * offsets).sum(axis=0) / weights.sum(axis=0))


def _weighted_median(values: FloatArray, weights: FloatArray | BoolArray) -> FloatArray:
    """Where half the weight lies on either side, the middle of two values if the halves are equal; no weight: inf."""
    values, weights = _sorted_by_value(values, weights)
    reached = np.cumsum(weights, axis=0)
    half = reached[-1] / 2
    tolerance = 1e-9 * half
    low = np.take_along_axis(values, (reached >= half - tolerance).argmax(axis=0)[None], axis=0)[0]
    high = np.take_along_axis(values, (reached > half + tolerance).argmax(axis=0)[None], axis=0)[0]
    return np.asarray((low + high) / 2)
