"""Score predictions or a submission against the truth."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.annotations import parse_name, reorder_keypoints
from kp_ray.data.load import load_annotations
from kp_ray.data.submission import read_sample_submission, read_submission
from kp_ray.errors import KpRayError, RunStateError
from kp_ray.keypoints import BoolArray, FloatArray, Skeleton
from kp_ray.metrics import evaluate_keypoints
from kp_ray.prediction.fuse import (
    form_of,
    fuse_predictions,
    read_run_predictions,
    skeleton_of_run,
    store_truth,
    weights_of,
)
from kp_ray.prediction.predictor import _Picture
from kp_ray.storage import exists, join, read_bytes, write_bytes


def evaluate(config: Config, submission: str | None = None) -> dict[str, Any]:
    """Score the submission, and each member alone, against the truth; writes `evaluation.json`.

    The truth is `data.truth`, or the store's labels when `predict.images` is one of its splits.

    Args:
        submission: another submission CSV to score instead of the run's predictions; nothing is written then.

    Returns:
        The content of `evaluation.json`: the figures of `evaluate_keypoints` for the ensemble, `worst`, `filled`, and
        `members` with the same figures for each.

    Raises:
        RunStateError: no truth, no predictions, or an invalid submission.
    """
    truth_of, skeleton = _truth(config)
    if submission is not None:
        # The run's own has the form's rows only if that decided what was predicted.
        whole = form_of(config) if config.predict.images is None else None
        form = whole or read_sample_submission(submission)
        lacking = [] if whole or config.predict.images is not None else sorted(set(truth_of) - set(form.images))
        if lacking:
            raise RunStateError(
                f"{submission}: {lacking[0]} of data.truth is missing, {len(lacking)} in all: add its row"
            )
        zeros = config.predict.missing == "zeros"
        xy = read_submission(submission, form, skeleton, size=_frame_sizes(config, form.images), allow_zeros=zeros)
        keypoints = np.concatenate([xy, np.ones((*xy.shape[:2], 1))], axis=2)
        return _figures(form.images, keypoints, truth_of, skeleton, None, None)
    predictions = read_run_predictions(config, skeleton)
    weights, _ = weights_of(config, predictions.members, skeleton)
    results = {}
    everyone = list(range(len(predictions.members)))
    for name, members in [("", everyone), *((name, [i]) for i, name in enumerate(predictions.members))]:
        fusion = fuse_predictions(config, predictions, members, weights if members == everyone else None)
        scores = predictions.scores[members].max(axis=0)
        results[name] = _figures(predictions.images, fusion.keypoints, truth_of, skeleton, fusion.found, scores)
        results[name]["filled"] = [
            {"image": image, "how": note} for image, note in zip(predictions.images, fusion.how, strict=True) if note
        ]
    evaluation = {**results.pop(""), "members": results}
    write_bytes(config.path("evaluation.json"), (json.dumps(evaluation, indent=1, ensure_ascii=False) + "\n").encode())
    return evaluation


def _truth(config: Config) -> tuple[dict[str, FloatArray], Skeleton]:
    source = config.predict.images or ""
    if source.startswith("store:"):
        skeleton = skeleton_of_run(config, None)
        return store_truth(config, source.removeprefix("store:"), skeleton), skeleton
    section, form, path = config.skeleton, form_of(config), config.require_input("truth")
    labels = load_annotations(path, flip_pairs=section.flip_pairs, sigmas=section.sigmas)
    if form is not None or exists(config.path("store", "manifest.json")):
        labels = reorder_keypoints(labels, skeleton_of_run(config, form), path)
    return dict(zip(labels.images, labels.keypoints, strict=True)), labels.skeleton


def _frame_sizes(config: Config, images: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Width and height of the images that can be opened."""
    folder = config.data.test_images
    if folder is None:
        return {}

    def look(image: str) -> tuple[int, int]:
        try:
            picture = _Picture(read_bytes(join(folder, image)))
        except KpRayError:
            return 0, 0
        return picture.width, picture.height

    with ThreadPoolExecutor() as pool:
        return dict(zip(images, pool.map(look, images), strict=True))


def _figures(
    images: Sequence[str],
    keypoints: FloatArray,
    truth_of: dict[str, FloatArray],
    skeleton: Skeleton,
    found: BoolArray | None,
    scores: FloatArray | None,
) -> dict[str, Any]:
    known = [i for i, image in enumerate(images) if image in truth_of]
    if not known:
        raise RunStateError("data.truth: names none of the predicted images")
    truth = np.stack([truth_of[images[i]] for i in known])
    scenes, cameras, _ = zip(*(parse_name(images[i]) for i in known), strict=True)
    predicted = keypoints[known]
    figures = evaluate_keypoints(
        predicted,
        truth,
        skeleton,
        found=None if found is None else found[known],
        scores=None if scores is None else scores[known],
        cameras=cameras,
        scenes=scenes,
    )
    squares = (predicted[:, :, :2] - truth[:, :, :2]) ** 2
    labelled = np.isfinite(squares)
    per_image = np.sqrt(np.where(labelled, squares, 0).sum(axis=(1, 2)) / np.maximum(labelled.sum(axis=(1, 2)), 1))
    worst = [i for i in np.argsort(-per_image, kind="stable").tolist() if labelled[i].any()][:12]
    figures["worst"] = [{"image": images[known[i]], "rmse": float(per_image[i])} for i in worst]
    return figures
