"""Build the Detectron2 config of a run from a model preset and kp_ray's settings."""

from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.engine.defaults import DefaultTrainer
from detectron2.modeling import build_model as build_detectron2_model

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, describe_error, one_line
from kp_ray.keypoints import Skeleton
from kp_ray.models.options import check_combinations, check_option

MODEL_PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "x101": ("COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x.yaml", {}),
    "r50": ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x.yaml", {}),
    # For training from scratch on CPUs: narrow layers, images of 256x144 px, and trained BatchNorm, because with frozen
    # statistics training from scratch diverges.
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
"""Name of a preset -> the model zoo's config file and the options that are changed in it."""


def build_cfg(config: Config, skeleton: Skeleton, device: str) -> CfgNode:
    """Build the Detectron2 config of a run, for a single worker.

    Args:
        config: gives the preset, the solver's settings and `model.cfg`, which overrides the preset's options.
        skeleton: gives the number of keypoints and their sigmas.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: an option of `model.cfg` is refused by `check_option` or `check_combinations`, or its value has the
            wrong type.
    """
    base_file, preset_options = MODEL_PRESETS[config.model.preset]
    cfg = model_zoo.get_config(base_file)
    for name, value in config.model.cfg.items():
        check_option(name, value, cfg)
    for name, value in {**preset_options, **derive_options(config, skeleton, device), **config.model.cfg}.items():
        try:
            cfg.merge_from_list([name, value])
        except (AssertionError, KeyError, ValueError) as error:
            raise ConfigError(f"model.cfg.{name}: {one_line(error)} (got {value!r:.80}): correct the value") from error
    check_combinations(config, cfg)
    return cfg


def check_network(cfg: CfgNode) -> None:
    """Refuse options with which Detectron2 cannot build the network.

    The check allocates no memory for weights.

    Raises:
        ConfigError: the options do not fit together.
    """
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            build_model(cfg)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        message = describe_error(error)
        raise ConfigError(f"model.cfg: the network cannot be built ({message}): correct its MODEL options") from error


def derive_options(config: Config, skeleton: Skeleton, device: str) -> dict[str, Any]:
    """Return the Detectron2 options that kp_ray's settings decide."""
    train, predict = config.train, config.predict
    return {
        "MODEL.DEVICE": device,
        "MODEL.WEIGHTS": "",
        "MODEL.KEYPOINT_ON": True,
        "MODEL.ROI_HEADS.NUM_CLASSES": 1,
        "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": len(skeleton),
        "TEST.KEYPOINT_OKS_SIGMAS": list(skeleton.sigmas),
        # The lower of the two thresholds, because `predict.score_threshold` is applied later.
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": min(predict.score_threshold, predict.fallback_threshold),
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
        "SOLVER.AMP.ENABLED": train.precision in ("bf16", "fp16"),  # for Detectron2's own trainer
        "TEST.EVAL_PERIOD": train.eval_period,
    }


def scale_cfg(cfg: CfgNode, num_workers: int) -> CfgNode:
    """Scale a config to a number of workers by Detectron2's rule: LR and batch grow, iterations and steps shrink.

    The checkpoint period is not scaled: scaled down for many workers, it would be only a few iterations.
    """
    scaled_cfg = DefaultTrainer.auto_scale_workers(cfg.clone(), num_workers)
    solver = scaled_cfg.SOLVER
    solver.CHECKPOINT_PERIOD = cfg.SOLVER.CHECKPOINT_PERIOD
    # Rounding can give 0 iterations, or an evaluation period of 0, with which nothing is evaluated.
    solver.MAX_ITER = max(1, solver.MAX_ITER)
    scaled_cfg.TEST.EVAL_PERIOD = max(min(1, cfg.TEST.EVAL_PERIOD), scaled_cfg.TEST.EVAL_PERIOD)
    # Rounding can also move a step onto the last iteration or onto another step, which the scheduler refuses.
    solver.STEPS = tuple(sorted({step for step in solver.STEPS if 0 < step < solver.MAX_ITER}))
    return scaled_cfg


def build_model(cfg: CfgNode) -> torch.nn.Module:
    """Build the network of a config, with random weights, on its device."""
    return build_detectron2_model(cfg)
