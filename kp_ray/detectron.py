"""Detectron2: presets, a store's row -> dataset dict, the model, its weights in and out, its predictions.

`cfg` is Detectron2's CfgNode, `config` ours. Coordinates move to Detectron2's continuous convention (+0.5) once, in
`to_dataset_dict`, and back (-0.5) once, in `read_instances`.
"""

import math
import pickle
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import simplejpeg
import torch

with warnings.catch_warnings():  # Detectron2 imports pkg_resources and torch.jit, both deprecated
    warnings.simplefilter("ignore")
    from detectron2 import model_zoo
    from detectron2.config import CfgNode
    from detectron2.data import detection_utils
    from detectron2.data import transforms as T  # noqa: N812
    from detectron2.engine.defaults import DefaultTrainer
    from detectron2.modeling import build_model as build_detectron2_model
    from detectron2.solver import build_optimizer as build_sgd
    from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
    from detectron2.structures import BoxMode, Instances
    from detectron2.utils.file_io import PathManager

from kp_ray.augment import Image
from kp_ray.config import Config, InputError, TrainConfig, filesystem, one_line, read_bytes
from kp_ray.keypoints import CONTINUOUS_OFFSET, FloatArray, Skeleton

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "x101": ("COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x.yaml", {}),
    "r50": ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml", {}),
    # Learns from scratch on CPU cores: narrow layers, trained BatchNorm (frozen statistics diverge from scratch),
    # frames at 256x144.
    "r18": (
        "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml",
        {
            "MODEL.RESNETS.DEPTH": 18,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
            "MODEL.RESNETS.NORM": "BN",
            "MODEL.BACKBONE.FREEZE_AT": 0,
            "MODEL.FPN.OUT_CHANNELS": 64,
            "MODEL.FPN.NORM": "BN",
            "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 64,
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 300,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 200,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 200,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
            "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 128,
            "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [64, 64, 64, 64],
            "INPUT.MIN_SIZE_TRAIN": [144],
            "INPUT.MAX_SIZE_TRAIN": 256,
            "INPUT.MIN_SIZE_TEST": 144,
            "INPUT.MAX_SIZE_TEST": 256,
        },
    ),
}
"""Model preset -> the model zoo's config file and the options changed in it."""


def build_cfg(config: Config, skeleton: Skeleton, device: str) -> CfgNode:
    """The Detectron2 config of a run, for one worker.

    Args:
        device: "cpu" or "cuda".

    Raises:
        InputError: `model.cfg` names an option that Detectron2 does not have, or gives it a value of another type.
    """
    base, changes = PRESETS[config.model.preset]
    cfg = model_zoo.get_config(base)
    train = config.train
    ours: dict[str, Any] = {
        "MODEL.DEVICE": device,
        "MODEL.WEIGHTS": "",
        "MODEL.KEYPOINT_ON": True,
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": len(skeleton),
        "TEST.KEYPOINT_OKS_SIGMAS": list(skeleton.sigmas),
        # The lower of the two thresholds; `score_threshold` is applied to what comes back.
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": min(config.predict.score_threshold, config.predict.fallback_threshold),
        "DATASETS.TRAIN": ("kp_ray_train",),
        "DATASETS.TEST": ("kp_ray_val",),
        "INPUT.RANDOM_FLIP": "horizontal" if train.flip else "none",
        "SOLVER.REFERENCE_WORLD_SIZE": 1,
        "SOLVER.BASE_LR": train.base_lr,
        "SOLVER.WEIGHT_DECAY": train.weight_decay,
        "SOLVER.MAX_ITER": train.max_iter,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR" if train.schedule == "cosine" else "WarmupMultiStepLR",
        "SOLVER.STEPS": tuple(step for step in train.steps if step < train.max_iter),
        "SOLVER.GAMMA": train.gamma,
        "SOLVER.WARMUP_ITERS": train.warmup_iters,
        "SOLVER.IMS_PER_BATCH": train.ims_per_batch,
        "SOLVER.CHECKPOINT_PERIOD": train.checkpoint_period,
        "TEST.EVAL_PERIOD": train.eval_period,
    }
    for key in config.model.cfg:
        if key in ours:
            raise InputError(f"model.cfg.{key}: follows from kp_ray's own settings: set it under train or predict")
    for key, value in {**changes, **ours, **config.model.cfg}.items():
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, KeyError, ValueError) as error:
            raise InputError(f"model.cfg.{key}: {one_line(error)} (Detectron2 option)") from error
    return cfg


def scale_cfg(cfg: CfgNode, num_workers: int) -> CfgNode:
    """Detectron2's reference-world-size rule: LR and batch grow with the workers, iterations and steps shrink."""
    scaled = DefaultTrainer.auto_scale_workers(cfg.clone(), num_workers)
    # Rounding can end in no iteration, or in a period of 0, which means never.
    scaled.SOLVER.MAX_ITER = max(1, scaled.SOLVER.MAX_ITER)
    scaled.SOLVER.CHECKPOINT_PERIOD = max(1, scaled.SOLVER.CHECKPOINT_PERIOD)
    scaled.TEST.EVAL_PERIOD = max(min(1, cfg.TEST.EVAL_PERIOD), scaled.TEST.EVAL_PERIOD)
    # It can also move a step onto the last iteration or onto another step, which the scheduler refuses.
    scaled.SOLVER.STEPS = tuple(sorted({step for step in scaled.SOLVER.STEPS if 0 < step < scaled.SOLVER.MAX_ITER}))
    return scaled


def build_model(cfg: CfgNode) -> torch.nn.Module:
    """The network of a cfg, with random weights, on its device."""
    return build_detectron2_model(cfg)


def build_optimizer(cfg: CfgNode, model: torch.nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """SGD as Detectron2 builds it, or AdamW over the same parameter groups."""
    if train.optimizer == "sgd":
        return build_sgd(cfg, model)
    groups = get_default_optimizer_params(model, weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM)
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return adamw(groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=True)


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
    picture = _resized(row["image"], (width, height), (new_w, new_h))
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


def _resized(picture: bytes | Image, size: tuple[int, int], new_size: tuple[int, int]) -> Image:
    """A JPEG or (H, W, 3) picture of `size` (width, height) at `new_size`, as Detectron2's ResizeTransform makes it.

    A JPEG is decoded at 1/8, 1/4 or 1/2 where that is still large enough (its other scales are no faster than 1).
    """
    scale = 1.0
    if isinstance(picture, bytes):
        fits = [part for part in (1 / 8, 1 / 4, 1 / 2) if all(size[i] * part >= new_size[i] for i in (0, 1))]
        scale = fits[0] if fits else 1.0
        width, height = (math.ceil(side * scale) for side in size)
        picture = simplejpeg.decode_jpeg(picture, "BGR", min_width=width, min_height=height)
    # A scaled picture's last column and row may reach past the frame, hence a box that ends within them.
    box = (0, 0, size[0] * scale, size[1] * scale)
    bilinear = PIL.Image.Resampling.BILINEAR
    return np.asarray(PIL.Image.fromarray(np.asarray(picture)).resize(new_size, bilinear, box))


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


def read_instances(instances: Instances) -> list[tuple[float, FloatArray, FloatArray]]:
    """A model's answer for one picture: (score, bbox_xyxy (4,), keypoints (K, 3) x, y, score), best first.

    Coordinates are pixel indices of the picture whose `height` and `width` went in.
    """
    found = instances.to("cpu")
    keypoints = found.pred_keypoints.numpy().astype(np.float64)
    keypoints[:, :, :2] -= CONTINUOUS_OFFSET
    boxes = found.pred_boxes.tensor.numpy().astype(np.float64) - CONTINUOUS_OFFSET
    scores = found.scores.numpy().astype(np.float64)
    return [(float(scores[i]), boxes[i], keypoints[i]) for i in np.argsort(-scores, kind="stable")]


def predict_rows(
    model: torch.nn.Module, cfg: CfgNode, skeleton: Skeleton, rows: Sequence[Mapping[str, Any]]
) -> list[list[tuple[float, FloatArray, FloatArray]]]:
    """The people in each row's picture (`image`, `width`, `height`); the model must be in evaluation mode."""
    with torch.inference_mode():
        outputs = model([to_dataset_dict(row, cfg, skeleton, rng=None) for row in rows])
    return [read_instances(output["instances"]) for output in outputs]


def follow(average: torch.nn.Module, model: torch.nn.Module, decay: float, step: int) -> None:
    """Move an exponential moving average of a model's weights and statistics on by one step (from 0).

    The decay starts lower, min(decay, (1 + step) / (10 + step)), so that the random start is soon forgotten
    (`tf.train.ExponentialMovingAverage`).
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, share)
            else:
                mean.copy_(value)


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
        InputError: the folder holds no finished member, or one of other keypoints.
    """
    fs, inner = filesystem(folder)
    try:
        with fs.open_input_file(f"{inner}/config.yaml") as stream:
            cfg = CfgNode.load_cfg(stream.readall().decode())
        with fs.open_input_file(f"{inner}/model_final.pth") as stream:
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(
            f"{folder}: no finished member here (model_final.pth, config.yaml); run train first"
        ) from error
    its_names = content.get("keypoints")
    if keypoint_names is not None and its_names is not None and list(keypoint_names) != list(its_names):
        raise InputError(
            f"{folder}: predicts other keypoints than are asked for, or in another order ({', '.join(its_names[:3])}, "
            "...): use the labels and the form that it was trained with"
        )
    full = model_zoo.get_config(PRESETS["r50"][0])
    full.merge_from_other_cfg(cfg)
    full.MODEL.DEVICE = device
    model = build_model(full)
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise InputError(f"{folder}: model_final.pth does not fit its config.yaml") from error
    return model.eval(), full


def load_weights(model: torch.nn.Module, config: Config, weights: str, skeleton: Skeleton) -> list[str]:
    """Start a model from weights: `zoo`, a URL, or a file (.pth, also another run's, or a model zoo .pkl).

    Returns:
        Names of the model's tensors that the weights do not have in the same shape and that stay random.

    Raises:
        InputError: the weights cannot be reached or read, none of them fits, or they are of another skeleton.
    """
    url = model_zoo.get_checkpoint_url(PRESETS[config.model.preset][0]) if weights == "zoo" else weights
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
        raise InputError(
            f"model.weights: {url}: cannot be read ({reason}); give a file or a URL that is reachable"
        ) from error
    if names is not None and tuple(names) != skeleton.names:
        count = f"{len(names)} keypoints" if len(names) != len(skeleton) else "other keypoints"
        raise InputError(
            f"model.weights: {url}: a model of {count} ({names[0]}, ..., {names[-1]}) than the labels' "
            f"{len(skeleton)} ({skeleton.names[0]}, ..., {skeleton.names[-1]}): give weights of the same skeleton"
        )
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if not fitting:
        raise InputError(f"model.weights: {url}: no tensor fits model.preset {config.model.preset}")
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
