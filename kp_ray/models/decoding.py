"""Convert a model's output to detections in pixel indices, mirror them, and merge them over the views of an image."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Instances

from kp_ray.config.types import DecodeMethod
from kp_ray.errors import DivergedError
from kp_ray.keypoints import CONTINUOUS_OFFSET, FloatArray, Skeleton

EXPECTATION_RADIUS = 3
"""Largest distance in bins, in x and in y, from a heat map's peak to a bin that counts in the expectation."""
SAME_PERSON_IOU = 0.5
"""Smallest IoU of one person's boxes in two views of an image."""


class Detection(NamedTuple):
    """One person that a model found in an image; coordinates are pixel indices.

    Attributes:
        score: confidence of the person, in [0, 1].
        bbox_xyxy: (4,) box x1, y1, x2, y2.
        keypoints: (K, 3) x, y, score.
    """

    score: float
    bbox_xyxy: FloatArray
    keypoints: FloatArray


def read_instances(instances: Instances, decode: DecodeMethod = "argmax") -> list[Detection]:
    """Convert a model's output for one image to detections, best score first.

    Args:
        instances: the model's output, in continuous coordinates of the image whose `height` and `width` are in the
            dataset dict.
        decode: `argmax` keeps Detectron2's points, `expectation` replaces them by `expected_points`.
    """
    instances = Instances(instances.image_size, **instances.get_fields())
    if decode == "expectation":
        points = expected_points(instances.pred_keypoint_heatmaps, instances.pred_boxes.tensor)
        instances.pred_keypoints = torch.cat([points, instances.pred_keypoints[:, :, 2:]], dim=2)
    if instances.has("pred_keypoint_heatmaps"):
        instances.remove("pred_keypoint_heatmaps")  # large, and need not leave the GPU
    instances = instances.to("cpu")
    keypoints = instances.pred_keypoints.numpy().astype(np.float64)
    keypoints[:, :, :2] -= CONTINUOUS_OFFSET
    boxes = instances.pred_boxes.tensor.numpy().astype(np.float64) - CONTINUOUS_OFFSET
    scores = instances.scores.numpy().astype(np.float64)
    return [Detection(float(scores[i]), boxes[i], keypoints[i]) for i in np.argsort(-scores, kind="stable")]


def expected_points(heatmaps: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Compute the expectation of each keypoint's position near the peak of its heat map.

    Detectron2 trains a heat map with a softmax loss over its bins, so its softmax is a distribution over the bins. The
    expectation is taken over the bins within `EXPECTATION_RADIUS` of the peak, in each axis.

    Args:
        heatmaps: (N, K, S, S) logits of N people.
        boxes: (N, 4) x1, y1, x2, y2: the regions that the heat maps cover.

    Returns:
        (N, K, 2) x, y in the coordinates of the boxes.
    """
    side = heatmaps.shape[3]
    logits = heatmaps.flatten(2)
    peaks = logits.argmax(dim=2, keepdim=True)
    bins = torch.arange(side * side, device=heatmaps.device)
    x, y = bins % side, bins // side
    is_near = ((x - peaks % side).abs() <= EXPECTATION_RADIUS) & ((y - peaks // side).abs() <= EXPECTATION_RADIUS)
    probabilities = logits.masked_fill(~is_near, -torch.inf).softmax(dim=2)
    # Sums instead of a matrix product, in which GPUs may round the numbers to ten bits (TF32).
    means = torch.stack([(probabilities * (axis + 0.5)).sum(dim=2) for axis in (x, y)], dim=2)
    return boxes[:, None, :2] + means / side * (boxes[:, 2:] - boxes[:, :2])[:, None]


def detect_in_inputs(
    model: torch.nn.Module, inputs: Sequence[Mapping[str, Any]], decode: DecodeMethod
) -> list[list[Detection]]:
    """Detect the people in each image of a batch of dataset dicts, best score first.

    Args:
        model: a model in evaluation mode.
        inputs: dataset dicts, as `to_dataset_dict` makes them for inference.
        decode: as in `read_instances`.

    Raises:
        DivergedError: heat maps are not finite, although the weights are.
    """
    with torch.inference_mode():
        try:
            outputs = model(inputs)
        except AssertionError as error:  # Detectron2 asserts that a peak equals its heat map's maximum; NaN does not
            raise DivergedError("heat maps are no longer finite: train with a lower train.base_lr") from error
        return [read_instances(output["instances"], decode) for output in outputs]


def mirror_detection(detection: Detection, width: int, skeleton: Skeleton) -> Detection:
    """Mirror a detection left to right in an image `width` pixels wide; left and right keypoints change places."""
    x1, y1, x2, y2 = detection.bbox_xyxy
    keypoints = detection.keypoints[skeleton.flip_indices]
    keypoints[:, 0] = width - 1 - keypoints[:, 0]
    return Detection(detection.score, np.array([width - 1 - x2, y1, width - 1 - x1, y2]), keypoints)


def merge_views(views: Sequence[Sequence[Detection]]) -> list[Detection]:
    """Merge the detections of several views of one image: each person is the mean over the views that show them.

    The mean of a keypoint is weighted by its scores in the views; boxes and detection scores have equal weights.

    Detections are taken from the best score down. In each other view, the detection whose box has the highest IoU with
    the taken detection's box shows the same person, if this IoU is at least `SAME_PERSON_IOU`.

    Returns:
        One detection per person, best score first.
    """
    if len(views) == 1:
        return list(views[0])
    remaining_views = [list(view) for view in views]
    people = []
    while any(remaining_views):
        best = max(itertools.chain(*remaining_views), key=lambda detection: detection.score)
        group = []
        for view in remaining_views:
            overlaps = [_iou(best.bbox_xyxy, detection.bbox_xyxy) for detection in view]
            if overlaps and max(overlaps) >= SAME_PERSON_IOU:
                group.append(view.pop(int(np.argmax(overlaps))))
        scores, boxes, keypoints = zip(*group, strict=True)
        people.append(Detection(float(np.mean(scores)), np.mean(boxes, axis=0), _mean_keypoints(np.stack(keypoints))))
    return sorted(people, key=lambda detection: -detection.score)


def _mean_keypoints(keypoints: FloatArray) -> FloatArray:
    """Return the mean (K, 3) of keypoints (V, K, 3) over the views, weighted by score; equal weights if all are 0."""
    weights = keypoints[..., 2:]
    weights = np.where(weights.any(axis=0), weights, 1.0)
    # Averaging the offsets from the first view leaves equal views exactly unchanged.
    return np.asarray(keypoints[0] + (weights * (keypoints - keypoints[0])).sum(axis=0) / weights.sum(axis=0))


def _iou(a: FloatArray, b: FloatArray) -> float:
    """Return the intersection over union of two boxes; 1 for equal boxes, even without an area."""
    if np.array_equal(a, b):
        return 1.0
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    intersection = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - intersection
    return intersection / union if union > 0 else 0.0
