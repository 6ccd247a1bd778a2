"""Weights in and out: members, starting weights, the model zoo's files."""

import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from kp_ray.config.schema import Config
from kp_ray.errors import ModelError, one_line
from kp_ray.keypoints import Skeleton
from kp_ray.models.presets import MODEL_PRESETS, build_model
from kp_ray.storage import filesystem, read_bytes


def save_model(model: torch.nn.Module, cfg: CfgNode, folder: str, skeleton: Skeleton) -> None:
    """Write `model_final.pth` and `config.yaml` into a local folder, as plain Detectron2 opens them.

    The weights carry the keypoints' names, `keypoints`; Detectron2 passes over them.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    saved = cfg.clone()
    saved.defrost()
    saved.MODEL.WEIGHTS = "model_final.pth"
    torch.save({"model": model.state_dict(), "keypoints": list(skeleton.names)}, f"{folder}/model_final.pth")
    Path(folder, "config.yaml").write_text(saved.dump())


def load_member(
    folder: str, device: str, keypoint_names: Sequence[str] | None = None
) -> tuple[torch.nn.Module, CfgNode]:
    """A finished member's model, in evaluation mode, and its cfg.

    Args:
        keypoint_names: the keypoints that are expected of it, in their order; None: any.

    Raises:
        ModelError: the folder holds no finished member, or one of other keypoints.
    """
    fs, inner = filesystem(folder)
    try:
        with fs.open_input_file(f"{inner}/config.yaml") as stream:
            cfg = CfgNode.load_cfg(stream.readall().decode())
        with fs.open_input_file(f"{inner}/model_final.pth") as stream:
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(
            f"{folder}: no finished member here (model_final.pth, config.yaml); run train first"
        ) from error
    its_names = content.get("keypoints")
    if keypoint_names is not None and its_names is not None and list(keypoint_names) != list(its_names):
        raise ModelError(
            f"{folder}: predicts other keypoints than are asked for, or in another order ({', '.join(its_names[:3])}, "
            "...): use the labels and the form that it was trained with"
        )
    full = model_zoo.get_config(MODEL_PRESETS["r50"][0])
    full.merge_from_other_cfg(cfg)
    full.MODEL.DEVICE = device
    model = build_model(full)
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise ModelError(f"{folder}: model_final.pth does not fit its config.yaml") from error
    return model.eval(), full


def load_weights(model: torch.nn.Module, config: Config, weights: str, skeleton: Skeleton) -> list[str]:
    """Start a model from weights: `zoo`, a URL, or a file (.pth, also another run's, or a model zoo .pkl).

    Returns:
        Names of the model's tensors that the weights do not have in the same shape and that stay random.

    Raises:
        ModelError: the weights cannot be reached or read, none of them fits, or they are of another skeleton.
    """
    url = model_zoo.get_checkpoint_url(MODEL_PRESETS[config.model.preset][0]) if weights == "zoo" else weights
    try:
        state, names = _read_state(url)
    except (
        OSError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        pickle.PickleError,
    ) as error:
        reason = one_line(error)[:200] or type(error).__name__
        raise ModelError(
            f"model.weights: {url}: cannot be read ({reason}); give a file or a URL that is reachable"
        ) from error
    if names is not None and tuple(names) != skeleton.names:
        count = f"{len(names)} keypoints" if len(names) != len(skeleton) else "other keypoints"
        raise ModelError(
            f"model.weights: {url}: a model of {count} ({names[0]}, ..., {names[-1]}) than the labels' "
            f"{len(skeleton)} ({skeleton.names[0]}, ..., {skeleton.names[-1]}): give weights of the same skeleton"
        )
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise ModelError(f"model.weights: {url}: no tensor fits model.preset {config.model.preset}")
    model.load_state_dict(fitting, strict=False)
    return sorted(set(own) - set(fitting))


class _ArraysOnly(pickle.Unpickler):
    """Reads the model zoo's pickles of NumPy arrays and nothing else, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct": np._core.multiarray._reconstruct, "ndarray": np.ndarray, "dtype": np.dtype}  # type: ignore[attr-defined]
        allowed |= {"scalar": np._core.multiarray.scalar}  # type: ignore[attr-defined]
        if module.split(".")[0] == "numpy" and name in allowed:
            return allowed[name]
        if (module, name) == ("_codecs", "encode"):
            return str.encode
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}")


def _read_state(url: str) -> tuple[dict[str, torch.Tensor], list[str] | None]:
    """The tensors of a weights file, and the names of its keypoints if it is a kp_ray member's."""
    with tempfile.TemporaryDirectory() as folder:
        if url.startswith(("s3://", "gs://")):  # Detectron2 reaches files and the web only
            path = str(Path(folder, Path(url).name))
            Path(path).write_bytes(read_bytes(url))
        else:
            path = PathManager.get_local_path(url)
        if path.endswith(".pkl"):
            with open(path, "rb") as stream:
                loaded = _ArraysOnly(stream, encoding="latin1").load()
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    state = loaded.get("model", loaded)
    tensors = {
        name: torch.as_tensor(np.asarray(value)) if isinstance(value, np.ndarray) else value
        for name, value in state.items()
    }
    return tensors, loaded.get("keypoints")
