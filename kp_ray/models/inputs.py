"""Convert a store's row to a Detectron2 model's input: the dataset dict that Detectron2's DatasetMapper would make."""

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
    """Convert a store's row to a dataset dict.

    Args:
        row: has `image` (JPEG bytes, or a decoded (H, W, 4) BGRX array), `width`, `height`, and for training also
            `keypoints` (3K: x, y, v) and `bbox_xyxy` in pixel indices.
        cfg: gives the sizes, the flip and the order of the color channels.
        rng: chooses the training size and the flip; None: the size for inference, no flip and no labels.

    Returns:
        `image` (3, H, W) uint8 tensor, channels in the order of INPUT.FORMAT; `height`, `width` of the stored image.
        For training also `instances`: `gt_boxes`, `gt_classes`, `gt_keypoints` in continuous coordinates of `image`.

    Raises:
        DataError: the JPEG cannot be decoded.
    """
    width, height = row["width"], row["height"]
    new_height, new_width = _sample_size(height, width, cfg, rng)
    image = decode_resized(row["image"], (width, height), (new_width, new_height))
    transforms = T.TransformList([T.ResizeTransform(height, width, new_height, new_width)])
    if rng is not None and cfg.INPUT.RANDOM_FLIP == "horizontal" and rng.random() < 0.5:
        transforms = transforms + T.TransformList([T.HFlipTransform(new_width)])
        image = image[:, ::-1]
    if cfg.INPUT.FORMAT == "RGB":
        image = image[:, :, ::-1]
    dataset_dict: dict[str, Any] = {
        "image": torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))),
        "height": height,
        "width": width,
    }
    if rng is not None:
        dataset_dict["instances"] = _build_instances(row, transforms, (new_height, new_width), skeleton)
    return dataset_dict


def _sample_size(height: int, width: int, cfg: CfgNode, rng: np.random.Generator | None) -> tuple[int, int]:
    """Return the (height, width) that the image is resized to; without `rng` the test size."""
    if rng is None:
        shortest, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    else:
        sizes, longest = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN
        if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
            shortest = int(rng.integers(sizes[0], sizes[1] + 1))
        else:
            shortest = sizes[int(rng.integers(len(sizes)))]
    new_height, new_width = T.ResizeShortestEdge.get_output_shape(height, width, shortest, longest)
    return new_height, new_width


def _build_instances(
    row: Mapping[str, Any], transforms: T.TransformList, image_size: tuple[int, int], skeleton: Skeleton
) -> Instances:
    """Build the labels of the transformed image, whose size is `image_size` (height, width)."""
    keypoints = np.asarray(row["keypoints"], dtype=np.float64).reshape(len(skeleton), 3).copy()
    keypoints[:, :2] += CONTINUOUS_OFFSET
    keypoints[~np.isfinite(keypoints).all(axis=1) | (keypoints[:, 2] == 0)] = 0
    annotation = {
        "bbox": np.asarray(row["bbox_xyxy"], dtype=np.float64) + CONTINUOUS_OFFSET,
        "bbox_mode": BoxMode.XYXY_ABS,
        "keypoints": keypoints.ravel().tolist(),
        "category_id": 0,
    }
    transformed_annotation = detection_utils.transform_instance_annotations(
        annotation, transforms, image_size, keypoint_hflip_indices=np.array(skeleton.flip_indices)
    )
    return detection_utils.annotations_to_instances([transformed_annotation], image_size)
