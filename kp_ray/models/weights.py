"""Save and load finished members, and start models from the weights of a file, a URL or the model zoo."""

import io
import pickle
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from kp_ray.errors import KpRayError, ModelError, describe_error
from kp_ray.keypoints import Skeleton
from kp_ray.member_files import CFG_NAME, FINAL_WEIGHTS
from kp_ray.models.keypoint_head import LAST_LAYER, channel_names, transfer_head
from kp_ray.models.presets import MODEL_PRESETS, build_model
from kp_ray.network import socket_timeout
from kp_ray.storage import exists, join, read_bytes, write_bytes

_LOAD_ERRORS = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, MemoryError,
    EOFError, struct.error, pickle.PickleError,
)  # fmt: skip
"""Errors that torch and pickle raise for damaged files and for files that hold no weights, and for lack of memory."""


def save_model(model: torch.nn.Module, cfg: CfgNode, folder: str, skeleton: Skeleton) -> None:
    """Write a finished member: `config.yaml`, then `model_final.pth`; plain Detectron2 can open both.

    The weights' file also lists the keypoints' names under the key `keypoints`, which Detectron2 ignores.

    Args:
        folder: local path or URL.

    Raises:
        StorageError: the folder cannot be written.
    """
    saved_cfg = cfg.clone()
    saved_cfg.defrost()
    saved_cfg.MODEL.WEIGHTS = FINAL_WEIGHTS
    write_bytes(join(folder, CFG_NAME), saved_cfg.dump().encode())
    save_torch_file(join(folder, FINAL_WEIGHTS), {"model": model.state_dict(), "keypoints": list(skeleton.names)})


def save_torch_file(path: str, content: dict[str, Any]) -> None:
    """Write a file of tensors, whole or not at all, to a local path or URL.

    Raises:
        StorageError: the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_member(
    folder: str, device: str, keypoint_names: Sequence[str] | None = None
) -> tuple[torch.nn.Module, CfgNode]:
    """Load a finished member.

    Args:
        folder: local path or URL.
        device: "cpu" or "cuda".
        keypoint_names: the keypoints that the member must predict, in order; None accepts any.

    Returns:
        The member's model in evaluation mode, and its config.

    Raises:
        ModelError: the folder holds no finished member, its files are damaged, or it predicts other keypoints.
        StorageError: the folder cannot be read.
    """
    cfg_path, weights_path = join(folder, CFG_NAME), join(folder, FINAL_WEIGHTS)
    for path in (cfg_path, weights_path):
        if not exists(path):
            raise ModelError(f"{path}: there is no such file, so the member is not finished: run train first")
    cfg = model_zoo.get_config(MODEL_PRESETS["r50"][0])
    try:
        cfg.merge_from_other_cfg(CfgNode.load_cfg(read_bytes(cfg_path).decode()))
        cfg.MODEL.DEVICE = "cpu"  # the errors of a GPU are none of the file
        model = build_model(cfg)
    except (yaml.YAMLError, *_LOAD_ERRORS) as error:
        fix = f"restore it, or delete {folder} and train the member again in its own run"
        raise _damage_error(cfg_path, error, fix) from error
    try:
        content = torch.load(io.BytesIO(read_bytes(weights_path)), map_location="cpu", weights_only=True)
        tensors, names = content["model"], _keypoint_names(content)
        if not isinstance(tensors, dict):
            raise TypeError("model is not a mapping of tensors")
    except _LOAD_ERRORS as error:
        raise _damage_error(weights_path, error, "delete it and run train") from error
    if keypoint_names is not None and names is not None and list(keypoint_names) != list(names):
        raise ModelError(
            f"{folder}: predicts other keypoints, or in another order (got {', '.join(names[:3])}, ...): "
            "use the labels that the member was trained with, and their sample submission"
        )
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(
            f"{weights_path}: does not fit the {CFG_NAME} beside it: restore both, or delete both and run train"
        ) from error
    cfg.MODEL.DEVICE = device
    return model.to(device).eval(), cfg


def _damage_error(path: str, error: Exception, fix: str) -> ModelError:
    """Return the error for a file that cannot be opened; `fix` is what to do if it is damaged."""
    reason = describe_error(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        # A damaged file can ask for more memory than there is, and an intact file should not be deleted.
        return ModelError(f"{path}: there is not enough memory to open it ({reason}): free memory, or restore the file")
    return ModelError(f"{path}: damaged ({reason}): {fix}")


def read_keypoint_names(folder: str) -> tuple[str, ...] | None:
    """Read the names of the keypoints that a finished member predicts; None if its file does not name them.

    Raises:
        ModelError: the weights' file is damaged.
        StorageError: the folder cannot be read.
    """
    path = join(folder, FINAL_WEIGHTS)
    try:
        return _keypoint_names(torch.load(io.BytesIO(read_bytes(path)), map_location="meta", weights_only=True))
    except _LOAD_ERRORS as error:
        fix = "restore it, or delete it and train the member again in its own run"
        raise _damage_error(path, error, fix) from error


def _keypoint_names(content: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the names that `save_model` recorded; None if another program wrote the file."""
    names = content.get("keypoints")
    if names is not None and not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise ValueError("keypoints is not a list of names")
    return None if names is None else tuple(names)


@dataclass(frozen=True)
class LoadedWeights:
    """The result of starting a model from weights.

    Attributes:
        random_tensors: sorted names of the tensors that stay random, because the weights lack them or have them in
            another shape.
        head: origin of the keypoint head's channels; "" if the skeleton of the weights is the model's or unknown.
    """

    random_tensors: tuple[str, ...] = ()
    head: str = ""


def load_weights(
    model: torch.nn.Module, weights: str, *, preset: str, skeleton: Skeleton, setting: str = "model.weights"
) -> LoadedWeights:
    """Start a model from weights.

    If the weights have another skeleton, e.g. the model zoo's COCO weights, a keypoint takes the channel of the same
    name, or else the mean channel of the nearest joints (`keypoint_head.NEAREST_JOINTS`).

    Args:
        model: its tensors are replaced by the weights of the same name and shape.
        weights: `zoo` for the preset's published weights, a URL, or a file: a .pth, for example of another run, or a
            .pkl of the model zoo.
        preset: `model.preset`.
        skeleton: the keypoints of the model.
        setting: the config key that named the weights, for messages.

    Raises:
        ModelError: the weights cannot be reached or read, none of them fits, or their skeleton shares no keypoint
            with the model's.
    """
    url = model_zoo.get_checkpoint_url(MODEL_PRESETS[preset][0]) if weights == "zoo" else weights
    try:
        content = _read_weights(url)
    except (OSError, HTTPException, KpRayError, *_LOAD_ERRORS) as error:
        fix = "give a .pth file of tensors, or a .pkl file of the model zoo"
        if isinstance(error, OSError | HTTPException | KpRayError):
            fix = "give a file or URL that is reachable"
        raise ModelError(f"{setting}: {url}: cannot be read ({describe_error(error)}): {fix}") from error
    recorded_names = content.keypoints
    if recorded_names is not None and not set(recorded_names) & set(skeleton.names):
        raise ModelError(
            f"{setting}: {url}: these weights share no keypoint with the labels (got {len(recorded_names)}: "
            f"{recorded_names[0]}, ..., {recorded_names[-1]}; the labels have {len(skeleton)}: {skeleton.names[0]}, "
            f"..., {skeleton.names[-1]}): give weights of a skeleton that shares keypoints"
        )
    state = model.state_dict()
    new_tensors = {
        name: value for name, value in content.tensors.items() if name in state and state[name].shape == value.shape
    }
    if not new_tensors:
        raise ModelError(f"{setting}: {url}: no tensor fits model.preset {preset}: give weights of this preset")
    head, weights_keypoints = "", channel_names(content.tensors, recorded_names, skeleton.names)
    if weights_keypoints is not None and weights_keypoints != skeleton.names:
        layer, transfer = transfer_head(content.tensors, weights_keypoints, state, skeleton.names)
        # Without the last layer of the file, whose channels are those of other keypoints even if their number fits.
        new_tensors = {name: value for name, value in new_tensors.items() if not name.startswith(f"{LAST_LAYER}.")}
        new_tensors, head = {**new_tensors, **layer}, transfer.describe()
    model.load_state_dict(new_tensors, strict=False)
    return LoadedWeights(tuple(sorted(set(state) - set(new_tensors))), head)


@dataclass(frozen=True, eq=False)
class _Weights:
    """The content of a weights file; `keypoints` is None if kp_ray did not write the file."""

    tensors: dict[str, torch.Tensor]
    keypoints: tuple[str, ...] | None


def _read_weights(url: str) -> _Weights:
    with tempfile.TemporaryDirectory() as folder:
        if url.startswith(("s3://", "gs://")):  # Detectron2 opens local files and web addresses only
            path = str(Path(folder, Path(url).name))
            Path(path).write_bytes(read_bytes(url))
        else:
            with socket_timeout():
                path = PathManager.get_local_path(url)
        if path.endswith(".pkl"):
            with open(path, "rb") as stream:
                content = _ArrayUnpickler(stream, encoding="latin1").load()
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    tensors = {
        name: torch.as_tensor(np.asarray(value)) if isinstance(value, np.ndarray) else value
        for name, value in content.get("model", content).items()
        if isinstance(value, np.ndarray | torch.Tensor)
    }
    return _Weights(tensors, _keypoint_names(content))


class _ArrayUnpickler(pickle.Unpickler):
    """Reads the model zoo's pickles of NumPy arrays and refuses anything else, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        numpy_objects = {"_reconstruct": np._core.multiarray._reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}  # type: ignore[attr-defined]
        numpy_objects |= {"scalar": np._core.multiarray.scalar}  # type: ignore[attr-defined]
        if module.split(".")[0] == "numpy" and name in numpy_objects:
            return numpy_objects[name]
        if (module, name) == ("_codecs", "encode"):
            return str.encode
        raise pickle.UnpicklingError(f"the file would load {module}.{name}, which may run code")
