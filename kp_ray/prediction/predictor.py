"""The Ray actor that holds all members and predicts batches of images."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from detectron2.config import CfgNode

from kp_ray.cluster.errors import error_row, raise_error_row
from kp_ray.config.schema import Config
from kp_ray.errors import DataError, KpRayError
from kp_ray.fingerprint import digest
from kp_ray.images import decode, probe
from kp_ray.keypoints import Skeleton, skeleton_for
from kp_ray.models.decoding import Detection, merge_views, mirror_detection, read_instances
from kp_ray.models.inputs import to_dataset_dict
from kp_ray.models.weights import load_member
from kp_ray.prediction.images import ImageRef
from kp_ray.prediction.parts import lowest_threshold, part_schema
from kp_ray.storage import join, read_bytes, write_parquet
from kp_ray.store.read import RowReader

MAX_PEOPLE = 5
"""Maximum number of people kept per member and image, by score; `predict.person` chooses among them."""


@dataclass(frozen=True)
class BatchResult:
    """Result of a batch, as a row of Ray Data.

    Errors are returned as fields because Ray keeps only the text of an actor's exception.

    Attributes:
        num_images: number of images whose part is written.
        began: time at which the batch was begun, in seconds since the epoch.
        error_class, error_message: of the `KpRayError` that stopped the batch, or "" if there is none.
    """

    num_images: int
    began: float
    error_class: str = ""
    error_message: str = ""

    def raise_error(self) -> None:
        """Raise the error that stopped the batch, if there is one."""
        raise_error_row(asdict(self))


def encode_batch(refs: Sequence[ImageRef]) -> str:
    """Convert a batch to text for a row of Ray Data."""
    return json.dumps([asdict(ref) for ref in refs])


class Predictor:
    """Load all members once and write one part per batch of images; an actor of Ray Data."""

    def __init__(
        self, values: dict[str, Any], names: Sequence[str], keypoint_names: Sequence[str], folder: str
    ) -> None:
        """Load the members; a loading error is stored and returned as the result of every batch.

        Args:
            values: `Config.to_dict()`.
            names: names of the M members.
            keypoint_names: K names, in order.
            folder: folder to which the parts are written.
        """
        self.config = Config.model_validate(values)
        self.folder = folder
        section, skeleton = self.config.predict, self.config.skeleton
        self.skeleton = skeleton_for(keypoint_names, skeleton.flip_pairs, skeleton.sigmas)
        self.store_rows = RowReader(["image"])
        self.members: dict[str, tuple[torch.nn.Module, CfgNode]] = {}
        self.load_error: KpRayError | None = None
        device = "cuda" if section.gpus_per_actor and torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(max(1, round(section.cpus_per_actor)))
        try:
            for name in names:
                self.members[name] = load_member(self.config.member_dir(name), device, keypoint_names)
        except KpRayError as error:
            self.load_error = error
        for model, _ in self.members.values():
            heads: Any = model.roi_heads
            heads.box_predictor.test_score_thresh = lowest_threshold(self.config)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write the part of a batch.

        Args:
            row: `batch` from `encode_batch`.

        Returns:
            The fields of a `BatchResult`.
        """
        began = time.time()
        refs = [ImageRef(**values) for values in json.loads(row["batch"])]
        try:
            if self.load_error is not None:
                raise self.load_error
            self.write_part(refs)
        except KpRayError as error:
            return asdict(BatchResult(0, began, **error_row(error)))
        return asdict(BatchResult(len(refs), began))

    def write_part(self, refs: Sequence[ImageRef]) -> None:
        """Predict a batch and write its part; the file's name is a digest of the images, so a retry replaces it."""
        table = pa.Table.from_pylist(list(self.rows(refs)), schema=part_schema(len(self.skeleton)))
        name = digest([[ref.image, ref.version] for ref in refs])
        write_parquet(join(self.folder, f"{name}.parquet"), table)

    def rows(self, refs: Sequence[ImageRef]) -> Iterator[dict[str, Any]]:
        """Make the rows of `part_schema` for every image and member."""
        images: dict[ImageRef, InputImage] = {}
        reasons: dict[ImageRef, str] = {}
        for ref in refs:
            try:
                images[ref] = self._open(ref)
            except KpRayError as error:
                reasons[ref] = str(error)
        people = {
            name: dict(zip(images, self.find_people(name, list(images.values())), strict=True)) for name in self.members
        }
        nobody = Detection(0.0, np.full(4, np.nan), np.full((len(self.skeleton), 3), np.nan))
        for ref in refs:
            image = images.get(ref)
            shared = {
                "image": ref.image,
                "version": ref.version,
                "width": image.width if image else 0,
                "height": image.height if image else 0,
                "reason": reasons.get(ref, ""),
            }
            for name in self.members:
                for person in people[name].get(ref) or [nobody]:
                    yield {
                        **shared,
                        "member": name,
                        "score": person.score,
                        "bbox_xyxy": person.bbox_xyxy,
                        "keypoints": person.keypoints.ravel(),
                    }

    def find_people(self, member: str, images: Sequence["InputImage"]) -> list[list[Detection]]:
        """Find the people in each image, best first, merged over the views that `predict.tta` asks for."""
        section = self.config.predict
        model, cfg = self.members[member]
        scales = [1.0, *(view for view in section.tta if not isinstance(view, str))]
        views = []
        for scale in scales:
            for is_mirrored in (False, True) if "flip" in section.tta else (False,):
                inputs = [image.model_input(cfg, scale, is_mirrored, self.skeleton) for image in images]
                people = _run_model(model, inputs)
                if is_mirrored:
                    people = [
                        [mirror_detection(person, image.width, self.skeleton) for person in found]
                        for found, image in zip(people, images, strict=True)
                    ]
                views.append(people)
        least = lowest_threshold(self.config)
        return [
            [person for person in merge_views(views_of_image)[:MAX_PEOPLE] if person.score >= least]
            for views_of_image in zip(*views, strict=True)
        ]

    def _open(self, ref: ImageRef) -> "InputImage":
        content = read_bytes(ref.path) if ref.row is None else self.store_rows.read(ref.path, ref.row)["image"]
        image = InputImage(content)
        _, cfg = next(iter(self.members.values()))
        image.model_input(cfg, 1.0, False, self.skeleton)  # an image that cannot be decoded fails here
        return image


class InputImage:
    """An image as the members' input: each size is decoded once and shared by the members.

    Attributes:
        width, height: in pixels, of the upright image.
    """

    def __init__(self, content: bytes) -> None:
        """Read the header of an image file.

        Raises:
            DataError: `content` is not an image file.
        """
        self._picture: Any = content
        self._inputs: dict[tuple[int, int], dict[str, Any]] = {}
        info = probe(content)
        self.width, self.height = info.width, info.height
        if not info.is_upright_jpeg:
            self._decode(content)

    def model_input(self, cfg: CfgNode, scale: float, is_mirrored: bool, skeleton: Skeleton) -> dict[str, Any]:
        """Return the dataset dict of the image at `scale` times the test size of `cfg`.

        Raises:
            DataError: the picture cannot be decoded.
        """
        size = round(cfg.INPUT.MIN_SIZE_TEST * scale), round(cfg.INPUT.MAX_SIZE_TEST * scale)
        if size not in self._inputs:
            scaled = cfg.clone()
            scaled.INPUT.MIN_SIZE_TEST, scaled.INPUT.MAX_SIZE_TEST = size
            try:
                self._inputs[size] = self._resize(scaled, skeleton)
            except DataError:  # `decode` either decodes the JPEG or raises a more precise error
                self._decode(self._picture)
                self._inputs[size] = self._resize(scaled, skeleton)
        model_input = self._inputs[size]
        return {**model_input, "image": model_input["image"].flip(2)} if is_mirrored else model_input

    def _resize(self, cfg: CfgNode, skeleton: Skeleton) -> dict[str, Any]:
        row = {"image": self._picture, "width": self.width, "height": self.height}
        return to_dataset_dict(row, cfg, skeleton, rng=None)

    def _decode(self, content: bytes) -> None:
        picture, _ = decode(content)
        self._picture = np.ascontiguousarray(picture[..., :3])
        self.height, self.width = picture.shape[:2]


def _run_model(model: torch.nn.Module, inputs: Sequence[dict[str, Any]]) -> list[list[Detection]]:
    """Find the people in each input; only inputs of equal size share a batch, so that none is padded."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, model_input in enumerate(inputs):
        by_shape.setdefault(tuple(model_input["image"].shape), []).append(i)
    people: dict[int, list[Detection]] = {}
    for indices in by_shape.values():
        with torch.inference_mode():
            outputs = model([inputs[i] for i in indices])
        people |= {i: read_instances(output["instances"]) for i, output in zip(indices, outputs, strict=True)}
    return [people[i] for i in range(len(inputs))]
