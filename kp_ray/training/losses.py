"""Compute the losses of Detectron2's keypoint R-CNN without raising errors, and average them over the workers."""

import math
from collections.abc import Sequence
from typing import Any

import torch

LOSSES = ("loss_box_reg", "loss_cls", "loss_keypoint", "loss_rpn_cls", "loss_rpn_loc")
"""Names of the losses of Detectron2's keypoint R-CNN."""


class LossModule(torch.nn.Module):
    """Computes the losses of a batch; they are NaN if the model has diverged.

    Detectron2 raises FloatingPointError for a diverged model. A worker that raises would leave the other workers
    waiting for its gradients, so this module returns NaN losses instead, whose gradients reach every worker.

    Args:
        model: the network, which is not copied.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Sequence[dict[str, Any]]) -> torch.Tensor:
        """Return the losses (5,) of a batch of dataset dicts, in the order of `LOSSES`."""
        try:
            losses = self.model(batch)
        except FloatingPointError:
            sums = [parameter.sum() for parameter in self.model.parameters() if parameter.requires_grad]
            return (torch.stack(sums).sum() * math.nan).expand(len(LOSSES))
        return torch.stack([losses[name].float() for name in LOSSES])


def average_losses(losses: Sequence[torch.Tensor], num_workers: int) -> list[dict[str, float]]:
    """Average the losses of each iteration over all workers; every worker must call this.

    This waits for the GPU, so a worker calls it once for several iterations.

    Args:
        losses: this worker's losses (5,) of each iteration.
        num_workers: number of workers.

    Returns:
        For each iteration the losses by name, and their sum `total_loss`.
    """
    values = torch.stack(list(losses))
    if num_workers > 1:
        torch.distributed.all_reduce(values)
        values /= num_workers
    means = [dict(zip(LOSSES, iteration_losses, strict=True)) for iteration_losses in values.tolist()]
    return [{**mean, "total_loss": sum(mean.values())} for mean in means]
