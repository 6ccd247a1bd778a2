"""Ensemble inference: Ray Data over an actor pool, the fused submission, and its evaluation.

Every actor holds all members. What they say of a few images is a part file under `<run_dir>/predictions/`, so a stopped
run goes on where it ended. The parts are merged into `predictions.parquet`; fusing and evaluating start from that file,
so they can be repeated without a model.
"""

import csv
import hashlib
import io
import itertools
import json
import pickle
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import pyarrow as pa
import pyarrow.fs as pafs
import ray
import torch
import yaml
from ray.util.annotations import RayDeprecationWarning

from kp_ray.annotations import in_order_of, list_images, load_annotations, parse_name
from kp_ray.augment import decode
from kp_ray.config import (
    Config,
    InputError,
    exists,
    file_infos,
    file_sizes,
    filesystem,
    join,
    one_line,
    read_bytes,
    read_json,
    write_bytes,
)
from kp_ray.detectron import load_member, read_instances, to_dataset_dict
from kp_ray.ensemble import BoolArray, Fusion, choose_people, fit_weights, fuse_clips, trusted
from kp_ray.keypoints import FloatArray, Skeleton, skeleton_for
from kp_ray.metrics import evaluate_keypoints
from kp_ray.store import (
    RowReader,
    ray_data_settings,
    read_manifest,
    read_parquet,
    read_table,
    reason_of,
    select_parts,
    write_parquet,
)
from kp_ray.submission import SubmissionForm, check_form, read_form, read_submission, write_submission
from kp_ray.train import fits_a_node

PEOPLE_KEPT = 5
"""Of a member and image, by score: what `predict.person` chooses from."""
SAME_PERSON_IOU = 0.5
"""Overlap from which boxes of two views of a picture are one person's."""
_NOTE_KEY = b"kp_ray"

Person = tuple[float, FloatArray, FloatArray]
"""Score, bbox_xyxy (4,) and keypoints (K, 3: x, y, score), in pixel indices."""


@dataclass(frozen=True)
class Asked:
    """An image to predict: the file at `path`, or row `row` of the store's part there.

    `version` is another when the picture has changed.
    """

    image: str
    path: str
    row: int | None
    version: str


def prediction_schema(num_keypoints: int) -> pa.Schema:
    """The columns of `predictions.parquet`: one row an image and member.

    `score`, `bbox_xyxy` and `keypoints` (x, y, score) are those of the person chosen of `num_people`, 0 and NaN if
    there is none above the fallback threshold; `found` says whether the score reaches `score_threshold`; `reason` why
    an image could not be used.
    """
    return pa.schema(
        [
            ("image", pa.string()),
            ("member", pa.string()),
            ("found", pa.bool_()),
            ("score", pa.float64()),
            ("num_people", pa.int32()),
            ("bbox_xyxy", pa.list_(pa.float64(), 4)),
            ("keypoints", pa.list_(pa.float64(), 3 * num_keypoints)),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("reason", pa.string()),
        ]
    )


def _part_schema(num_keypoints: int) -> pa.Schema:
    """A part's rows: an image, member and person each; one row with score 0 where a member found nobody."""
    shared = [field for field in prediction_schema(num_keypoints) if field.name not in ("found", "num_people")]
    return pa.schema([*shared, ("version", pa.string())])


def predict(config: Config, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Ask every member about every image, fuse, and write `predictions.parquet`, `submission.csv` and `predict.json`.

    Images that a stopped run finished, with the same members and settings, are not asked about again.

    Args:
        config: with finished members in its run folder; a Ray cluster must be running, unless `is_finished`.
        progress: called with (images done, images in all).

    Returns:
        `images`, `members`, `filled`, `unusable`, `submission`, `weights`; `predicted`: the images asked about now,
        `seconds` it took and `start_up_s` before the first of them was begun.

    Raises:
        InputError: a member is not trained, there is no image to predict, or nobody was found anywhere.
    """
    task = _Task(config)
    config.keep()
    began = time.time()
    first_began, done, missing = time.time(), 0, task.missing()
    for finished in _ask_until_done(task, missing):
        first_began = finished["began"] if done == 0 else min(first_began, finished["began"])
        done = min(done + finished["images"], len(missing))
        if progress:
            progress(done, len(missing))
    figures = {
        "predicted": len(missing),
        "seconds": time.time() - first_began,
        "start_up_s": max(0.0, first_began - began),
    }
    for target, asked in task.targets.items():
        _merge(task, asked, config.path(target))
    return {**write_fused(config, figures), **figures}


def is_finished(config: Config) -> bool:
    """Whether `predict` would ask no member about any image, so that it needs no cluster.

    Raises:
        InputError: as `predict`.
    """
    return not _Task(config).missing()


class _Task:
    """What is to be predicted, by whom, and where its parts lie."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.form = _form(config)
        self.targets = {"predictions.parquet": list_asked(config, self.form)}
        self.names = [member.name for member in config.train.members]
        for name in self.names:
            if not exists(join(config.member_dir(name), "model_final.pth")):
                raise InputError(f"{config.member_dir(name)}: member {name} is not trained; run train first")
        self.skeleton = _skeleton(config, self.form)
        for name in self.names:
            _check_member(config, name, self.skeleton)
        _given_weights(config, self.names, self.skeleton)  # refuses a wrong name now
        if config.predict.weights == "fitted":
            if config.predict.images == "store:val":
                raise InputError(
                    "predict.weights: fitted weights are fitted on store:val, so scores there would flatter them: "
                    "predict other images, or give weights"
                )
            self.targets["val_predictions.parquet"] = _list_store(config, "val")
        self.folder = config.path("predictions", self._digest())

    def _digest(self) -> str:
        """Of what decides a part besides its images: members, skeleton and settings."""
        section = self.config.predict
        decides: list[Any] = [section.tta, _lower_threshold(self.config), self.skeleton.names]
        for name in self.names:
            files = (join(self.config.member_dir(name), file) for file in ("model_final.pth", "config.yaml"))
            decides.append([name, *(hashlib.sha256(read_bytes(file)).hexdigest() for file in files)])
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]

    def missing(self) -> list[Asked]:
        """The images that no part holds; at the end those that could not be used, which are tried again."""
        known: dict[tuple[str, str], bool] = {}
        for table in _read_parts(self.folder, ["image", "version", "reason"]):
            for image, version, reason in zip(*(column.to_pylist() for column in table.columns), strict=True):
                known[image, version] = known.get((image, version), False) or not reason
        everything = dict.fromkeys(itertools.chain(*self.targets.values()))
        todo = [asked for asked in everything if not known.get((asked.image, asked.version), False)]
        return sorted(todo, key=lambda asked: (asked.image, asked.version) in known)


def _check_member(config: Config, name: str, skeleton: Skeleton) -> None:
    """Refuse a member of another number of keypoints, and mirrored pictures for one that never saw any."""
    path = join(config.member_dir(name), "config.yaml")
    cfg = yaml.safe_load(read_bytes(path))
    count = cfg.get("MODEL", {}).get("ROI_KEYPOINT_HEAD", {}).get("NUM_KEYPOINTS", len(skeleton))
    if count != len(skeleton):
        raise InputError(f"{path}: member {name} predicts {count} keypoints, {len(skeleton)} are asked for")
    if "flip" in config.predict.tta and cfg.get("INPUT", {}).get("RANDOM_FLIP") == "none":
        # On the demo's members it doubled the error: mirrored pictures are strange to them.
        raise InputError(f"predict.tta: flip: member {name} was trained without flips; take flip out, or train with it")


def _is_found(scores: FloatArray, config: Config) -> BoolArray:
    """Who a member is sure of; a score of 0 is nobody's, whatever the threshold."""
    return np.asarray((scores > 0) & (scores >= config.predict.score_threshold))


def _lower_threshold(config: Config) -> float:
    return min(config.predict.score_threshold, config.predict.fallback_threshold)


def list_asked(config: Config, form: SubmissionForm | None) -> list[Asked]:
    """The images that `predict.images` names, in the form's order if that decides.

    Raises:
        InputError: nothing is named, a list is no list, or a name stands in it twice or leaves the folder.
    """
    source = config.predict.images
    if source in ("store:train", "store:val"):
        return _list_store(config, source.removeprefix("store:"))
    if source is not None and source.lower().endswith((".txt", ".csv")):
        names, folder = _read_list(source), config.data.test_images
    else:
        folder = source or config.input("test_images")
        names = list(form.images) if form and source is None else list_images(folder)
    if not names:
        raise InputError(f"{source or 'data.test_images: ' + str(folder)}: names no picture")
    odd = [name for name in names if "\0" in name]
    if odd:
        raise InputError(f"{source or 'the form'}: {odd[0]!r:.80} holds a NUL, which no file's name does")
    double = [name for name, count in Counter(names).items() if count > 1]
    if double:
        raise InputError(f"{source}: {double[0]} stands in it {names.count(double[0])} times: name it once")
    whole = {name for name in names if name.startswith("/") or "://" in name}
    if folder is None and len(whole) < len(names):
        raise InputError(f"{source}: names files of a folder: set data.test_images, or list whole paths")
    climbing = [name for name in names if ".." in name.split("/")]
    if climbing:
        raise InputError(f"{source or 'the form'}: {climbing[0]}: leaves the image folder")
    paths = {name: name if name in whole else join(str(folder), name) for name in names}
    infos = file_infos(folder) if folder and len(whole) < len(names) else {}
    with ThreadPoolExecutor() as pool:
        infos |= dict(zip(whole, pool.map(_file_info, whole), strict=True))
    return [Asked(name, path, None, _version(infos.get(name))) for name, path in paths.items()]


def _file_info(path: str) -> pafs.FileInfo:
    fs, inner = filesystem(path)
    return fs.get_file_info(inner)


def _version(info: pafs.FileInfo | None) -> str:
    """What tells a file from another of the same name: its size and time."""
    return f"{info.size}:{info.mtime_ns}" if info and info.type == pafs.FileType.File else "missing"


def _read_list(path: str) -> list[str]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: a list of image names is expected") from error
    if not path.lower().endswith(".csv"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if "image" not in (rows.fieldnames or ()):
            raise InputError(f"{path}: row 1: there is no column `image`")
        return [row["image"].strip() for row in rows if row["image"]]
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as CSV: {one_line(error)}; is a quote left open?") from error


def _list_store(config: Config, split: str) -> list[Asked]:
    """The unaugmented pictures of a store's split."""
    _, parts = select_parts(config.path("store"), split=split, recipes=None if split == "val" else ["Original"])
    asked: dict[str, Asked] = {}
    for part in parts:
        for row, source in enumerate(read_parquet(part, ["source"])["source"].to_pylist()):
            # A part's name holds a digest of what it was made of; a second copy of a source is passed over.
            asked.setdefault(source, Asked(source, part, row, f"{part.rpartition('/')[2]}:{row}"))
    if not asked:
        raise InputError(f"{config.path('store')}: its split {split} is empty: raise split.fraction and augment again")
    return list(asked.values())


def _read_parts(folder: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The tables of the finished parts, in the order of their names."""
    if not exists(folder):
        return
    names = [name for name in sorted(file_sizes(folder)) if name.endswith(".parquet") and not name.startswith(".")]
    with ThreadPoolExecutor() as pool:
        mend = "delete it and run predict again"
        yield from pool.map(lambda name: read_parquet(join(folder, name), columns, mend), names)


def _ask_until_done(task: _Task, missing: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """Ask with a new pool for what a lost one left, as long as each finishes something.

    A node that is lost can end a whole Ray Data run: calls to its actors fail several times a second, and their retries
    cannot be without bound, because an image that kills its actor would hang the run.
    """
    section = task.config.predict
    if missing and not fits_a_node(task.config, section.cpus_per_actor, section.gpus_per_actor):
        raise InputError(
            f"no node has {section.cpus_per_actor:g} CPUs and {section.gpus_per_actor:g} GPUs for an actor: lower "
            "predict.cpus_per_actor or predict.gpus_per_actor, or set cluster.num_cpus and num_gpus if it grows"
        )
    while missing:
        try:
            yield from _ask_members(task, missing)
            return
        except ray.exceptions.RayError as error:
            left = task.missing()
            if left and ("InputError: " in str(error) or len(left) >= len(missing)):
                raise InputError(
                    f"{task.folder}: predicting stopped with {len(left)} images left, first {left[0].image}: "
                    f"{reason_of(error)}; what is finished is kept, run predict again to go on"
                ) from error
            missing = left


def _ask_members(task: _Task, missing: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    section = task.config.predict
    # Batches are cut from the images' order, so a run that was stopped makes the same ones again.
    batches = [missing[i : i + section.batch_size] for i in range(0, len(missing), section.batch_size)]
    smallest, largest = section.actors
    with ray_data_settings(), warnings.catch_warnings(action="ignore", category=RayDeprecationWarning):
        rows = ray.data.from_items(
            [{"batch": pickle.dumps(batch)} for batch in batches], override_num_blocks=len(batches)
        ).map(
            Predictor,
            fn_constructor_args=(task.config.to_dict(), task.names, task.skeleton.names, task.folder),
            # Few at a time, so that the last batches spread over the pool.
            compute=ray.data.ActorPoolStrategy(
                min_size=min(smallest, len(batches)),
                max_size=min(largest, len(batches)),
                max_tasks_in_flight_per_actor=2,
            ),
            num_cpus=section.cpus_per_actor,
            num_gpus=section.gpus_per_actor or None,
            max_task_retries=3,  # without end by default; Ray 2.60 calls this way to set it deprecated and has no other
        )
    yield from rows.iter_rows()


class Predictor:
    """Actor: all members, loaded once; writes what they say of a batch of images as a part."""

    def __init__(
        self, values: dict[str, Any], names: Sequence[str], keypoint_names: Sequence[str], folder: str
    ) -> None:
        self.config = Config.model_validate(values)
        self.folder = folder
        section, skeleton = self.config.predict, self.config.skeleton
        self.skeleton = skeleton_for(keypoint_names, skeleton.flip_pairs, skeleton.sigmas)
        device = "cuda" if section.gpus_per_actor and torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(max(1, round(section.cpus_per_actor)))
        self.members = {name: load_member(self.config.member_dir(name), device, keypoint_names) for name in names}
        self.store_rows = RowReader(["image"])
        for model, _ in self.members.values():
            heads: Any = model.roi_heads
            heads.box_predictor.test_score_thresh = _lower_threshold(self.config)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Write the part of a batch; its name says what is in it, so a repeated batch replaces itself."""
        began = time.time()
        batch: list[Asked] = pickle.loads(item["batch"])  # noqa: S301  (made by our own driver)
        table = pa.Table.from_pylist(list(self.rows(batch)), schema=_part_schema(len(self.skeleton)))
        name = hashlib.sha256(json.dumps([[one.image, one.version] for one in batch]).encode()).hexdigest()[:16]
        write_parquet(join(self.folder, f"{name}.parquet"), table)
        return {"images": len(batch), "began": began}

    def rows(self, batch: Sequence[Asked]) -> Iterator[dict[str, Any]]:
        """Rows of `_part_schema` for each image and member."""
        pictures: dict[Asked, _Picture] = {}
        reasons: dict[Asked, str] = {}
        for asked in batch:
            try:
                pictures[asked] = self._open(asked)
            except InputError as error:
                reasons[asked] = str(error)
        people = {
            name: dict(zip(pictures, self.people(name, list(pictures.values())), strict=True)) for name in self.members
        }
        nobody = (0.0, np.full(4, np.nan), np.full(3 * len(self.skeleton), np.nan))
        for asked in batch:
            told = {"image": asked.image, "version": asked.version, "width": 0, "height": 0}
            told["reason"] = reasons.get(asked, "")
            if asked in pictures:
                told |= {"width": pictures[asked].width, "height": pictures[asked].height}
            for name in self.members:
                for score, box, keypoints in people[name].get(asked) or [nobody]:
                    yield {
                        **told, "member": name, "score": score, "bbox_xyxy": box, "keypoints": keypoints.ravel(),
                    }  # fmt: skip

    def people(self, member: str, pictures: Sequence["_Picture"]) -> list[list[Person]]:
        """Whom a member finds in each picture, best first, joined over the views that `predict.tta` asks for."""
        section = self.config.predict
        model, cfg = self.members[member]
        views = []
        for scale in (1.0, *(one for one in section.tta if not isinstance(one, str))):
            for mirrored in (False, True) if "flip" in section.tta else (False,):
                records = [picture.record(cfg, scale, mirrored, self.skeleton) for picture in pictures]
                views.append(
                    [
                        self._restored(people, record, mirrored)
                        for people, record in zip(_ask(model, records), records, strict=True)
                    ]
                )
        least = _lower_threshold(self.config)
        return [
            [person for person in join_views(of_picture)[:PEOPLE_KEPT] if person[0] >= least]
            for of_picture in zip(*views, strict=True)
        ]

    def _restored(self, people: list[Person], record: dict[str, Any], mirrored: bool) -> list[Person]:
        return [mirror(person, record["width"], self.skeleton) for person in people] if mirrored else people

    def _open(self, asked: Asked) -> "_Picture":
        row = asked.row
        picture = _Picture(read_bytes(asked.path) if row is None else self.store_rows.read(asked.path, row)["image"])
        _, cfg = next(iter(self.members.values()))
        picture.record(cfg, 1.0, False, self.skeleton)  # now, so that what cannot be decoded is told here
        return picture


class _Picture:
    """An image's content, as the models want it; each size is made once and shared by the members."""

    def __init__(self, content: bytes) -> None:
        self.content: Any = content
        self.records: dict[tuple[int, int], dict[str, Any]] = {}
        if not self._is_plain_jpeg(content):
            self._decode(content)

    def _is_plain_jpeg(self, content: bytes) -> bool:
        """Whether the bytes can be decoded at a smaller scale; that they are whole shows when they are."""
        try:
            with PIL.Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
                self.width, self.height = picture.size
                return picture.mode in ("L", "RGB") and picture.getexif().get(PIL.ExifTags.Base.Orientation, 1) == 1
        except Exception:  # whatever is wrong, `decode` says it
            return False

    def _decode(self, content: bytes) -> None:
        picture = decode(content)[0]
        self.content = np.ascontiguousarray(picture[..., :3])
        self.height, self.width = picture.shape[:2]

    def record(self, cfg: Any, scale: float, mirrored: bool, skeleton: Skeleton) -> dict[str, Any]:
        """The model's input at `scale` times the cfg's test size.

        Raises:
            InputError: the picture cannot be decoded.
        """
        size = round(cfg.INPUT.MIN_SIZE_TEST * scale), round(cfg.INPUT.MAX_SIZE_TEST * scale)
        if size not in self.records:
            scaled = cfg.clone()
            scaled.INPUT.MIN_SIZE_TEST, scaled.INPUT.MAX_SIZE_TEST = size
            try:
                self.records[size] = to_dataset_dict(self._row(), scaled, skeleton, rng=None)
            except ValueError:  # of the JPEG decoder
                self._decode(self.content)
                self.records[size] = to_dataset_dict(self._row(), scaled, skeleton, rng=None)
        record = self.records[size]
        return {**record, "image": record["image"].flip(2)} if mirrored else record

    def _row(self) -> dict[str, Any]:
        return {"image": self.content, "width": self.width, "height": self.height}


def _ask(model: torch.nn.Module, records: Sequence[dict[str, Any]]) -> list[list[Person]]:
    """The people in each record. Only pictures of one size go in together: none is padded for another's sake."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, record in enumerate(records):
        by_shape.setdefault(tuple(record["image"].shape), []).append(i)
    people: dict[int, list[Person]] = {}
    for numbers in by_shape.values():
        with torch.inference_mode():
            outputs = model([records[i] for i in numbers])
        people |= {i: read_instances(output["instances"]) for i, output in zip(numbers, outputs, strict=True)}
    return [people[i] for i in range(len(records))]


def mirror(person: Person, width: int, skeleton: Skeleton) -> Person:
    """The person in the picture mirrored left to right, `width` pixels wide; left and right keypoints change places."""
    score, box, keypoints = person
    swapped = keypoints[skeleton.flip_indices]
    swapped[:, 0] = width - 1 - swapped[:, 0]
    return score, np.array([width - 1 - box[2], box[1], width - 1 - box[0], box[3]]), swapped


def join_views(views: Sequence[Sequence[Person]]) -> list[Person]:
    """The people seen in several views of one picture, best first, each the mean over the views that saw it.

    From the best score down, a person takes from every other view the one that overlaps most, if by
    `SAME_PERSON_IOU` or more.
    """
    if len(views) == 1:
        return list(views[0])
    left = [list(view) for view in views]
    joined = []
    while any(left):
        person = max(itertools.chain(*left), key=lambda one: one[0])
        group = []
        for view in left:
            overlaps = [_iou(person[1], other[1]) for other in view]
            if overlaps and max(overlaps) >= SAME_PERSON_IOU:
                group.append(view.pop(int(np.argmax(overlaps))))
        scores, boxes, keypoints = zip(*group, strict=True)
        joined.append((float(np.mean(scores)), np.mean(boxes, axis=0), np.mean(keypoints, axis=0)))
    return sorted(joined, key=lambda one: -one[0])


def _iou(a: FloatArray, b: FloatArray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    total = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    # A box is at least its own; one without an area has no overlap to divide by.
    return 1.0 if np.array_equal(a, b) else shared / total if total > 0 else 0.0


def _merge(task: _Task, asked: Sequence[Asked], target: str) -> None:
    """Write the chosen person of every image and member, in the order of `asked` and the members."""
    names, section = task.names, task.config.predict
    table = _rows_asked(task.folder, asked)
    row_of = {(one.image, one.version): i for i, one in enumerate(asked)}
    keys = zip(table["image"].to_pylist(), table["version"].to_pylist(), strict=True)
    images = np.array([row_of[key] for key in keys])
    answers = images * len(names) + np.array([names.index(name) for name in table["member"].to_pylist()])
    scores = table["score"].to_numpy()
    chosen = dict(zip(answers.tolist(), range(len(answers)), strict=True))
    people = np.flatnonzero(scores > 0)
    boxes = np.asarray(table["bbox_xyxy"].combine_chunks().flatten()).reshape(-1, 4)
    scenes, cameras, frames = zip(*(parse_name(one.image) for one in asked), strict=True)
    best, several, changed = choose_people(
        images[people].tolist(), boxes[people], scores[people], scenes, cameras, frames,
        asked=answers[people].tolist(), rule=section.person, threshold=section.score_threshold,
    )  # fmt: skip
    chosen |= {int(answers[row]): row for row in people[best].tolist()}
    if len(chosen) != len(asked) * len(names):
        raise InputError(f"{task.folder}: parts are missing: run predict again")
    order = [chosen[answer] for answer in range(len(chosen))]
    counts = np.bincount(answers[people], minlength=len(chosen)).astype(np.int32)
    picked = table.take(order).drop_columns(["version"])
    picked = picked.append_column("found", pa.array(_is_found(scores[order], task.config)))
    picked = picked.append_column("num_people", pa.array(counts))
    schema = prediction_schema(len(task.skeleton))
    people_note = {"rule": section.person, "several": several, "other_than_best_score": changed}
    note = json.dumps({"people": people_note, "keypoints": task.skeleton.names})
    write_parquet(target, picked.select(schema.names).cast(schema).replace_schema_metadata({_NOTE_KEY: note}))


def _rows_asked(folder: str, asked: Sequence[Asked]) -> pa.Table:
    """The parts' rows of these images, each image's of one part: of one that could use it, if there is any."""
    wanted = {(one.image, one.version) for one in asked}
    tables = list(_read_parts(folder))
    keys = [list(zip(*(t[name].to_pylist() for name in ("image", "version")), strict=True)) for t in tables]
    part_of: dict[tuple[str, str], int] = {}
    for number, table in enumerate(tables):
        for key, reason in zip(keys[number], table["reason"].to_pylist(), strict=True):
            if key in wanted and (key not in part_of or not reason):
                part_of[key] = number
    return pa.concat_tables(
        [table.filter(pa.array([part_of.get(key) == i for key in keys[i]])) for i, table in enumerate(tables)]
    )


def _form(config: Config) -> SubmissionForm | None:
    return read_form(config.data.sample_submission) if config.data.sample_submission else None


def _skeleton(config: Config, form: SubmissionForm | None) -> Skeleton:
    """The members' skeleton: the store's, if it is there; otherwise the form's."""
    store = config.path("store")
    names = read_manifest(store).skeleton if form is None or exists(join(store, "manifest.json")) else form.names
    skeleton = config.skeleton_of(names)
    if form is not None:
        check_form(form, skeleton)
    return skeleton


class _Predictions:
    """A merged file of predictions as arrays: M members, N images, K keypoints."""

    def __init__(self, config: Config, skeleton: Skeleton, file: str = "predictions.parquet") -> None:
        path = config.path(file)
        if not exists(path):
            raise InputError(f"{path}: there are no predictions; run predict first")
        table = read_parquet(path, mend="delete it and run predict again").combine_chunks()
        try:
            note = json.loads((table.schema.metadata or {})[_NOTE_KEY])
            keypoints, self.people = tuple(note["keypoints"]), note["people"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: another program wrote it; delete it and run predict again") from error
        if keypoints != skeleton.names:
            raise InputError(f"{path}: holds other keypoints, or the same in another order: run predict again")
        if not table.schema.equals(prediction_schema(len(skeleton))):
            raise InputError(f"{path}: its columns are not those of predictions; delete it and run predict again")
        self.members = list(dict.fromkeys(table["member"].to_pylist()))
        every = len(self.members)
        self.images = table["image"].to_pylist()[::every]
        shape = (len(self.images), every)
        flat = np.asarray(table["keypoints"].combine_chunks().flatten())
        self.keypoints = flat.reshape(*shape, len(skeleton), 3).swapaxes(0, 1)
        self.scores = table["score"].to_numpy().reshape(shape).T
        self.reasons = table["reason"].to_pylist()[::every]
        self.sizes = list(zip(*(table[name].to_pylist()[::every] for name in ("width", "height")), strict=True))
        self.scenes, self.cameras, self.frames = zip(*map(parse_name, self.images), strict=True)

    def fuse(self, config: Config, members: Sequence[int], weights: FloatArray | None) -> Fusion:
        """One answer an image of some members, kept inside its frame: filling and smoothing may lead out of it."""
        section = config.predict
        fusion = fuse_clips(
            self.keypoints[list(members)], self.scores[list(members)], self.scenes, self.cameras, self.frames,
            thresholds=(section.score_threshold, section.fallback_threshold), method=section.fusion, weights=weights,
            reject_sigmas=section.reject_sigmas, missing=section.missing, smooth_frames=section.smooth_frames,
            mean_pose=np.zeros((self.keypoints.shape[2], 2)),
        )  # fmt: skip
        limits = np.array([(w - 1, h - 1) if w and h else (np.inf, np.inf) for w, h in self.sizes])[:, None]
        xy = fusion.keypoints[..., :2]
        inside = np.where(np.isfinite(limits), np.clip(xy, 0, limits), xy)
        return replace(fusion, keypoints=np.concatenate([inside, fusion.keypoints[..., 2:]], axis=2))


def _given_weights(config: Config, members: Sequence[str], skeleton: Skeleton) -> FloatArray | None:
    """The config's weights (M, K); None if it gives none."""
    given = config.predict.weights
    if isinstance(given, str):
        return None
    weights = np.ones((len(members), len(skeleton)))
    for member, value in given.items():
        if member not in members:
            raise InputError(f"predict.weights: {member}: is no member; train.members has {', '.join(members)}")
        of_keypoints = value if isinstance(value, dict) else dict.fromkeys(skeleton.names, value)
        for name, weight in of_keypoints.items():
            if name not in skeleton.names:
                raise InputError(f"predict.weights: {member}: {name}: is no keypoint of the labels")
            weights[members.index(member), skeleton.names.index(name)] = weight
    if not weights.any(axis=0).all():
        nobody = skeleton.names[int(weights.any(axis=0).argmin())]
        raise InputError(f"predict.weights: every member has weight 0 for {nobody}: give one of them some")
    return weights


def _weights(config: Config, members: Sequence[str], skeleton: Skeleton) -> tuple[FloatArray | None, dict[str, Any]]:
    """The weights (M, K) to fuse with, None for equal ones, and what to tell of them."""
    if config.predict.weights != "fitted":
        return _given_weights(config, members, skeleton), {
            "chosen": "given" if isinstance(config.predict.weights, dict) else "equal"
        }
    known = _Predictions(config, skeleton, "val_predictions.parquet")
    if known.members != list(members):
        raise InputError("predict.weights: the validation scenes were predicted by other members: run predict again")
    truth_of = _store_truth(config, "val", skeleton)
    if not truth_of.keys() >= set(known.images):
        raise InputError("predict.weights: the store holds other validation scenes now: run predict again")
    section = config.predict
    fitted = fit_weights(
        known.keypoints, trusted(known.scores, (section.score_threshold, section.fallback_threshold))[0],
        np.stack([truth_of[image] for image in known.images]), known.scenes,
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


def _store_truth(config: Config, split: str, skeleton: Skeleton) -> dict[str, FloatArray]:
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
        InputError: there are no predictions, or nobody was found in any image.
    """
    form = _form(config)
    skeleton = _skeleton(config, form)
    predictions = _Predictions(config, skeleton)
    if not (predictions.scores > 0).any():
        raise InputError("nobody was found in any image: train longer or lower predict.fallback_threshold")
    weights, told = _weights(config, predictions.members, skeleton)
    fusion = predictions.fuse(config, range(len(predictions.members)), weights)
    columns = form.columns if form else ("image", *skeleton.columns)
    if form is None or config.predict.images is not None:
        form = SubmissionForm(tuple(predictions.images), columns)
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
    summary = {"images": len(predictions.images), "members": predictions.members}
    found = _is_found(predictions.scores, config)
    by_member = {
        name: {"found": int(found[i].sum()), "rejected_points": fusion.rejected[i]}
        for i, name in enumerate(predictions.members)
    }
    fallbacks = Counter(re.sub(r"^frame \d+$", "near frame", row["how"]) for row in filled)
    details = {
        **summary, "by_member": by_member, "people": predictions.people, "weights": told, "fallbacks": dict(fallbacks),
        "filled": filled, "unusable": unusable,
    }  # fmt: skip
    path = config.path("predict.json")
    if figures["predicted"] <= len(unusable) and exists(path):  # those alone were tried again
        figures = read_json(path, "delete this file").get("took", figures)
    details["took"] = dict(figures)
    write_bytes(path, (json.dumps(details, indent=1, ensure_ascii=False) + "\n").encode())
    return {
        **summary, "fallbacks": dict(fallbacks), "filled": len(filled), "unusable": len(unusable),
        "people": predictions.people, "weights": told["chosen"], "submission": target,
    }  # fmt: skip


def evaluate(config: Config, submission: str | None = None) -> dict[str, Any]:
    """Score the submission, and each member alone, against the truth; writes `evaluation.json`.

    The truth is `data.truth`, or the store's labels when `predict.images` is one of its splits.

    Args:
        submission: another submission CSV to score instead of the run's predictions; nothing is written then.

    Returns:
        The content of `evaluation.json`: the figures of `evaluate_keypoints` for the ensemble, `worst`, `filled`, and
        `members` with the same figures for each.

    Raises:
        InputError: no truth, no predictions, or an invalid submission.
    """
    truth_of, skeleton = _truth(config)
    if submission is not None:
        # The run's own has the form's rows only if that decided what was predicted.
        whole = _form(config) if config.predict.images is None else None
        form = whole or read_form(submission)
        lacking = [] if whole or config.predict.images is not None else sorted(set(truth_of) - set(form.images))
        if lacking:
            raise InputError(f"{submission}: {lacking[0]} of data.truth is missing, {len(lacking)} in all: add its row")
        zeros = config.predict.missing == "zeros"
        xy = read_submission(submission, form, skeleton, size=_frame_sizes(config, form.images), allow_zeros=zeros)
        keypoints = np.concatenate([xy, np.ones((*xy.shape[:2], 1))], axis=2)
        return _figures(form.images, keypoints, truth_of, skeleton, None, None)
    predictions = _Predictions(config, skeleton)
    weights, _ = _weights(config, predictions.members, skeleton)
    results = {}
    everyone = list(range(len(predictions.members)))
    for name, members in [("", everyone), *((name, [i]) for i, name in enumerate(predictions.members))]:
        fusion = predictions.fuse(config, members, weights if members == everyone else None)
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
        skeleton = _skeleton(config, None)
        return _store_truth(config, source.removeprefix("store:"), skeleton), skeleton
    section, form, path = config.skeleton, _form(config), config.input("truth")
    labels = load_annotations(path, flip_pairs=section.flip_pairs, sigmas=section.sigmas)
    if form is not None or exists(config.path("store", "manifest.json")):
        labels = in_order_of(labels, _skeleton(config, form), path)
    return dict(zip(labels.images, labels.keypoints, strict=True)), labels.skeleton


def _frame_sizes(config: Config, images: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Width and height of the images that can be opened."""
    folder = config.data.test_images
    if folder is None:
        return {}

    def look(image: str) -> tuple[int, int]:
        try:
            picture = _Picture(read_bytes(join(folder, image)))
        except InputError:
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
        raise InputError("data.truth: names none of the predicted images")
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
