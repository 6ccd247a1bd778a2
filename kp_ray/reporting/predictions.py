"""The report's section on predicted images."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.annotations import Annotations, check_image_name, parse_name, reorder_keypoints
from kp_ray.data.load import load_annotations
from kp_ray.data.submission import read_sample_submission, read_submission
from kp_ray.errors import KpRayError, RunStateError
from kp_ray.images import Image, decode_bgr
from kp_ray.keypoints import FloatArray, Skeleton, visible_box
from kp_ray.metrics import point_errors
from kp_ray.reporting.formatting import jpeg_uri, read_optional_json
from kp_ray.storage import exists, join, read_bytes, read_parquet
from kp_ray.visualization.colors import SERIES, TRUTH, Color, series_color
from kp_ray.visualization.skeletons import crop_resize, draw_skeleton, transform

NUM_PICTURES = 12
"""How many worst, how many disputed and how many filled images are shown."""


@dataclass
class Answers:
    """What was predicted of the test images, and their truth.

    Attributes:
        members, images: M and N names.
        keypoints: (M, N, K, 3) x, y, score; NaN where a member found nobody.
        fused: the submission.
        truth: labels of the test images.
    """

    members: list[str]
    images: list[str]
    keypoints: FloatArray
    fused: Annotations | None
    truth: Annotations | None


def read_answers(config: Config) -> Answers:
    members, images, keypoints, skeleton = read_predictions(config, config.path("predictions.parquet"))
    fused = _read_fused(config, config.path("submission.csv"), skeleton)
    return Answers(members, images, keypoints, fused, read_truth(config, skeleton))


def read_predictions(config: Config, path: str) -> tuple[list[str], list[str], FloatArray, Skeleton | None]:
    """Members, images, keypoints (M, N, K, 3) and skeleton of `predictions.parquet`; nothing if it is not there."""
    if not exists(path):
        return [], [], np.zeros((0, 0, 0, 3)), None
    table = read_parquet(path, "delete it and run predict again", ["image", "member", "keypoints"])
    try:
        names = json.loads(table.schema.metadata[b"kp_ray"])["keypoints"]
        skeleton = config.build_skeleton(names)
        rows = table.to_pylist()
        members, images = (list(dict.fromkeys(str(row[key]) for row in rows)) for key in ("member", "image"))
        width = max((len(row["keypoints"] or ()) for row in rows), default=0)
        keypoints = np.full((len(members), len(images), width // 3, 3), np.nan)
        of_member, of_image = ({name: i for i, name in enumerate(names)} for names in (members, images))
        for row in rows:
            if row["keypoints"] is not None:
                points = np.array(row["keypoints"], dtype=float).reshape(-1, 3)
                keypoints[of_member[row["member"]], of_image[row["image"]]] = points
    except (KeyError, TypeError, ValueError) as error:
        raise RunStateError(f"{path}: cannot be read ({error}): run predict again") from error
    return members, images, keypoints, skeleton


def predictions_section(config: Config, evaluation: Mapping[str, Any], answers: Answers) -> dict[str, Any] | None:
    """The images predicted worst, disputed most, and without anybody found (`filled` None: not known)."""
    worst = evaluation.get("worst") or []
    filled = evaluation.get("filled")
    if filled is None:
        filled = (read_optional_json(config.path("predict.json")) or {}).get("filled")
    if not worst and filled is None and answers.fused is None and not answers.images:
        return None
    how = [re.sub(r"^frame \d+$", "a near frame", row.get("how") or "unknown") for row in filled or []]
    disputed = _disputed(answers)
    labels = ((answers.truth, TRUTH), (answers.fused, None))

    def tiles(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        pictures = []
        for row in rows[:NUM_PICTURES]:
            image = row["image"]
            people = [
                (one.keypoints[one.images.index(image)], one.skeleton, paint)
                for one, paint in labels
                if one is not None and image in one.images
            ]
            pictures.append({**row, "uri": _overlay(config, image, people), "point": _worst_point(image, answers)})
        return [picture for picture in pictures if picture["uri"]]

    skeleton = next((one.skeleton for one, _ in labels if one is not None), None)
    disputes = []
    for row, spread in disputed[:NUM_PICTURES]:
        if skeleton is None or answers.keypoints.shape[2] != len(skeleton):
            break
        people = [(answers.keypoints[m, row], skeleton, series_color(m)) for m in range(len(answers.members))]
        uri = _overlay(config, answers.images[row], people)
        disputes += [{"image": answers.images[row], "spread": spread, "uri": uri}] if uri else []
    return {
        "worst": worst, "filled": filled, "worst_tiles": tiles(worst), "filled_tiles": tiles(filled or []),
        "has_truth": answers.truth is not None, "how": Counter(how), "disputes": disputes,
        "median_spread": float(np.median([spread for _, spread in disputed])) if disputed else None,
        "members": [(name, SERIES[m % len(SERIES)]) for m, name in enumerate(answers.members)],
        "num_images": len(answers.images),
        "lost": {
            name: int(np.isnan(points[..., 0]).all(axis=1).sum())
            for name, points in zip(answers.members, answers.keypoints, strict=True)
        },
    }  # fmt: skip


def _disputed(answers: Answers) -> list[tuple[int, float]]:
    """(image, how far its members' points lie from their mean, RMS in pixels), the most disputed first."""
    found = np.asarray(np.isfinite(answers.keypoints[..., :2]).all(axis=(2, 3)))  # (M, N)
    disputed = []
    for row in np.flatnonzero(found.sum(axis=0) > 1):
        points = answers.keypoints[found[:, row], row, :, :2]
        squared = ((points - points.mean(axis=0)) ** 2).sum(axis=2)
        disputed.append((int(row), float(np.sqrt(squared.mean()))))
    return sorted(disputed, key=lambda pair: -pair[1])


def _worst_point(image: str, answers: Answers) -> str | None:
    """The keypoint of an image's prediction that lies farthest from the truth, and how far."""
    truth, fused = answers.truth, answers.fused
    if truth is None or fused is None or truth.skeleton.names != fused.skeleton.names:
        return None
    if image not in truth.images or image not in fused.images:
        return None
    errors = point_errors(fused.keypoints[fused.images.index(image)], truth.keypoints[truth.images.index(image)])
    if not np.isfinite(errors).any():
        return None
    farthest = int(np.nanargmax(errors))
    return f"{truth.skeleton.names[farthest]} by {errors[farthest]:,.0f} px"


def read_truth(config: Config, skeleton: Skeleton | None) -> Annotations | None:
    """The truth with its keypoints in the skeleton's order (None: its own)."""
    path = config.data.truth
    if path is None or not exists(path):
        return None
    labels = load_annotations(path, flip_pairs=config.skeleton.flip_pairs, sigmas=config.skeleton.sigmas)
    return labels if skeleton is None else reorder_keypoints(labels, skeleton, path)


def _read_fused(config: Config, path: str, skeleton: Skeleton | None) -> Annotations | None:
    """The submission as labels; its images may be whole paths."""
    if not exists(path):
        return None
    form = read_sample_submission(path)
    skeleton = skeleton or config.build_skeleton(form.names)
    xy = read_submission(path, form, skeleton, size=None, allow_zeros=True)
    scenes, cameras, frames = zip(*map(parse_name, form.images), strict=True)
    return Annotations(skeleton, form.images, np.dstack([xy, np.full(xy.shape[:2], 2.0)]), scenes, cameras, frames)


_Overlay = tuple[FloatArray, Skeleton, Color | None]
"""Keypoints (K, 3), their skeleton and colour (None: by side)."""


def _overlay(config: Config, image: str, people: Sequence[_Overlay]) -> str | None:
    """The part of a test image around its person with skeletons over it; None when it cannot be shown."""
    points = np.concatenate([keypoints for keypoints, *_ in people]) if people else np.zeros((0, 3))
    picture = find_picture(config, image) if np.isfinite(points[:, :2]).any() else None
    if picture is None:
        return None
    height, width = picture.shape[:2]
    box = visible_box(points, width, height)
    box = visible_box(points, width, height, margin_px=0.2 * float((box[2:] - box[:2]).max()))
    picture, affine = crop_resize(picture, box, 440)
    for keypoints, skeleton, paint in people:
        picture = draw_skeleton(picture, transform(keypoints, affine), skeleton, color=paint)
    return jpeg_uri(picture)


def find_picture(config: Config, image: str) -> Image | None:
    """The predicted image of this name, from wherever the config takes images; None if it is not there."""
    try:
        check_image_name(image, "")
    except KpRayError:
        return None  # it could lead out of the folder, to what must not stand in a page that is passed on
    for folder in (config.predict.images, config.data.test_images, config.data.images):
        path = join(folder or "", image)
        if folder is not None and exists(path):
            return decode_bgr(read_bytes(path))
    return None
