"""A store's row as Detectron2's dataset dict."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T  # noqa: N812
from detectron2.structures import BoxMode, Instances

from kp_ray.images import decode_resized
from kp_ray.keypoints import CONTINUOUS_OFFSET, Skeleton


def to_dataset_dict(
    row: Mapping[str, Any], cfg: CfgNode, skeleton: Skeleton, rng: np.random.Generator | None
) -> dict[str, Any]:
    """A store's row as the model's input, as Detectron2's DatasetMapper makes it.

    Args:
        row: with `image` (JPEG bytes, or a decoded (H, W, 3) BGR picture), `width`, `height`, and for training
            `keypoints` and `bbox_xyxy`.
        rng: draws the training size and the flip; None maps for testing, without labels.

    Returns:
        `image` (3, H, W) uint8 BGR tensor; `height`, `width` of the stored picture; for training also `instances`
        with `gt_boxes`, `gt_classes`, `gt_keypoints` in continuous coordinates of the resized picture.
    """
    width, height = row["width"], row["height"]
    is_train = rng is not None
    sizes = cfg.INPUT.MIN_SIZE_TRAIN if is_train else [cfg.INPUT.MIN_SIZE_TEST]
    longest = cfg.INPUT.MAX_SIZE_TRAIN if is_train else cfg.INPUT.MAX_SIZE_TEST
    shortest = sizes[int(rng.integers(len(sizes)))] if rng is not None else sizes[0]
    new_h, new_w = T.ResizeShortestEdge.get_output_shape(height, width, shortest, longest)
    picture = decode_resized(row["image"], (width, height), (new_w, new_h))
    moves = T.TransformList([T.ResizeTransform(height, width, new_h, new_w)])
    flip = rng is not None and cfg.INPUT.RANDOM_FLIP == "horizontal" and rng.random() < 0.5
    if flip:
        moves = moves + T.TransformList([T.HFlipTransform(new_w)])
        picture = picture[:, ::-1]
    record: dict[str, Any] = {
        "image": torch.as_tensor(np.ascontiguousarray(picture.transpose(2, 0, 1))),
        "height": height,
        "width": width,
    }
    if is_train:
        record["instances"] = _instances(row, moves, (new_h, new_w), skeleton)
    return record


def _instances(row: Mapping[str, Any], moves: Any, shape: tuple[int, int], skeleton: Skeleton) -> Instances:
    keypoints = np.asarray(row["keypoints"], dtype=np.float64).reshape(len(skeleton), 3).copy()
    keypoints[:, :2] += CONTINUOUS_OFFSET
    keypoints[~np.isfinite(keypoints).all(axis=1) | (keypoints[:, 2] == 0)] = 0
    annotation = {
        "bbox": np.asarray(row["bbox_xyxy"], dtype=np.float64) + CONTINUOUS_OFFSET,
        "bbox_mode": BoxMode.XYXY_ABS,
        "keypoints": keypoints.ravel().tolist(),
        "category_id": 0,
    }
    moved = detection_utils.transform_instance_annotations(
        annotation, moves, shape, keypoint_hflip_indices=np.array(skeleton.flip_indices)
    )
    return detection_utils.annotations_to_instances([moved], shape)
