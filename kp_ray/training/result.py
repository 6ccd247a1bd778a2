"""The result of a training run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCORE = "score"
"""Key under which a checkpoint's reported metrics hold its value of `train.best_metric`."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of a finished training run.

    Attributes:
        iterations: number of iterations, each with the images of all workers.
        resumed_from: number of iterations in the checkpoint from which the run resumed; 0 for a new run.
        random_tensors: sorted names of the tensors that were not loaded from the starting weights.
        keypoint_head: origin of the keypoint head's channels, see `LoadedWeights.head`.
        metrics: metrics of the last evaluation, by name; empty without validation rows.
    """

    iterations: int
    resumed_from: int
    random_tensors: tuple[str, ...]
    keypoint_head: str
    metrics: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        return {
            "iterations": self.iterations,
            "resumed_from": self.resumed_from,
            "not_in_weights": list(self.random_tensors),
            "keypoint_head": self.keypoint_head,
            **self.metrics,
        }
