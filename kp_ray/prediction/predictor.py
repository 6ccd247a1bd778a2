"""The Ray Data actor that holds all members and predicts batches of decoded images."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from detectron2.config import CfgNode

from kp_ray.cluster.errors import error_row, raise_error_row
from kp_ray.config.schema import Config
from kp_ray.errors import DivergedError, KpRayError
from kp_ray.fingerprint import digest
from kp_ray.keypoints import skeleton_for
from kp_ray.models.decoding import Detection, detect_in_inputs, merge_views, mirror_detection
from kp_ray.models.precision import resolve_precision, set_precision, set_tf32
from kp_ray.models.weights import load_member
from kp_ray.prediction.decode import InputSize
from kp_ray.prediction.parts import part_schema
from kp_ray.prediction.settings import check_precision, detections_per_image, lowest_threshold, view_scales
from kp_ray.storage import join, write_parquet

RESULT_SCHEMA = pa.schema(
    [
        ("num_images", pa.int64()),
        ("began", pa.float64()),
        ("device_and_precision", pa.string()),
        ("error_class", pa.string()),
        ("error_message", pa.string()),
    ]
)
"""Columns of the row that an actor returns per batch: the fields of `BatchResult`."""


@dataclass(frozen=True)
class BatchResult:
    """Result of a batch, as a row of Ray Data.

    Errors are returned as fields, because Ray keeps only the text of an actor's exception.

    Attributes:
        num_images: number of images in the part that was written.
        began: Unix time of the batch's start, in seconds.
        device_and_precision: device and precision of the actor, e.g. "cuda, bf16".
        error_class, error_message: the `KpRayError` that stopped the batch; "" if there is none.
    """

    num_images: int
    began: float
    device_and_precision: str
    error_class: str = ""
    error_message: str = ""

    def raise_if_failed(self) -> None:
        """Raise the error that stopped the batch, if there is one."""
        raise_error_row(asdict(self))


class Predictor:
    """Load all members once and write one part per batch of decoded images; an actor of Ray Data."""

    def __init__(
        self,
        values: dict[str, Any],
        members: Mapping[str, str],
        keypoint_names: Sequence[str],
        folder: str,
        has_gpu: bool,
    ) -> None:
        """Load the members. If that fails, every batch returns the error.

        Args:
            values: the run's configuration, as `Config.to_dict()` returns it.
            members: folder of each of the M members, by name.
            keypoint_names: K names, in order.
            folder: folder to which the parts are written.
            has_gpu: whether Ray gave the actor a GPU. If torch finds no GPU, the actor computes on CPUs.
        """
        self.config = Config.model_validate(values)
        self.folder = folder
        section, skeleton = self.config.predict, self.config.skeleton
        self.skeleton = skeleton_for(keypoint_names, skeleton.flip_pairs, skeleton.sigmas)
        self.members: dict[str, tuple[torch.nn.Module, CfgNode]] = {}
        self.load_error: KpRayError | None = None
        device = "cuda" if has_gpu and torch.cuda.is_available() else "cpu"
        self.device_and_precision = device
        if device == "cpu":
            torch.set_num_threads(max(1, round(section.cpus_per_actor)))
        try:
            check_precision(self.config, has_gpu=device == "cuda")
            precision = resolve_precision(section.precision, device)
            if device == "cuda":
                set_tf32(precision, deterministic=False)
            self.device_and_precision = f"{device}, {precision}"
            for name, member_folder in members.items():
                model, cfg = load_member(member_folder, device, keypoint_names)
                set_precision(model, device, precision)
                heads: Any = model.roi_heads
                heads.box_predictor.test_score_thresh = lowest_threshold(self.config)
                heads.box_predictor.test_topk_per_image = detections_per_image(self.config)
                self.members[name] = model, cfg
        except KpRayError as error:
            self.load_error = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write the part of a batch.

        Args:
            batch: the columns of `decode.decoded_schema`.

        Returns:
            One row of `RESULT_SCHEMA`.
        """
        began = time.time()
        try:
            if self.load_error is not None:
                raise self.load_error
            self.write_part(batch)
            result = BatchResult(len(batch), began, self.device_and_precision)
        except KpRayError as error:
            result = BatchResult(0, began, self.device_and_precision, **error_row(error))
        return pa.Table.from_pylist([asdict(result)], schema=RESULT_SCHEMA)

    def write_part(self, batch: pa.Table) -> None:
        """Predict a batch and write its part; the name is a digest of the images, so a retry replaces the part."""
        rows = batch.select(["image", "version", "width", "height", "reason"]).to_pylist()
        images = [InputImage(batch.slice(i, 1)) for i, row in enumerate(rows) if not row["reason"]]
        table = pa.Table.from_pylist(list(self.predict_rows(rows, images)), schema=part_schema(len(self.skeleton)))
        name = digest([[row["image"], row["version"]] for row in rows])
        write_parquet(join(self.folder, f"{name}.parquet"), table)

    def predict_rows(
        self, rows: Sequence[Mapping[str, Any]], images: Sequence["InputImage"]
    ) -> Iterator[dict[str, Any]]:
        """Make the rows of `part_schema` for every image and member.

        Args:
            rows: N rows with `image`, `version` (of the image file), `width`, `height` and `reason` (why the image is
                unusable; "" if it is usable).
            images: the usable images among the rows, in the same order.
        """
        people = {name: iter(self.find_people(name, images)) for name in self.members}
        nobody = Detection(0.0, np.full(4, np.nan), np.full((len(self.skeleton), 3), np.nan))
        for row in rows:
            for name in self.members:
                detections = [] if row["reason"] else next(people[name])
                for detection in detections or [nobody]:
                    yield {
                        **row,
                        "member": name,
                        "score": detection.score,
                        "bbox_xyxy": detection.bbox_xyxy,
                        "keypoints": detection.keypoints.ravel(),
                    }

    def find_people(self, member: str, images: Sequence["InputImage"]) -> list[list[Detection]]:
        """Find the people in each image, best first, merged over the views of `predict.tta`."""
        views = [
            self._predict_view(member, images, scale, is_mirrored)
            for scale in view_scales(self.config)
            for is_mirrored in ((False, True) if "flip" in self.config.predict.tta else (False,))
        ]
        min_score, max_people = lowest_threshold(self.config), detections_per_image(self.config)
        return [
            [person for person in merge_views(views_of_image)[:max_people] if person.score >= min_score]
            for views_of_image in zip(*views, strict=True)
        ]

    def _predict_view(
        self, member: str, images: Sequence["InputImage"], scale: float, is_mirrored: bool
    ) -> list[list[Detection]]:
        """Find the people in each image at `scale` times the member's input size, mirrored or not."""
        _, cfg = self.members[member]
        size = InputSize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST).scale(scale)
        people = self._run_model(member, [image.model_input(size, is_mirrored) for image in images])
        if not is_mirrored:
            return people
        return [
            [mirror_detection(person, image.width, self.skeleton) for person in people_of_image]
            for people_of_image, image in zip(people, images, strict=True)
        ]

    def _run_model(self, member: str, inputs: Sequence[dict[str, Any]]) -> list[list[Detection]]:
        """Find the people in each BGR input, best first.

        Only inputs of the same size form a batch, because inputs of different sizes would be padded.

        Raises:
            DivergedError: the member's heat maps are not finite.
        """
        model, cfg = self.members[member]
        indices_by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, model_input in enumerate(inputs):
            indices_by_shape.setdefault(tuple(model_input["image"].shape), []).append(i)
        people: dict[int, list[Detection]] = {}
        for indices in indices_by_shape.values():
            batch = [inputs[i] for i in indices]
            if cfg.INPUT.FORMAT == "RGB":
                batch = [{**model_input, "image": model_input["image"].flip(0)} for model_input in batch]
            try:
                detections = detect_in_inputs(model, batch, self.config.predict.decode)
            except DivergedError as error:
                raise DivergedError(f"member {member}: {error}") from error
            people |= zip(indices, detections, strict=True)
        return [people[i] for i in range(len(inputs))]


class InputImage:
    """A decoded image as the input of the members' models.

    Attributes:
        width, height: size of the upright image in pixels.
    """

    def __init__(self, row: pa.Table) -> None:
        """Wrap one usable row of `decode.decoded_schema`."""
        self._row = row
        self._pixels: dict[InputSize, torch.Tensor] = {}
        self.width, self.height = row["width"][0].as_py(), row["height"][0].as_py()

    def model_input(self, size: InputSize, is_mirrored: bool) -> dict[str, Any]:
        """Return Detectron2's dataset dict of the image at a size: `image` (3, H, W) uint8 BGR, `height`, `width`."""
        if size not in self._pixels:  # members of the same input size share one copy
            new_width, new_height = size.fit(self.width, self.height)
            buffer = np.frombuffer(self._row[size.column][0].as_buffer(), dtype=np.uint8)
            self._pixels[size] = torch.from_numpy(buffer.reshape(3, new_height, new_width).copy())
        pixels = self._pixels[size]
        return {"image": pixels.flip(2) if is_mirrored else pixels, "height": self.height, "width": self.width}
