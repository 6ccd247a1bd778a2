"""Describe a worker of a training run: its rank, its device, and the member that it trains."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray.train
import torch
from detectron2.config import CfgNode
from ray.train.torch import get_device

from kp_ray.config.schema import Config
from kp_ray.config.training import MemberConfig
from kp_ray.keypoints import Skeleton
from kp_ray.models.precision import Precision, resolve_precision, set_tf32
from kp_ray.models.presets import build_cfg, scale_cfg
from kp_ray.store.manifest import read_manifest


@dataclass(frozen=True)
class Worker:
    """A Ray Train worker and the settings that it trains with.

    Attributes:
        config: the run's configuration.
        member: the member that is trained.
        folder: local path or URL of the member's folder.
        skeleton: the store's keypoints.
        cfg: Detectron2's config, scaled to `world_size` workers.
        rank: number of this worker, from 0.
        world_size: number of workers.
        local_rank: number of this worker on its node, from 0.
        device: the worker's CPU or GPU.
        precision: number format of the model's backbone.
        temp_dir: folder on this node's disk for files of this run; deleted when the node's last worker ends.
        locate_part: returns the path from which a part is read, see `RowReader`.
    """

    config: Config
    member: MemberConfig
    folder: str
    skeleton: Skeleton
    cfg: CfgNode
    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    precision: Precision
    temp_dir: Path
    locate_part: Callable[[str], str]

    @property
    def is_first(self) -> bool:
        """True on rank 0, which writes the log, the checkpoints and the finished member."""
        return self.rank == 0

    def seed(self, iteration: int) -> int:
        """Return the seed of an iteration's random numbers on this worker; a resumed run gets the same seed."""
        return _derive_seed(self.member.seed, self.rank, iteration)

    @property
    def model_seed(self) -> int:
        """Seed of the initial weights, which are the same on every worker."""
        return _derive_seed(self.member.seed, 0, -1)

    @property
    def checkpoint_interval(self) -> int:
        """Iterations between checkpoints.

        Ray Train can delay recording a checkpoint until the next one is saved, and a killed run then loses the
        iterations of two intervals. Therefore an interval is half of `train.checkpoint_period`.
        """
        return max(1, self.cfg.SOLVER.CHECKPOINT_PERIOD // 2)

    def is_due(self, num_done: int, period: int) -> bool:
        """Return True after every `period` iterations (0: never) and after the last iteration."""
        return num_done == self.cfg.SOLVER.MAX_ITER or (period > 0 and num_done % period == 0)


def create_worker(
    config: Config, member: MemberConfig, folder: str, temp_dir: Path, locate_part: Callable[[str], str]
) -> Worker:
    """Describe the worker that runs in this process, and set torch's threads and numerical options.

    Raises:
        ConfigError: an option of Detectron2 is wrong.
        StoreError: there is no finished store.
    """
    context, device = ray.train.get_context(), get_device()
    if device.type == "cpu":
        torch.set_num_threads(config.train.threads_per_worker or max(1, round(config.train.cpus_per_worker)))
    skeleton = config.build_skeleton(read_manifest(config.path("store")).skeleton)
    world_size = context.get_world_size()
    cfg = scale_cfg(build_cfg(config, skeleton, device.type), world_size)
    precision = resolve_precision(config.train.precision, device.type)
    if device.type == "cuda":
        set_tf32(precision, deterministic=config.train.deterministic)
    set_torch_options(cfg, deterministic=config.train.deterministic)
    return Worker(
        config=config,
        member=member,
        folder=folder,
        skeleton=skeleton,
        cfg=cfg,
        rank=context.get_world_rank(),
        world_size=world_size,
        local_rank=context.get_local_rank(),
        device=device,
        precision=precision,
        temp_dir=temp_dir,
        locate_part=locate_part,
    )


def set_torch_options(cfg: CfgNode, *, deterministic: bool) -> None:
    """Set this process's torch options as Detectron2's `default_setup` does, and cudnn's determinism.

    Args:
        cfg: Detectron2's config with CUDNN_BENCHMARK and, after version 0.6, FLOAT32_PRECISION.
        deterministic: `train.deterministic`.
    """
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    torch.backends.cudnn.deterministic = deterministic
    if precision := cfg.get("FLOAT32_PRECISION"):
        torch.set_float32_matmul_precision(precision)


def _derive_seed(seed: int, rank: int, iteration: int) -> int:
    return int(np.random.SeedSequence([seed, rank, iteration + 1]).generate_state(1)[0])
