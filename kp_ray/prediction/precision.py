"""Mixed precision: run a model's backbone with 16-bit numbers on a GPU."""

from typing import Any, Literal

import torch

from kp_ray.config.schema import Config
from kp_ray.prediction.settings import check_precision

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(config: Config, device: str) -> Precision:
    """Return the precision that `predict.precision` means on a device.

    `auto` is fp32 on CPUs, bf16 on GPUs that compute with bf16 (Ampere and later), and fp16 on older GPUs.

    Args:
        config: the run's configuration.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: mixed precision is set, and the device is a CPU.
    """
    check_precision(config, has_gpu=device == "cuda")
    setting = config.predict.precision
    if setting != "auto":
        return setting
    if device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def set_precision(model: torch.nn.Module, device: str, precision: Precision) -> None:
    """Run the backbone of a Detectron2 model in a precision; the heads stay in 32-bit numbers.

    The heads compute coordinates. Detectron2 rounds the boxes of RoIAlign to the type of the features, and the
    coordinates of keypoints to the type of the heat maps; bf16 has a step of 4 px at x = 1000.

    Args:
        model: a model with a `backbone` that returns feature maps by name.
        device: "cpu" or "cuda".
        precision: "fp32" leaves the model as it is.
    """
    if precision == "fp32":
        return
    torch.set_float32_matmul_precision("high")  # TF32 in the heads' matrix products
    backbone: Any = model.backbone
    forward = backbone.forward

    def forward_mixed(images: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.autocast(device, dtype=_DTYPES[precision]):
            features = forward(images)
        return {name: feature.float() for name, feature in features.items()}

    backbone.forward = forward_mixed
