"""The actor that holds all members and predicts batches of images."""

import hashlib
import json
import pickle
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from kp_ray.config.schema import Config
from kp_ray.errors import DataError, KpRayError
from kp_ray.images import decode, probe
from kp_ray.keypoints import Skeleton, skeleton_for
from kp_ray.models.decoding import Detection, merge_views, mirror_detection, read_instances
from kp_ray.models.inputs import to_dataset_dict
from kp_ray.models.weights import load_member
from kp_ray.prediction.images import ImageRef
from kp_ray.prediction.parts import lower_threshold, part_schema
from kp_ray.storage import join, read_bytes, write_parquet
from kp_ray.store.read import RowReader

PEOPLE_KEPT = 5
"""Of a member and image, by score: what `predict.person` chooses from."""


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
            heads.box_predictor.test_score_thresh = lower_threshold(self.config)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Write the part of a batch; its name says what is in it, so a repeated batch replaces itself."""
        began = time.time()
        batch: list[ImageRef] = pickle.loads(item["batch"])  # noqa: S301  (made by our own driver)
        table = pa.Table.from_pylist(list(self.rows(batch)), schema=part_schema(len(self.skeleton)))
        name = hashlib.sha256(json.dumps([[one.image, one.version] for one in batch]).encode()).hexdigest()[:16]
        write_parquet(join(self.folder, f"{name}.parquet"), table)
        return {"images": len(batch), "began": began}

    def rows(self, batch: Sequence[ImageRef]) -> Iterator[dict[str, Any]]:
        """Rows of `part_schema` for each image and member."""
        pictures: dict[ImageRef, _Picture] = {}
        reasons: dict[ImageRef, str] = {}
        for asked in batch:
            try:
                pictures[asked] = self._open(asked)
            except KpRayError as error:
                reasons[asked] = str(error)
        people = {
            name: dict(zip(pictures, self.people(name, list(pictures.values())), strict=True)) for name in self.members
        }
        nobody = Detection(0.0, np.full(4, np.nan), np.full(3 * len(self.skeleton), np.nan))
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

    def people(self, member: str, pictures: Sequence["_Picture"]) -> list[list[Detection]]:
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
        least = lower_threshold(self.config)
        return [
            [person for person in merge_views(of_picture)[:PEOPLE_KEPT] if person.score >= least]
            for of_picture in zip(*views, strict=True)
        ]

    def _restored(self, people: list[Detection], record: dict[str, Any], mirrored: bool) -> list[Detection]:
        return [mirror_detection(person, record["width"], self.skeleton) for person in people] if mirrored else people

    def _open(self, asked: ImageRef) -> "_Picture":
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
        info = probe(content)
        self.width, self.height = info.width, info.height
        if not info.is_upright_jpeg:
            self._decode(content)

    def _decode(self, content: bytes) -> None:
        picture = decode(content)[0]
        self.content = np.ascontiguousarray(picture[..., :3])
        self.height, self.width = picture.shape[:2]

    def record(self, cfg: Any, scale: float, mirrored: bool, skeleton: Skeleton) -> dict[str, Any]:
        """The model's input at `scale` times the cfg's test size.

        Raises:
            DataError: the picture cannot be decoded.
        """
        size = round(cfg.INPUT.MIN_SIZE_TEST * scale), round(cfg.INPUT.MAX_SIZE_TEST * scale)
        if size not in self.records:
            scaled = cfg.clone()
            scaled.INPUT.MIN_SIZE_TEST, scaled.INPUT.MAX_SIZE_TEST = size
            try:
                self.records[size] = to_dataset_dict(self._row(), scaled, skeleton, rng=None)
            except DataError:  # `decode` tells what a damaged JPEG lacks, or decodes it
                self._decode(self.content)
                self.records[size] = to_dataset_dict(self._row(), scaled, skeleton, rng=None)
        record = self.records[size]
        return {**record, "image": record["image"].flip(2)} if mirrored else record

    def _row(self) -> dict[str, Any]:
        return {"image": self.content, "width": self.width, "height": self.height}


def _ask(model: torch.nn.Module, records: Sequence[dict[str, Any]]) -> list[list[Detection]]:
    """The people in each record. Only pictures of one size go in together: none is padded for another's sake."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, record in enumerate(records):
        by_shape.setdefault(tuple(record["image"].shape), []).append(i)
    people: dict[int, list[Detection]] = {}
    for numbers in by_shape.values():
        with torch.inference_mode():
            outputs = model([records[i] for i in numbers])
        people |= {i: read_instances(output["instances"]) for i, output in zip(numbers, outputs, strict=True)}
    return [people[i] for i in range(len(records))]
