"""Ensemble inference: a Ray Data batch map over an actor pool, the fused submission, and its evaluation.

Every actor holds all members. What each member said of each image is kept in `predictions.parquet`; fusing and
evaluating start from that file, so they can be repeated without a model.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from kp_ray.annotations import list_images, load_annotations, parse_name
from kp_ray.augment import decode
from kp_ray.config import (
    Config,
    InputError,
    PredictConfig,
    exists,
    file_sizes,
    filesystem,
    join,
    read_bytes,
    write_bytes,
)
from kp_ray.detectron import load_member, predict_rows
from kp_ray.ensemble import BoolArray, fill_missing, fuse
from kp_ray.keypoints import FloatArray, Skeleton, skeleton_for
from kp_ray.metrics import evaluate_keypoints
from kp_ray.store import ray_data_settings, read_manifest
from kp_ray.submission import SubmissionForm, read_form, read_submission, write_submission

_STAMP_KEY = b"kp_ray"


def prediction_schema(num_keypoints: int) -> pa.Schema:
    """The columns of `predictions.parquet`: one row an image and member.

    `score`, `bbox_xyxy` and `keypoints` (x, y, score) are those of the best person, 0 and NaN if there is none above
    the fallback threshold; `found` says whether the score reaches `score_threshold`; `reason` why an image could not
    be used.
    """
    return pa.schema(
        [
            ("image", pa.string()),
            ("member", pa.string()),
            ("found", pa.bool_()),
            ("score", pa.float64()),
            ("bbox_xyxy", pa.list_(pa.float64(), 4)),
            ("keypoints", pa.list_(pa.float64(), 3 * num_keypoints)),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("reason", pa.string()),
        ]
    )


def predict(config: Config, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Predict the test images with every member, fuse, and write the submission.

    Predictions that are there already, of the same members and images, are only fused anew.

    Args:
        config: with finished members in its run folder; a Ray cluster must be running.
        progress: called with (images done, images in all).

    Returns:
        `images`, `members`, `filled`, `unusable`, `submission`.

    Raises:
        InputError: a member is not trained, there is no test image, or nobody was found anywhere.
    """
    folder = config.input("test_images")
    form = _form(config)
    skeleton = _skeleton(config, form)
    images = list(form.images) if form else list_images(folder)
    if not images:
        raise InputError(f"data.test_images: {folder}: holds no picture")
    names = [member.name for member in config.train.members]
    for name in names:
        if not exists(join(config.member_dir(name), "model_final.pth")):
            raise InputError(f"{config.member_dir(name)}: member {name} is not trained; run train first")
    stamp = _stamp(config, images, names)
    if not _is_current(config, stamp):
        table = pa.concat_tables(_ask_members(config, images, names, skeleton, progress))
        rank = {(image, name): i for i, (image, name) in enumerate(itertools.product(images, names))}
        keys = zip(table["image"].to_pylist(), table["member"].to_pylist(), strict=True)
        order = np.argsort([rank[key] for key in keys])
        sink = pa.BufferOutputStream()
        pq.write_table(table.take(order).replace_schema_metadata({_STAMP_KEY: stamp}), sink)
        write_bytes(config.path("predictions.parquet"), sink.getvalue().to_pybytes())
    return write_fused(config)


def _stamp(config: Config, images: Sequence[str], names: Sequence[str]) -> bytes:
    """A digest of what decides `predictions.parquet`: members, images (by name and size in bytes) and settings."""
    section = config.predict
    sizes = file_sizes(config.input("test_images"))
    decides: list[Any] = [section.tta, section.score_threshold, section.fallback_threshold]
    decides += [[image, sizes.get(image)] for image in images]
    for name in names:
        decides.append([name, hashlib.sha256(read_bytes(join(config.member_dir(name), "model_final.pth"))).hexdigest()])
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest().encode()


def _is_current(config: Config, stamp: bytes) -> bool:
    path = config.path("predictions.parquet")
    if not exists(path):
        return False
    fs, inner = filesystem(path)
    return bool((pq.read_schema(inner, filesystem=fs).metadata or {}).get(_STAMP_KEY) == stamp)


def _ask_members(
    config: Config,
    images: Sequence[str],
    names: Sequence[str],
    skeleton: Skeleton,
    progress: Callable[[int, int], None] | None,
) -> Iterator[pa.Table]:
    smallest, largest = config.predict.actors
    with ray_data_settings():
        rows = ray.data.from_items([{"image": image} for image in images]).map_batches(
            Predictor,
            fn_constructor_args=(config.to_dict(), names, skeleton.names),
            batch_size=config.predict.batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=smallest, max_size=largest),
            num_cpus=config.predict.cpus_per_actor,
            num_gpus=config.predict.gpus_per_actor or None,
        )
    done = 0
    try:
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield batch
            done += len(batch) // len(names)
            if progress:
                progress(done, len(images))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise


class Predictor:
    """Actor: all members, loaded once; maps image names to rows of `prediction_schema`."""

    def __init__(self, values: dict[str, Any], names: Sequence[str], keypoint_names: Sequence[str]) -> None:
        self.config = Config.model_validate(values)
        sections = self.config.skeleton
        self.skeleton = skeleton_for(keypoint_names, sections.flip_pairs, sections.sigmas)
        device = "cuda" if self.config.predict.gpus_per_actor and torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(max(1, round(self.config.predict.cpus_per_actor)))
        self.members = {name: load_member(self.config.member_dir(name), device) for name in names}
        for name, (_, cfg) in self.members.items():
            if len(self.skeleton) != cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS:
                raise InputError(
                    f"member {name} predicts {cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS} keypoints, "
                    f"{len(self.skeleton)} are asked for"
                )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Predict a batch of image names."""
        rows = []
        for image in batch["image"].to_pylist():
            try:
                picture, width, height = _read_picture(join(self.config.input("test_images"), image))
            except InputError as error:
                empty = {"image": image, "found": False, "score": 0.0, "width": 0, "height": 0, "reason": str(error)}
                rows += [{**empty, "member": name, **self._nobody()} for name in self.members]
                continue
            size = {"image": image, "width": width, "height": height, "reason": ""}
            rows += [{**size, "member": name, **self._person(name, picture, width, height)} for name in self.members]
        return pa.Table.from_pylist(rows, schema=prediction_schema(len(self.skeleton)))

    def _nobody(self) -> dict[str, Any]:
        return {"bbox_xyxy": np.full(4, np.nan), "keypoints": np.full(3 * len(self.skeleton), np.nan)}

    def _person(self, member: str, picture: Any, width: int, height: int) -> dict[str, Any]:
        model, cfg = self.members[member]
        predict_config = self.config.predict
        row = {"image": picture, "width": width, "height": height}
        people = predict_rows(model, cfg, self.skeleton, [row])[0]
        if not people or people[0][0] < predict_config.fallback_threshold:
            return {"found": False, "score": 0.0, **self._nobody()}
        score, box, keypoints = people[0]
        if "flip" in predict_config.tta:
            keypoints = self._with_flip(member, row, keypoints)
        found = score >= predict_config.score_threshold
        return {"found": found, "score": score, "bbox_xyxy": box, "keypoints": keypoints.ravel()}

    def _with_flip(self, member: str, row: dict[str, Any], keypoints: FloatArray) -> FloatArray:
        """The mean with the answer on the mirrored picture, left and right swapped back."""
        model, cfg = self.members[member]
        picture = row["image"] if isinstance(row["image"], np.ndarray) else decode(row["image"])[0][..., :3]
        mirrored = {**row, "image": np.ascontiguousarray(picture[:, ::-1])}
        people = predict_rows(model, cfg, self.skeleton, [mirrored])[0]
        if not people:
            return keypoints
        back = people[0][2][self.skeleton.flip_indices]
        back[:, 0] = row["width"] - 1 - back[:, 0]
        return np.asarray((keypoints + back) / 2)


def _read_picture(path: str) -> tuple[Any, int, int]:
    """What `predict_rows` takes of an image, JPEG bytes or (H, W, 3) BGR, with its width and height."""
    content = read_bytes(path)
    picture, plain_jpeg = decode(content)
    height, width = picture.shape[:2]
    return content if plain_jpeg else np.ascontiguousarray(picture[..., :3]), width, height


def _form(config: Config) -> SubmissionForm | None:
    return read_form(config.data.sample_submission) if config.data.sample_submission else None


def _skeleton(config: Config, form: SubmissionForm | None) -> Skeleton:
    names = form.names if form else read_manifest(config.path("store")).skeleton
    return skeleton_for(names, config.skeleton.flip_pairs, config.skeleton.sigmas)


class _Predictions:
    """`predictions.parquet` as arrays: M members, N images, K keypoints."""

    def __init__(self, config: Config, skeleton: Skeleton) -> None:
        path = config.path("predictions.parquet")
        if not exists(path):
            raise InputError(f"{path}: there are no predictions; run predict first")
        fs, inner = filesystem(path)
        table = pq.read_table(inner, filesystem=fs)
        self.members = list(dict.fromkeys(table["member"].to_pylist()))
        self.images = table["image"].to_pylist()[:: len(self.members)]
        shape = (len(self.images), len(self.members))
        flat = np.array(table["keypoints"].to_pylist(), dtype=np.float64)
        self.keypoints = flat.reshape(*shape, len(skeleton), 3).swapaxes(0, 1)
        self.scores = table["score"].to_numpy().reshape(shape).T
        self.reasons = table["reason"].to_pylist()[:: len(self.members)]
        self.where = [parse_name(image) for image in self.images]

    def combine(
        self, config: PredictConfig, members: Sequence[int], centre: FloatArray
    ) -> tuple[FloatArray, BoolArray, FloatArray, list[str]]:
        """Fuse some members: keypoints (N, K, 3), found (N,), scores (N,), and where each image's points came from."""
        keypoints, scores = self.keypoints[list(members)], self.scores[list(members)]
        answers = []
        for threshold in (config.score_threshold, config.fallback_threshold):
            found = (scores >= threshold) & (scores > 0)
            method, reject = config.fusion, config.reject_sigmas
            answers.append(fuse(keypoints, found, method=method, person_scores=scores, reject_sigmas=reject))
        (fused, sure), (unsure, some) = answers
        use_fallback = ~sure & some
        fused[use_fallback] = unsure[use_fallback]
        scenes, cameras, frames = zip(*self.where, strict=True)
        if config.missing == "zeros":
            filled, how = (
                np.where((sure | some)[:, None, None], fused, 0.0),
                ["" if one else "zeros" for one in sure | some],
            )
        else:
            filled, how = fill_missing(fused, sure | some, scenes, cameras, frames, mean_pose=centre)
        notes = ["low score" if low else note for low, note in zip(use_fallback, how, strict=True)]
        return filled, sure, scores.max(axis=0), notes


def write_fused(config: Config) -> dict[str, Any]:
    """Fuse `predictions.parquet` into `submission.csv`; `predict.json` lists what was filled in and why.

    Raises:
        InputError: there are no predictions, or nobody was found in any image.
    """
    form = _form(config)
    skeleton = _skeleton(config, form)
    predictions = _Predictions(config, skeleton)
    if not (predictions.scores > 0).any():
        raise InputError("nobody was found in any test image: train longer or lower predict.fallback_threshold")
    fused, _, _, how = predictions.combine(config.predict, range(len(predictions.members)), _no_pose(skeleton))
    form = form or SubmissionForm(tuple(predictions.images), ("image", *skeleton.columns))
    target = config.path("submission.csv")
    zeros = config.predict.missing == "zeros"
    write_submission(target, form, predictions.images, fused, skeleton, allow_zeros=zeros)
    filled = [{"image": image, "how": note} for image, note in zip(predictions.images, how, strict=True) if note]
    unusable = [
        {"image": image, "reason": why}
        for image, why in zip(predictions.images, predictions.reasons, strict=True)
        if why
    ]
    summary = {"images": len(predictions.images), "members": predictions.members}
    details = {**summary, "filled": filled, "unusable": unusable}
    write_bytes(config.path("predict.json"), (json.dumps(details, indent=1, ensure_ascii=False) + "\n").encode())
    return {**summary, "filled": len(filled), "unusable": len(unusable), "submission": target}


def _no_pose(skeleton: Skeleton) -> FloatArray:
    return np.zeros((len(skeleton), 2))


def evaluate(config: Config, submission: str | None = None) -> dict[str, Any]:
    """Score the submission, and each member alone, against the truth; writes `evaluation.json`.

    Args:
        submission: another submission CSV to score instead of the run's predictions; nothing is written then.

    Returns:
        The content of `evaluation.json`: the figures of `evaluate_keypoints` for the ensemble, `worst`, `filled`, and
        `members` with the same figures for each.

    Raises:
        InputError: no truth, no predictions, or an invalid submission.
    """
    labels = load_annotations(
        config.input("truth"), flip_pairs=config.skeleton.flip_pairs, sigmas=config.skeleton.sigmas
    )
    truth_of = dict(zip(labels.images, labels.keypoints, strict=True))
    skeleton = labels.skeleton
    if submission is not None:
        form = _form(config) or SubmissionForm(labels.images, ("image", *skeleton.columns))
        xy = read_submission(submission, form, skeleton, size=None, allow_zeros=config.predict.missing == "zeros")
        keypoints = np.concatenate([xy, np.ones((*xy.shape[:2], 1))], axis=2)
        return _figures(form.images, keypoints, truth_of, skeleton, None, None)
    predictions = _Predictions(config, skeleton)
    everyone = range(len(predictions.members))
    choices = {name: [i] for i, name in enumerate(predictions.members)} | {"": list(everyone)}
    results = {}
    for name, members in choices.items():
        keypoints, found, scores, how = predictions.combine(config.predict, members, _no_pose(skeleton))
        results[name] = _figures(predictions.images, keypoints, truth_of, skeleton, found, scores)
        results[name]["filled"] = [
            {"image": image, "how": note} for image, note in zip(predictions.images, how, strict=True) if note
        ]
    evaluation = {**results.pop(""), "members": results}
    write_bytes(config.path("evaluation.json"), (json.dumps(evaluation, indent=1, ensure_ascii=False) + "\n").encode())
    return evaluation


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
        raise InputError("data.truth: names none of the predicted images")
    truth = np.stack([truth_of[images[i]] for i in known])
    cameras = [parse_name(images[i])[1] for i in known]
    predicted = keypoints[known]
    figures = evaluate_keypoints(
        predicted,
        truth,
        skeleton,
        found=None if found is None else found[known],
        scores=None if scores is None else scores[known],
        cameras=cameras,
    )
    with np.errstate(invalid="ignore"):
        per_image = np.sqrt(np.nanmean((predicted[:, :, :2] - truth[:, :, :2]) ** 2, axis=(1, 2)))
    worst = np.argsort(-per_image, kind="stable")[:12]
    figures["worst"] = [{"image": images[known[i]], "rmse": float(per_image[i])} for i in worst]
    return figures
