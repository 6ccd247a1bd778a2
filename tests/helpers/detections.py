"""Detect people with a model, without `predict`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode

from kp_ray.config.types import DecodeMethod
from kp_ray.keypoints import Skeleton
from kp_ray.models.decoding import Detection, detect_in_inputs
from kp_ray.models.inputs import to_dataset_dict


def detect_people(
    model: torch.nn.Module,
    cfg: CfgNode,
    skeleton: Skeleton,
    rows: Sequence[Mapping[str, Any]],
    decode: DecodeMethod = "argmax",
) -> list[list[Detection]]:
    """Detect the people in the image of each row, as `to_dataset_dict` prepares it; best score first."""
    return detect_in_inputs(model, [to_dataset_dict(row, cfg, skeleton, rng=None) for row in rows], decode)
