"""Restore checkpoints, report them to Ray Train, and publish the finished member."""

import contextlib
import copy
import math
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from detectron2.solver import build_lr_scheduler
from detectron2.utils.env import seed_all_rng
from ray.train import CheckpointConsistencyMode, CheckpointUploadMode

from kp_ray.config.training import metric_mode
from kp_ray.errors import StorageError, one_line
from kp_ray.models.precision import set_precision
from kp_ray.models.presets import build_model
from kp_ray.models.weights import LoadedWeights, load_weights, save_model, save_torch_file
from kp_ray.storage import join
from kp_ray.training.losses import LossModule
from kp_ray.training.optimizer import build_optimizer
from kp_ray.training.result import SCORE
from kp_ray.training.settings import starting_weights
from kp_ray.training.worker import Worker

CHECKPOINT_NAME = "checkpoint.pth"
WORST_SCORE = 1e30
"""Absolute value of the score of a checkpoint that was not evaluated or whose metric is not finite; `report_checkpoint`
chooses the sign that ranks such a checkpoint last. The score is not NaN, because Ray Train (2.60) cannot reload a NaN
from its snapshot."""


@dataclass
class TrainState:
    """The state of a training run on one worker.

    Attributes:
        model: the network.
        replica: computes the losses (5,) of a batch: a `LossModule`, which is wrapped in a DistributedDataParallel if
            there are several workers.
        optimizer: updates the network's parameters.
        scheduler: sets the learning rate; no checkpoint holds its state, which follows from the iteration.
        scaler: scales the loss for fp16; disabled for other precisions.
        ema: a copy of the network with the moving average of the weights; None if `train.ema_decay` is null.
    """

    model: torch.nn.Module
    replica: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    ema: torch.nn.Module | None = None

    def without_gradient_averaging(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which a backward pass does not average the gradients over the workers."""
        if isinstance(self.replica, torch.nn.parallel.DistributedDataParallel):
            return self.replica.no_sync()
        return contextlib.nullcontext()

    def is_finite(self) -> bool:
        """Return whether all parameters are finite; the answer is the same on every worker."""
        return bool(torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()]).all())

    @property
    def final_model(self) -> torch.nn.Module:
        """The network that is evaluated and published: the EMA if there is one."""
        return self.ema or self.model

    def to_checkpoint(self, iteration: int, num_workers: int) -> dict[str, Any]:
        """Return the content of a checkpoint after `iteration` iterations of `num_workers` workers."""
        return {
            "model": self.model.state_dict(),
            "average": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "iteration": iteration,
            "workers": num_workers,
        }

    def load_checkpoint(self, content: Mapping[str, Any], num_workers: int, max_iter: int) -> int:
        """Load a checkpoint's content.

        If the world size changed, convert the iteration so that the number of images seen stays the same.

        Args:
            content: the result of `to_checkpoint`.
            num_workers: number of workers of this run.
            max_iter: number of iterations of this run with `num_workers` workers.

        Returns:
            The number of finished iterations of `num_workers` workers.
        """
        self.model.load_state_dict(content["model"])
        if self.ema:
            self.ema.load_state_dict(content["average"])
        self.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"]:  # empty if the precision was not fp16
            self.scaler.load_state_dict(content["scaler"])
        num_done = min(round(content["iteration"] * content["workers"] / num_workers), max_iter)
        self.scheduler.last_epoch = num_done
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = lr
        return num_done


def create_state(worker: Worker) -> TrainState:
    """Create the state of a new run, with random weights that are the same on every worker."""
    seed_all_rng(worker.model_seed)
    model = build_model(worker.cfg)
    if worker.device.type == "cpu":
        # Shortens an iteration of the preset demo by a tenth (AMD EPYC). The keypoint loss needs contiguous heads.
        model.backbone.to(memory_format=torch.channels_last)
    set_precision(model, worker.device.type, worker.precision)
    replica: torch.nn.Module = LossModule(model)
    if worker.world_size > 1:
        # Not Detectron2's create_ddp_model, which needs Detectron2's launcher. As in Detectron2's DefaultTrainer,
        # broadcast_buffers=False lets the batch statistics differ between the workers.
        device_ids = [worker.local_rank] if worker.device.type == "cuda" else None
        replica = torch.nn.parallel.DistributedDataParallel(
            replica, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    optimizer = build_optimizer(worker.cfg, model, worker.config.train)
    return TrainState(
        model=model,
        replica=replica,
        optimizer=optimizer,
        scheduler=build_lr_scheduler(worker.cfg, optimizer),
        scaler=torch.amp.GradScaler(worker.device.type, enabled=worker.precision == "fp16"),
    )


def restore_state(
    state: TrainState, worker: Worker, checkpoint: ray.train.Checkpoint | None
) -> tuple[int, LoadedWeights]:
    """Restore a checkpoint, or load the starting weights if there is none.

    Returns:
        The number of finished iterations, and the result of `load_weights`, which is empty if no weights were loaded.

    Raises:
        ModelError: the starting weights cannot be used.
        StorageError: the checkpoint is missing or damaged.
        OSError: the storage of the checkpoint does not answer.
    """
    loaded_weights = LoadedWeights()
    setting, weights = starting_weights(worker.config, worker.member)
    if checkpoint is None and weights:
        preset = worker.config.model.preset
        loaded_weights = load_weights(state.model, weights, preset=preset, skeleton=worker.skeleton, setting=setting)
    if worker.config.train.ema_decay is not None:
        state.ema = copy.deepcopy(state.model).eval()
    if checkpoint is None:
        return 0, loaded_weights
    content = _read_checkpoint(checkpoint, worker.folder)
    return state.load_checkpoint(content, worker.world_size, worker.cfg.SOLVER.MAX_ITER), loaded_weights


def report_checkpoint(
    state: TrainState, worker: Worker, iteration: int, metrics: Mapping[str, float], *, evaluated: bool
) -> None:
    """Save a checkpoint, which Ray Train uploads and then records while training continues.

    Every worker must call this. Rank 0 saves the state after Ray Train has recorded the previous checkpoint, so that a
    killed run resumes from one of its last two checkpoints. Ray Train records no checkpoint that is partly uploaded.

    Args:
        state: the state after `iteration` iterations.
        worker: this worker.
        iteration: number of finished iterations.
        metrics: metrics of the latest evaluation.
        evaluated: True if this state was evaluated, so that its checkpoint can become the best one.
    """
    metric = worker.config.train.best_metric
    score = metrics.get(metric, math.nan) if evaluated else math.nan
    worst_score = -WORST_SCORE if metric_mode(metric) == "max" else WORST_SCORE
    values = {"iteration": iteration, SCORE: score if math.isfinite(score) else worst_score}
    values |= {name: value for name, value in metrics.items() if math.isfinite(value)}
    # The number in the name is the iterations that one worker alone would need for the same images, so that it
    # increases after a resume with any number of workers.
    name = f"checkpoint_{iteration * worker.world_size:07d}"
    if not worker.is_first:
        ray.train.report(values, checkpoint_dir_name=name)
        return
    wait_for_checkpoints()
    folder = tempfile.mkdtemp(dir=worker.temp_dir)
    torch.save(state.to_checkpoint(iteration, worker.world_size), Path(folder, CHECKPOINT_NAME))
    ray.train.report(
        values,
        checkpoint=ray.train.Checkpoint.from_directory(folder),
        checkpoint_dir_name=name,
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )
    # A period of 1 cannot be halved (see `Worker.checkpoint_interval`), so wait until this checkpoint is recorded.
    if worker.checkpoint_interval == worker.config.train.checkpoint_period:
        wait_for_checkpoints()


def publish_member(state: TrainState, worker: Worker) -> None:
    """Write the member to its folder, `model_final.pth` last, because this file marks the member as finished.

    Only rank 0 writes. `model_best.pth` has the weights of the checkpoint with the best evaluation; without an
    evaluated checkpoint it is not written.

    Raises:
        StorageError: the folder cannot be written.
    """
    if not worker.is_first:
        return
    reports = [report for report in wait_for_checkpoints() if abs(report.metrics[SCORE]) < WORST_SCORE]
    if reports:
        sign = -1 if metric_mode(worker.config.train.best_metric) == "max" else 1
        best = min(reports, key=lambda report: sign * report.metrics[SCORE])
        content = _read_checkpoint(best.checkpoint, worker.folder)
        weights = {"model": content["average"] or content["model"], "keypoints": list(worker.skeleton.names)}
        save_torch_file(join(worker.folder, "model_best.pth"), {**weights, "iteration": content["iteration"]})
    save_model(state.final_model, worker.cfg, worker.folder, worker.skeleton)


def _read_checkpoint(checkpoint: ray.train.Checkpoint, member_folder: str) -> dict[str, Any]:
    """Read a checkpoint of the member in `member_folder`.

    Raises:
        StorageError: the checkpoint is missing or damaged.
        OSError: the storage does not answer; Ray Train then restarts the workers.
    """
    path = join(checkpoint.path, CHECKPOINT_NAME)
    try:
        with checkpoint.as_directory() as folder:
            return dict(torch.load(Path(folder, CHECKPOINT_NAME), map_location="cpu", weights_only=True))
    except (FileNotFoundError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise StorageError(
            f"{path}: missing or damaged ({one_line(error)}): delete {member_folder} to train the member again"
        ) from error


def wait_for_checkpoints() -> list[ray.train.ReportedCheckpoint]:
    """Wait until Ray Train has uploaded and recorded every reported checkpoint; return the kept checkpoints."""
    return ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
