"""Evaluate a model during training: each worker detects people in its shard of the validation rows."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm

from kp_ray.ensemble.temporal import fill_missing
from kp_ray.errors import DivergedError
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.metrics import evaluate_keypoints
from kp_ray.models.decoding import Detection, detect_in_inputs
from kp_ray.models.inputs import to_dataset_dict
from kp_ray.store.folds import check_held_out_fold
from kp_ray.store.manifest import StoredRow
from kp_ray.store.read import RowReader, RowReference, list_rows
from kp_ray.training.dataloader import read_ahead
from kp_ray.training.worker import Worker

BATCH_SIZE = 4
"""Images per forward pass."""
_COLUMNS = ("source", "scene", "camera", "frame", "image", "width", "height", "keypoints")


@dataclass(frozen=True, eq=False)
class _EvaluatedRow:
    """A validation row's labels, and the best detection in its image.

    Attributes:
        truth: (K, 3) x, y, v of the labels, in pixel indices.
        detection: the detection with the highest score; None if the model found nobody.
    """

    source: str
    scene: str
    camera: str
    frame: int | None
    truth: FloatArray
    detection: Detection | None


def evaluate(model: torch.nn.Module, worker: Worker) -> dict[str, float]:
    """Compute the metrics of a model on all validation rows; every worker must call this, and gets the same metrics.

    All workers use the batch statistics of rank 0, because these are saved.

    Returns:
        Metrics by name, PCK@a as `pck_<a>`, without metrics per keypoint or camera; empty without validation rows.

    Raises:
        DivergedError: a worker's heat maps are not finite; every worker raises it.
    """
    if worker.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
    model.eval()
    rows: list[_EvaluatedRow] = []
    for shard in comm.all_gather(_evaluate_shard(model, worker)):
        if isinstance(shard, DivergedError):
            raise shard
        rows.extend(shard)
    rows.sort(key=lambda row: row.source)
    return _compute_metrics(rows, worker.skeleton, worker.config.predict.score_threshold) if rows else {}


def _evaluate_shard(model: torch.nn.Module, worker: Worker) -> list[_EvaluatedRow] | DivergedError:
    """Detect people in this worker's shard of the validation rows, and read no other rows.

    A shard consists of whole batches, so that the batches and the metrics are the same for any number of workers.
    The error of heat maps that are not finite is returned, because the other workers wait for this one.
    """
    fold = check_held_out_fold(worker.config, worker.member.name)
    references = list_rows(worker.config.path("store"), split="val", fold=fold)
    batches = [references[offset : offset + BATCH_SIZE] for offset in range(0, len(references), BATCH_SIZE)]
    start, end = (len(batches) * rank // worker.world_size for rank in (worker.rank, worker.rank + 1))
    reader = RowReader(_COLUMNS, locate=worker.locate_part)

    def load(batch: Sequence[RowReference], _: int) -> tuple[list[StoredRow], list[dict[str, Any]]]:
        rows = [reader.read(*reference) for reference in batch]
        return rows, [to_dataset_dict(row, worker.cfg, worker.skeleton, rng=None) for row in rows]

    evaluated_rows, decode = [], worker.config.predict.decode
    numbered_batches = zip(batches[start:end], itertools.count())
    for rows, inputs in read_ahead(load, numbered_batches, worker.config.train.num_prefetch_threads):
        try:
            detections_by_row = detect_in_inputs(model, inputs, decode)
        except DivergedError as error:
            return error
        for row, detections in zip(rows, detections_by_row, strict=True):
            truth = np.array(row["keypoints"], dtype=np.float64).reshape(-1, 3)
            detection = detections[0] if detections else None
            evaluated_rows.append(
                _EvaluatedRow(row["source"], row["scene"], row["camera"], row["frame"], truth, detection)
            )
    return evaluated_rows


def _compute_metrics(rows: Sequence[_EvaluatedRow], skeleton: Skeleton, score_threshold: float) -> dict[str, float]:
    nobody = Detection(0.0, np.full(4, np.nan), np.full((len(skeleton), 3), np.nan))
    detections = [row.detection or nobody for row in rows]
    has_detection = np.array([row.detection is not None for row in rows])
    predicted, _ = fill_missing(
        np.stack([detection.keypoints for detection in detections]),
        has_detection,
        [row.scene for row in rows],
        [row.camera for row in rows],
        [row.frame for row in rows],
        mean_pose=np.zeros((len(skeleton), 2)),  # used only if the model found nobody in any image
    )
    scores = np.array([detection.score for detection in detections])
    truth = np.stack([row.truth for row in rows])
    found = has_detection & (scores >= score_threshold)
    metrics = evaluate_keypoints(predicted, truth, skeleton, found=found, scores=scores).to_json()
    flat_metrics = {**metrics, **{f"pck_{fraction}": value for fraction, value in metrics["pck"].items()}}
    return {name: float(value) for name, value in flat_metrics.items() if isinstance(value, int | float)}
