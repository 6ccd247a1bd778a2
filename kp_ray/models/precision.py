"""Precision of a model's computations: 16-bit numbers in its backbone, and TF32 on GPUs."""

import types
from typing import Any, Literal

import torch

from kp_ray.config.types import PrecisionSetting

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(setting: PrecisionSetting, device: str) -> Precision:
    """Return the precision that `train.precision` or `predict.precision` means on a device.

    `auto` is fp32 on CPUs, bf16 on GPUs that compute with bf16 (Ampere and later), and fp16 on older GPUs.

    Args:
        setting: value of the setting.
        device: "cpu" or "cuda".
    """
    if setting != "auto":
        return setting
    if device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def set_tf32(precision: Precision, *, deterministic: bool) -> None:
    """Allow or forbid TF32, which keeps 10 bits of the mantissa of 32-bit numbers, in this process.

    It exists on GPUs from Ampere on. "fp32" allows it in convolutions only, which is torch's default and so what
    Detectron2's own programs do; without it an iteration of X-101 takes 2.4 times as long on an H100
    (benchmarks/results/gpu.md). The 16-bit precisions allow it in matrix products too.

    Args:
        precision: precision of the model's backbone.
        deterministic: forbid TF32.
    """
    torch.set_float32_matmul_precision("highest" if precision == "fp32" or deterministic else "high")
    torch.backends.cudnn.allow_tf32 = not deterministic


def set_precision(model: torch.nn.Module, device: str, precision: Precision) -> None:
    """Run the backbone of a Detectron2 model in a precision; the heads stay in 32-bit numbers.

    The heads compute coordinates, for which 16 bits are too few: Detectron2 rounds the boxes of RoIAlign to the type of
    the features, and keypoints to the type of the heat maps, and bf16 has a step of 4 px at x = 1000.

    Args:
        model: a model with a `backbone` that returns feature maps by name.
        device: "cpu" or "cuda".
        precision: "fp32" leaves the model as it is.
    """
    if precision == "fp32":
        return
    backbone: Any = model.backbone
    backbone.autocast_options = {"device_type": device, "dtype": _DTYPES[precision]}
    # A bound method, not a closure, because a deep copy of the model must run its own backbone.
    backbone.forward = types.MethodType(_forward_mixed, backbone)


def _forward_mixed(backbone: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.autocast(**backbone.autocast_options):
        features = type(backbone).forward(backbone, images)
    return {name: feature.float() for name, feature in features.items()}
