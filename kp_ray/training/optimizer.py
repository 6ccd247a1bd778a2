"""The optimizer, and the moving average of weights."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from kp_ray.config.schema import TrainConfig


def build_optimizer(cfg: CfgNode, model: torch.nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """SGD as Detectron2 builds it, or AdamW over the same parameter groups."""
    if train.optimizer == "sgd":
        return build_sgd(cfg, model)
    groups = get_default_optimizer_params(model, weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM)
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return adamw(groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=True)


def update_ema(average: torch.nn.Module, model: torch.nn.Module, decay: float, step: int) -> None:
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
