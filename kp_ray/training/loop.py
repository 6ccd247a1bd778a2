"""The training loop that every Ray Train worker runs: Detectron2's model, solver and event storage on its share of the
store's rows."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from kp_ray.config.load import build_config
from kp_ray.config.training import MemberConfig
from kp_ray.errors import DivergedError, KpRayError
from kp_ray.training.checkpoint import TrainState, create_state, publish_member, report_checkpoint, restore_state
from kp_ray.training.dataloader import iter_batches
from kp_ray.training.evaluation import evaluate
from kp_ray.training.log_writers import TrainingLog
from kp_ray.training.logs import EVALUATION_PREFIX
from kp_ray.training.optimizer import update_ema
from kp_ray.training.worker import Worker, create_worker

LOSSES = ("loss_box_reg", "loss_cls", "loss_keypoint", "loss_rpn_cls", "loss_rpn_loc")
"""Names of the losses of Detectron2's keypoint R-CNN."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of a finished training run.

    Attributes:
        iterations: number of iterations, counted for the run's number of workers.
        resumed_from: iterations of the checkpoint that the run resumed from; 0 for a new run.
        not_in_weights: names of the tensors that the starting weights do not have.
        metrics: metrics of the last evaluation, by name; empty without validation rows.
    """

    iterations: int
    resumed_from: int
    not_in_weights: tuple[str, ...]
    metrics: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        return {
            "iterations": self.iterations,
            "resumed_from": self.resumed_from,
            "not_in_weights": list(self.not_in_weights),
            **self.metrics,
        }


def train_loop_per_worker(loop_config: Mapping[str, Any]) -> TrainingResult | KpRayError:
    """Train a member on this worker, from its last checkpoint if it has one.

    Args:
        loop_config: `config` and `member` as plain values, and the member's `folder`.

    Returns:
        The result, or an error that a restart would only repeat. This error is returned and not raised, because Ray
        Train restarts a run whose worker raises.
    """
    member = MemberConfig.model_validate(loop_config["member"])
    worker = create_worker(build_config(loop_config["config"]), member, loop_config["folder"])
    state = create_state(worker)
    num_done, not_in_weights = 0, tuple[str, ...]()
    error: KpRayError | None = None
    try:
        num_done, not_in_weights = restore_state(state, worker, ray.train.get_checkpoint())
    except KpRayError as caught:
        error = caught
    # A file may be missing on one node only. All workers stop then, instead of waiting for the worker on that node.
    for error_of_worker in comm.all_gather(error):
        if error_of_worker is not None:
            return error_of_worker
    metrics = _run_iterations(worker, state, num_done)
    if isinstance(metrics, DivergedError):
        return metrics
    publish_member(state, worker)
    return TrainingResult(worker.cfg.SOLVER.MAX_ITER, num_done, not_in_weights, metrics)


def _run_iterations(worker: Worker, state: TrainState, start: int) -> dict[str, float] | DivergedError:
    """Train from iteration `start` to the last one.

    Returns:
        The metrics of the last evaluation, or the error if the loss is no longer finite.
    """
    cfg, train = worker.cfg, worker.config.train
    metrics: dict[str, float] = {}
    batches = iter_worker_batches(worker, start)
    with EventStorage(start) as storage, TrainingLog(worker, start) as log:
        for iteration in range(start, cfg.SOLVER.MAX_ITER):
            began = time.perf_counter()
            batch = next(batches)
            data_time = time.perf_counter() - began
            losses = train_step(worker, state, batch, iteration)
            if not math.isfinite(losses["total_loss"]):
                return DivergedError(f"the loss is no longer finite at iteration {iteration}: lower train.base_lr")
            times = {"data_time": data_time, "time": time.perf_counter() - began}
            lr = state.optimizer.param_groups[0]["lr"]
            storage.put_scalars(**losses, **times, lr=lr, workers=worker.world_size, smoothing_hint=False)
            state.scheduler.step()
            num_done = iteration + 1
            evaluated = worker.is_due(num_done, cfg.TEST.EVAL_PERIOD)
            if evaluated:
                metrics = evaluate(state.final_model, worker)
                values = {f"{EVALUATION_PREFIX}{name}": value for name, value in metrics.items()}
                storage.put_scalars(**values, smoothing_hint=False)
            if evaluated or num_done % train.log_period == 0:
                log.write()
            if evaluated or worker.is_due(num_done, cfg.SOLVER.CHECKPOINT_PERIOD):
                report_checkpoint(state, worker, num_done, metrics, evaluated=evaluated)
            storage.step()
    # A run that resumed from a checkpoint of its last iteration has not evaluated.
    return metrics or evaluate(state.final_model, worker)


def iter_worker_batches(worker: Worker, start: int) -> Iterator[list[dict[str, Any]]]:
    """Iterate over endless batches of dataset dicts of this worker's shard, from iteration `start` on."""
    return iter_batches(
        ray.train.get_dataset_shard("train"),
        worker.cfg,
        worker.skeleton,
        batch_size=worker.cfg.SOLVER.IMS_PER_BATCH // worker.world_size,
        seed=worker.member.seed,
        rank=worker.rank,
        start=start,
    )


def train_step(worker: Worker, state: TrainState, batch: Sequence[dict[str, Any]], iteration: int) -> dict[str, float]:
    """Update the weights with a batch.

    All random numbers of an iteration come from (seed, rank, iteration), so a resumed run draws the same. If the loss
    of any worker is not finite, no worker updates.

    Args:
        worker: this worker.
        state: changed in place.
        batch: dataset dicts of this worker's images.
        iteration: counted from 0.

    Returns:
        The losses, averaged over the workers, and their sum `total_loss`.
    """
    seed_all_rng(worker.seed(iteration))
    use_amp = worker.cfg.SOLVER.AMP.ENABLED
    precision = torch.float16 if worker.device.type == "cuda" else torch.bfloat16
    losses: dict[str, torch.Tensor] = {}
    values = torch.full((len(LOSSES),), torch.nan, device=worker.device)
    state.replica.train()
    try:
        with torch.autocast(worker.device.type, precision, enabled=use_amp):
            losses = state.replica(batch)
        values = torch.stack([losses[name].detach().float() for name in LOSSES])
    except FloatingPointError:
        pass  # Detectron2 raises this for a diverged model; the NaN tells the other workers
    if worker.world_size > 1:
        torch.distributed.all_reduce(values)
        values /= worker.world_size
    means = dict(zip(LOSSES, values.tolist(), strict=True))
    means["total_loss"] = sum(means.values())
    if math.isfinite(means["total_loss"]):
        state.optimizer.zero_grad()
        state.scaler.scale(torch.stack([loss.float() for loss in losses.values()]).sum()).backward()
        state.scaler.unscale_(state.optimizer)  # so that Detectron2's optimizer clips the true gradients
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema:
            update_ema(state.ema, state.model, worker.config.train.ema_decay or 0.0, iteration)
    return means
