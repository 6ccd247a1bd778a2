"""Fuse the members' predictions into a submission."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.submission import SampleSubmission, check_same_keypoints, read_sample_submission, write_submission
from kp_ray.ensemble.fitted import fit_weights
from kp_ray.ensemble.fusion import Fusion, fuse_clips, select_detections
from kp_ray.errors import RunStateError
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.prediction.parts import is_found
from kp_ray.prediction.predictions import Predictions, check_keypoint_names, read_predictions
from kp_ray.storage import exists, filesystem, join, read_bytes, read_json, write_bytes
from kp_ray.store.manifest import read_manifest
from kp_ray.store.read import read_table


def form_of(config: Config) -> SampleSubmission | None:
    return read_sample_submission(config.data.sample_submission) if config.data.sample_submission else None


def skeleton_of_run(config: Config, form: SampleSubmission | None) -> Skeleton:
    """The members' skeleton: the store's, if it is there; otherwise the form's."""
    store = config.path("store")
    names = read_manifest(store).skeleton if form is None or exists(join(store, "manifest.json")) else form.names
    skeleton = config.build_skeleton(names)
    if form is not None:
        check_same_keypoints(form, skeleton)
    return skeleton


def read_run_predictions(config: Config, skeleton: Skeleton, file: str = "predictions.parquet") -> Predictions:
    """Read the run's predictions and refuse those of another skeleton."""
    path = config.path(file)
    predictions = read_predictions(path)
    check_keypoint_names(predictions, skeleton, path)
    return predictions


def fuse_predictions(
    config: Config, predictions: Predictions, members: Sequence[int], weights: FloatArray | None
) -> Fusion:
    """One answer an image of some members, kept inside its frame: filling and smoothing may lead out of it."""
    section = config.predict
    keypoints, scores = predictions.keypoints[list(members)], predictions.scores[list(members)]
    fusion = fuse_clips(
        keypoints, scores, *predictions.places,
        thresholds=(section.score_threshold, section.fallback_threshold), method=section.fusion, weights=weights,
        reject_sigmas=section.reject_sigmas, missing=section.missing, smooth_frames=section.smooth_frames,
        mean_pose=np.zeros((keypoints.shape[2], 2)),
    )  # fmt: skip
    limits = np.array([(w - 1, h - 1) if w and h else (np.inf, np.inf) for w, h in predictions.sizes])[:, None]
    xy = fusion.keypoints[..., :2]
    inside = np.where(np.isfinite(limits), np.clip(xy, 0, limits), xy)
    return replace(fusion, keypoints=np.concatenate([inside, fusion.keypoints[..., 2:]], axis=2))


def given_weights(config: Config, members: Sequence[str], skeleton: Skeleton) -> FloatArray | None:
    """The config's weights (M, K); None if it gives none."""
    given = config.predict.weights
    if isinstance(given, str):
        return None
    weights = np.ones((len(members), len(skeleton)))
    for member, value in given.items():
        if member not in members:
            raise RunStateError(f"predict.weights: {member}: is no member; train.members has {', '.join(members)}")
        of_keypoints = value if isinstance(value, dict) else dict.fromkeys(skeleton.names, value)
        for name, weight in of_keypoints.items():
            if name not in skeleton.names:
                raise RunStateError(f"predict.weights: {member}: {name}: is no keypoint of the labels")
            weights[members.index(member), skeleton.names.index(name)] = weight
    if not weights.any(axis=0).all():
        nobody = skeleton.names[int(weights.any(axis=0).argmin())]
        raise RunStateError(f"predict.weights: every member has weight 0 for {nobody}: give one of them some")
    return weights


def weights_of(config: Config, members: Sequence[str], skeleton: Skeleton) -> tuple[FloatArray | None, dict[str, Any]]:
    """The weights (M, K) to fuse with, None for equal ones, and what to tell of them."""
    if config.predict.weights != "fitted":
        return given_weights(config, members, skeleton), {
            "chosen": "given" if isinstance(config.predict.weights, dict) else "equal"
        }
    known = read_run_predictions(config, skeleton, "val_predictions.parquet")
    if known.members != tuple(members):
        raise RunStateError("predict.weights: the validation scenes were predicted by other members: run predict again")
    truth_of = store_truth(config, "val", skeleton)
    if not truth_of.keys() >= set(known.images):
        raise RunStateError("predict.weights: the store holds other validation scenes now: run predict again")
    section = config.predict
    fitted = fit_weights(
        known.keypoints, select_detections(known.scores, (section.score_threshold, section.fallback_threshold))[0],
        np.stack([truth_of[image] for image in known.images]), known.places[0],
        method=section.fusion, person_scores=known.scores, reject_sigmas=section.reject_sigmas,
    )  # fmt: skip
    by_member = {
        name: dict(zip(skeleton.names, row, strict=True))
        for name, row in zip(members, fitted.weights.tolist(), strict=True)
    }
    told = {
        "chosen": fitted.chosen, "val_rmse_equal": fitted.rmse_equal, "val_rmse_fitted": fitted.rmse_fitted,
        "val_scenes": fitted.num_scenes, "val_images": fitted.num_images, "weights": by_member,
    }  # fmt: skip
    return fitted.weights, told


def store_truth(config: Config, split: str, skeleton: Skeleton) -> dict[str, FloatArray]:
    """Source -> keypoints (K, 3) of the unaugmented pictures; NaN x, y where unlabelled, v 0 also where outside."""
    columns = ["source", "keypoints"]
    recipes = None if split == "val" else ["Original"]  # a validation split holds nothing else
    table = read_table(config.path("store"), split=split, recipes=recipes, columns=columns)
    points = np.array(table["keypoints"].to_pylist(), dtype=np.float64).reshape(len(table), len(skeleton), 3)
    return dict(zip(table["source"].to_pylist(), points, strict=True))


def write_fused(config: Config, figures: Mapping[str, float]) -> dict[str, Any]:
    """Fuse `predictions.parquet` into `submission.csv`; `predict.json` tells every fallback.

    An `evaluation.json` of another submission is deleted.

    Args:
        figures: what predicting took; kept in `predict.json` until images are predicted again.

    Raises:
        RunStateError: there are no predictions, or nobody was found in any image.
    """
    form = form_of(config)
    skeleton = skeleton_of_run(config, form)
    predictions = read_run_predictions(config, skeleton)
    if not (predictions.scores > 0).any():
        raise RunStateError("nobody was found in any image: train longer or lower predict.fallback_threshold")
    weights, told = weights_of(config, predictions.members, skeleton)
    fusion = fuse_predictions(config, predictions, range(len(predictions.members)), weights)
    columns = form.columns if form else ("image", *skeleton.columns)
    if form is None or config.predict.images is not None:
        form = SampleSubmission(predictions.images, columns)
    target, stale = config.path("submission.csv"), config.path("evaluation.json")
    before = read_bytes(target) if exists(target) else b""
    sizes = dict(zip(predictions.images, predictions.sizes, strict=True))
    zeros = config.predict.missing == "zeros"
    write_submission(target, form, predictions.images, fusion.keypoints, skeleton, size=sizes, allow_zeros=zeros)
    if exists(stale) and (figures["predicted"] or read_bytes(target) != before):
        fs, inner = filesystem(stale)
        fs.delete_file(inner)
    filled = [{"image": image, "how": note} for image, note in zip(predictions.images, fusion.how, strict=True) if note]
    unusable = [
        {"image": image, "reason": why}
        for image, why in zip(predictions.images, predictions.reasons, strict=True)
        if why
    ]
    summary = {"images": len(predictions.images), "members": list(predictions.members)}
    found, people = is_found(predictions.scores, config), asdict(predictions.person_choices)
    by_member = {
        name: {"found": int(found[i].sum()), "rejected_points": fusion.rejected[i]}
        for i, name in enumerate(predictions.members)
    }
    fallbacks = Counter(re.sub(r"^frame \d+$", "near frame", row["how"]) for row in filled)
    details = {
        **summary, "by_member": by_member, "people": people, "weights": told, "fallbacks": dict(fallbacks),
        "filled": filled, "unusable": unusable,
    }  # fmt: skip
    path = config.path("predict.json")
    if figures["predicted"] <= len(unusable) and exists(path):  # those alone were tried again
        figures = read_json(path, "delete this file").get("took", figures)
    details["took"] = dict(figures)
    write_bytes(path, (json.dumps(details, indent=1, ensure_ascii=False) + "\n").encode())
    return {
        **summary, "fallbacks": dict(fallbacks), "filled": len(filled), "unusable": len(unusable),
        "people": people, "weights": told["chosen"], "submission": target,
    }  # fmt: skip
