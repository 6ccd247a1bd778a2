"""The optimizer, and the exponential moving average (EMA) of the weights."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from kp_ray.config.training import TrainConfig


def build_optimizer(cfg: CfgNode, model: torch.nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """Build SGD as Detectron2 does, or AdamW over the same parameter groups, with the config's gradient clipping.

    Args:
        cfg: Detectron2's config, scaled to the number of workers.
        model: the model whose parameters are optimized.
        train: the section `train`, which chooses the optimizer.
    """
    if train.optimizer == "sgd":
        return build_sgd(cfg, model)
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return adamw(groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=True)


def update_ema(ema: torch.nn.Module, model: torch.nn.Module, decay: float, iteration: int) -> None:
    """Move the EMA of a model's weights and statistics towards the model by one update.

    The decay is min(decay, (1 + iteration) / (10 + iteration)), as in `tf.train.ExponentialMovingAverage`, so that the
    initial weights are soon forgotten.

    Args:
        ema: the average, changed in place.
        model: the model after the update of `iteration`.
        decay: `train.ema_decay`.
        iteration: number of the iteration, from 0.
    """
    weight = 1 - min(decay, (1 + iteration) / (10 + iteration))
    with torch.no_grad():
        for average, value in zip(ema.state_dict().values(), model.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(value, weight)
            else:
                average.copy_(value)
