"""Detectron2's answers as detections in pixel indices, and their union over views."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from kp_ray.keypoints import CONTINUOUS_OFFSET, FloatArray, Skeleton
from kp_ray.models.inputs import to_dataset_dict


def read_instances(instances: Instances) -> list[tuple[float, FloatArray, FloatArray]]:
    """A model's answer for one picture: (score, bbox_xyxy (4,), keypoints (K, 3) x, y, score), best first.

    Coordinates are pixel indices of the picture whose `height` and `width` went in.
    """
    found = instances.to("cpu")
    keypoints = found.pred_keypoints.numpy().astype(np.float64)
    keypoints[:, :, :2] -= CONTINUOUS_OFFSET
    boxes = found.pred_boxes.tensor.numpy().astype(np.float64) - CONTINUOUS_OFFSET
    scores = found.scores.numpy().astype(np.float64)
    return [(float(scores[i]), boxes[i], keypoints[i]) for i in np.argsort(-scores, kind="stable")]


def predict_rows(
    model: torch.nn.Module, cfg: CfgNode, skeleton: Skeleton, rows: Sequence[Mapping[str, Any]]
) -> list[list[tuple[float, FloatArray, FloatArray]]]:
    """The people in each row's picture (`image`, `width`, `height`); the model must be in evaluation mode."""
    with torch.inference_mode():
        outputs = model([to_dataset_dict(row, cfg, skeleton, rng=None) for row in rows])
    return [read_instances(output["instances"]) for output in outputs]


SAME_PERSON_IOU = 0.5
"""Overlap from which boxes of two views of a picture are one person's."""
Detection = tuple[float, FloatArray, FloatArray]
"""Score, bbox_xyxy (4,) and keypoints (K, 3: x, y, score), in pixel indices."""


def mirror(person: Detection, width: int, skeleton: Skeleton) -> Detection:
    """The person in the picture mirrored left to right, `width` pixels wide; left and right keypoints change places."""
    score, box, keypoints = person
    swapped = keypoints[skeleton.flip_indices]
    swapped[:, 0] = width - 1 - swapped[:, 0]
    return score, np.array([width - 1 - box[2], box[1], width - 1 - box[0], box[3]]), swapped


def join_views(views: Sequence[Sequence[Detection]]) -> list[Detection]:
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
