"""Transfer the keypoint head of other weights to a skeleton; keypoints are matched by name.

The head's last layer has one output channel per keypoint; the layers before it do not depend on the keypoints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from kp_ray.keypoints import DACON24

LAST_LAYER = "roi_heads.keypoint_head.score_lowres"
"""Name of the last layer in the weights of Detectron2's KRCNNConvDeconvUpsampleHead."""
_CHANNEL_DIMS = {f"{LAST_LAYER}.weight": 1, f"{LAST_LAYER}.bias": 0}  # the weight is (in, out, H, W)
COCO_NAMES = DACON24.names[:17]
"""COCO's keypoints in the order of the model zoo's channels."""
_TRUNK_JOINTS = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
NEAREST_JOINTS: dict[str, tuple[str, ...]] = {
    "left_palm": ("left_wrist",),
    "right_palm": ("right_wrist",),
    "left_instep": ("left_ankle",),
    "right_instep": ("right_ankle",),
    "neck": ("left_shoulder", "right_shoulder"),
    "spine2(back)": _TRUNK_JOINTS,
    "spine1(waist)": _TRUNK_JOINTS,
}
"""Keypoint that COCO lacks -> the nearest COCO joints, whose mean channel is a better start than random values."""


@dataclass(frozen=True)
class HeadTransfer:
    """Origin of the channels of a keypoint head's last layer.

    Attributes:
        by_name: keypoints whose channel is copied from the keypoint of the same name.
        from_nearest: keypoints whose channel is the mean of the nearest joints' channels.
        from_scratch: keypoints whose channel stays random.
    """

    by_name: tuple[str, ...]
    from_nearest: tuple[str, ...]
    from_scratch: tuple[str, ...]

    def describe(self) -> str:
        """Describe the origins on one line, e.g. "17 keypoints by name, 7 from the nearest joints"."""
        names_by_origin = {
            "keypoints by name": self.by_name,
            "from the nearest joints": self.from_nearest,
            "from scratch": self.from_scratch,
        }
        return ", ".join(f"{len(names)} {origin}" for origin, names in names_by_origin.items() if names)


def transfer_head(
    tensors: Mapping[str, torch.Tensor],
    weights_keypoints: Sequence[str],
    state: Mapping[str, torch.Tensor],
    names: Sequence[str],
) -> tuple[dict[str, torch.Tensor], HeadTransfer]:
    """Make the last layer of a keypoint head from the channels of other weights.

    Args:
        tensors: the other weights; both tensors of `LAST_LAYER` have S channels.
        weights_keypoints: names of the S keypoints of the other weights, in the order of their channels.
        state: the model's tensors; both tensors of `LAST_LAYER` have K channels.
        names: names of the K keypoints of the model.

    Returns:
        The two tensors of the model's layer, and the origin of their channels. There are no tensors if the layer's
        inputs differ or the skeletons share no keypoint.
    """
    by_name = {name: (name,) for name in names if name in weights_keypoints}
    nearest = {name: NEAREST_JOINTS.get(name, ()) for name in names if name not in by_name}
    nearest = {name: joints for name, joints in nearest.items() if joints and set(joints) <= set(weights_keypoints)}
    from_scratch = tuple(name for name in names if name not in by_name and name not in nearest)
    layer: dict[str, torch.Tensor] = {}
    for key, dim in _CHANNEL_DIMS.items():
        old_tensor, new_tensor = tensors[key], state[key].clone()
        if old_tensor.select(dim, 0).shape != new_tensor.select(dim, 0).shape:
            return {}, HeadTransfer((), (), tuple(names))
        for channel, name in enumerate(names):
            joints = by_name.get(name) or nearest.get(name)
            if joints:
                indices = torch.tensor([weights_keypoints.index(joint) for joint in joints])
                new_tensor.select(dim, channel).copy_(old_tensor.index_select(dim, indices).mean(dim))
        layer[key] = new_tensor
    return layer if by_name else {}, HeadTransfer(tuple(by_name), tuple(nearest), from_scratch)


def channel_names(
    tensors: Mapping[str, torch.Tensor], recorded_names: Sequence[str] | None, names: Sequence[str]
) -> tuple[str, ...] | None:
    """Return the keypoints of the last layer's channels; None if they are unknown or the weights lack the layer.

    Args:
        tensors: the weights.
        recorded_names: names in the file of a member of kp_ray; None for files of the model zoo or plain Detectron2.
        names: keypoints of the model. Without recorded names, 17 channels are taken as COCO's if `names` has a keypoint
            of COCO.
    """
    channels = {tensors[key].shape[dim] if key in tensors else 0 for key, dim in _CHANNEL_DIMS.items()}
    if recorded_names is not None:
        return tuple(recorded_names) if channels == {len(recorded_names)} else None
    return COCO_NAMES if channels == {len(COCO_NAMES)} and set(names) & set(COCO_NAMES) else None
