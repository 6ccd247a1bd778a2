"""The checkpoints that Ray Train keeps of a run, and their scores."""

import ray
import ray.train
from ray.train import CheckpointConsistencyMode

SCORE, WORST = "score", 1e30
"""What a checkpoint reports of `train.best_metric`, `WORST` (with the sign that makes it so) if it was not evaluated:
what Ray Train writes of a NaN it cannot read again."""


def reported_checkpoints() -> list[ray.train.ReportedCheckpoint]:
    """The checkpoints that Ray Train keeps, once it has taken note of all that were reported."""
    return ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
