"""Read and compare the files of trained members, and find the workers of a training run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from kp_ray.config.schema import Config
from kp_ray.training.result import TrainingResult

TWO_WORKERS = {
    "num_workers": 2,
    "ims_per_batch": 2,
    "max_iter": 16,
    "steps": [12],
    "eval_period": 8,
    "checkpoint_period": 4,
    "ema_decay": 0.9,
    "base_lr": 1e-4,
}
"""A `train` section for two workers, for which Detectron2's rule halves iterations and evaluation period.

A checkpoint is saved every 2 iterations, because kp_ray saves two per `checkpoint_period`.
"""


@dataclass(frozen=True)
class TrainedMember:
    """Config and result of a member `a` that two workers trained."""

    config: Config
    result: TrainingResult


def read_log_lines(config: Config, member: str = "a") -> list[dict[str, Any]]:
    """Read the lines of a member's `metrics.json`, one mapping per line."""
    return [json.loads(line) for line in Path(config.member_dir(member), "metrics.json").read_text().splitlines()]


def count_log_lines(config: Config, member: str = "a") -> int:
    """Count the lines of a member's `metrics.json`; 0 if the file does not exist yet."""
    path = Path(config.member_dir(member), "metrics.json")
    return len(path.read_text().splitlines()) if path.exists() else 0


def read_weights(config: Config, member: str = "a", name: str = "model_final.pth") -> dict[str, torch.Tensor]:
    """Read the tensors of a weights file in a member's folder."""
    return dict(torch.load(Path(config.member_dir(member), name), weights_only=True)["model"])


def assert_same_training(config: Config, expected: Config) -> None:
    """Assert that two runs logged every iteration once, with the same values, and ended with the same weights.

    Two runs on one machine are equal bit for bit. The tolerance allows torch's kernels to sum in another order.
    """
    lines, expected_lines = read_log_lines(config), read_log_lines(expected)
    assert [line["iteration"] for line in lines] == list(range(len(expected_lines)))
    for line, expected_line in zip(lines, expected_lines, strict=True):
        assert line.keys() == expected_line.keys()
        for key in expected_line.keys() - {"time", "data_time"}:
            assert line[key] == pytest.approx(expected_line[key], rel=1e-5), (line["iteration"], key)
    weights = read_weights(config)
    for name, value in read_weights(expected).items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)


def find_train_workers(parent: psutil.Process) -> list[psutil.Process]:
    """Find Ray Train's workers among the descendants of a process."""
    return [process for process in parent.children(recursive=True) if _is_train_worker(process)]


def _is_train_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in process.name() or any("RayTrainWorker" in part for part in process.cmdline())
    except psutil.Error:
        return False
