"""Carry the keypoint head of other weights over to a skeleton, by the keypoints' names.

The head's last layer has one output channel per keypoint; everything before it does not depend on the keypoints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from kp_ray.keypoints import DACON24

LAST_LAYER = "roi_heads.keypoint_head.score_lowres"
"""Name of the last layer in the weights of Detectron2's KRCNNConvDeconvUpsampleHead."""
_CHANNEL_DIMS = {f"{LAST_LAYER}.weight": 1, f"{LAST_LAYER}.bias": 0}  # the layer is a transposed convolution
COCO_NAMES = DACON24.names[:17]
"""COCO's keypoints in the order of the model zoo's channels."""
_SPINE = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
NEAREST_JOINTS: dict[str, tuple[str, ...]] = {
    "left_palm": ("left_wrist",),
    "right_palm": ("right_wrist",),
    "left_instep": ("left_ankle",),
    "right_instep": ("right_ankle",),
    "neck": ("left_shoulder", "right_shoulder"),
    "spine2(back)": _SPINE,
    "spine1(waist)": _SPINE,
}
"""Keypoint that COCO lacks -> the COCO joints around it; the mean of their channels is a better start than noise."""


@dataclass(frozen=True)
class HeadTransfer:
    """Origin of the channels of a keypoint head's last layer.

    Attributes:
        by_name: keypoints that the weights have.
        from_nearest: keypoints that begin from the channels of the nearest joints.
        random: keypoints that keep their random channels.
    """

    by_name: tuple[str, ...]
    from_nearest: tuple[str, ...]
    random: tuple[str, ...]

    def describe(self) -> str:
        """Describe the origins on one line, e.g. "17 keypoints by name, 7 from the nearest joints"."""
        counts = {
            "keypoints by name": self.by_name,
            "from the nearest joints": self.from_nearest,
            "from scratch": self.random,
        }
        return ", ".join(f"{len(names)} {how}" for how, names in counts.items() if names)


def transfer_head(
    tensors: Mapping[str, torch.Tensor],
    source_names: Sequence[str],
    state: Mapping[str, torch.Tensor],
    names: Sequence[str],
) -> tuple[dict[str, torch.Tensor], HeadTransfer]:
    """Make the last layer of a keypoint head from the channels of other weights.

    Args:
        tensors: the other weights; both tensors of `LAST_LAYER` have S channels.
        source_names: S keypoints of the other weights, in the order of their channels.
        state: the model's tensors, with K channels; their random channels stay where no other is known.
        names: K keypoints of the model.

    Returns:
        The two tensors of the layer, and the origin of their channels. No tensor if the layer's inputs differ or the
        skeletons share no keypoint.
    """
    origins = {name: (name,) for name in names if name in source_names}
    nearest = {name: NEAREST_JOINTS.get(name, ()) for name in names if name not in origins}
    nearest = {name: joints for name, joints in nearest.items() if joints and set(joints) <= set(source_names)}
    random = tuple(name for name in names if name not in origins and name not in nearest)
    layer: dict[str, torch.Tensor] = {}
    for key, dim in _CHANNEL_DIMS.items():
        source, target = tensors[key], state[key].clone()
        if source.select(dim, 0).shape != target.select(dim, 0).shape:
            return {}, HeadTransfer((), (), tuple(names))
        for channel, name in enumerate(names):
            joints = origins.get(name) or nearest.get(name)
            if joints:
                indices = torch.tensor([source_names.index(joint) for joint in joints])
                target.select(dim, channel).copy_(source.index_select(dim, indices).mean(dim))
        layer[key] = target
    return layer if origins else {}, HeadTransfer(tuple(origins), tuple(nearest), random)


def channel_names(
    tensors: Mapping[str, torch.Tensor], recorded: Sequence[str] | None, names: Sequence[str]
) -> tuple[str, ...] | None:
    """Return the keypoints of the weights' channels; None if they are unknown or the weights have no such layer.

    Args:
        tensors: the weights.
        recorded: names that kp_ray's members carry; None for weights of the model zoo or of plain Detectron2.
        names: keypoints of the model. Weights without names and with 17 channels are COCO's if one of these is.
    """
    channels = {tensors[key].shape[dim] if key in tensors else 0 for key, dim in _CHANNEL_DIMS.items()}
    if recorded is not None:
        return tuple(recorded) if channels == {len(recorded)} else None
    return COCO_NAMES if channels == {len(COCO_NAMES)} and set(names) & set(COCO_NAMES) else None
