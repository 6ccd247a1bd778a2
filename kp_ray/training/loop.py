"""The training loop of a Ray Train worker, with Detectron2's model, solver and event storage."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray.train
import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from kp_ray.config.load import build_config
from kp_ray.config.training import MemberConfig
from kp_ray.errors import DivergedError, KpRayError
from kp_ray.fingerprint import digest
from kp_ray.models.weights import LoadedWeights
from kp_ray.store.local_copies import local_copies
from kp_ray.temp_folders import shared_temp_folder
from kp_ray.training.checkpoint import (
    TrainState,
    create_state,
    publish_member,
    report_checkpoint,
    restore_state,
    wait_for_checkpoints,
)
from kp_ray.training.dataloader import iter_batches
from kp_ray.training.evaluation import evaluate
from kp_ray.training.log_writers import TrainingLog
from kp_ray.training.logs import EVALUATION_PREFIX
from kp_ray.training.losses import average_losses
from kp_ray.training.optimizer import update_ema
from kp_ray.training.result import TrainingResult
from kp_ray.training.worker import Worker, create_worker

LOSS_CHECK_PERIOD = 20
"""Maximum number of iterations between checks that the loss is finite; each check waits for the GPU."""


def train_loop_per_worker(loop_config: Mapping[str, Any]) -> TrainingResult | KpRayError:
    """Train a member on this worker, from its last checkpoint if it has one.

    Args:
        loop_config: `config` and `member` as plain values, and the member's `folder`.

    Returns:
        The result, or the error if the starting weights cannot be used, the checkpoint is damaged, or training
        diverged. Ray Train restarts a run whose worker raises an error, and these errors would come again.
    """
    member, config = MemberConfig.model_validate(loop_config["member"]), build_config(loop_config["config"])
    limit_gb = config.train.parts_on_disk_gb
    max_bytes = None if limit_gb is None else int(limit_gb * 1e9)
    with (
        local_copies(config.path("store"), max_bytes) as locate_part,
        shared_temp_folder(f"member-{digest(loop_config['folder'])}") as temp_dir,
    ):
        return _train(create_worker(config, member, loop_config["folder"], temp_dir, locate_part))


def _train(worker: Worker) -> TrainingResult | KpRayError:
    state = create_state(worker)
    num_done, loaded_weights = 0, LoadedWeights()
    error: KpRayError | None = None
    try:
        num_done, loaded_weights = restore_state(state, worker, ray.train.get_checkpoint())
    except KpRayError as caught:
        error = caught
    # A file may be missing on one node only: all workers stop, because the others would wait for that node's worker.
    for worker_error in comm.all_gather(error):
        if worker_error is not None:
            return worker_error
    try:
        metrics = _run_iterations(worker, state, num_done)
    except DivergedError as diverged:  # every worker raises it
        if worker.is_first:
            wait_for_checkpoints()  # their uploads read from `worker.temp_dir`
        return diverged
    publish_member(state, worker)
    return TrainingResult(
        worker.cfg.SOLVER.MAX_ITER, num_done, loaded_weights.random_tensors, loaded_weights.head, metrics
    )


def _run_iterations(worker: Worker, state: TrainState, start: int) -> dict[str, float]:
    """Train from iteration `start` to the last one.

    Returns:
        The metrics of the last evaluation.

    Raises:
        DivergedError: a loss, the weights or heat maps are no longer finite; every worker raises it.
    """
    cfg, train = worker.cfg, worker.config.train
    metrics: dict[str, float] = {}
    batches = iter_worker_batches(worker, start)
    saved_for_preemption = False
    with EventStorage(start) as storage, TrainingLog(worker, start) as log:
        window = _LossWindow(worker, start)
        for iteration in range(start, cfg.SOLVER.MAX_ITER):
            batch = window.next_batch(batches)
            window.losses.append(train_step(worker, state, batch, iteration))
            lr = state.optimizer.param_groups[0]["lr"]
            state.scheduler.step()
            num_done = iteration + 1
            must_evaluate = worker.is_due(num_done, cfg.TEST.EVAL_PERIOD)
            must_save = must_evaluate or worker.is_due(num_done, worker.checkpoint_interval)
            must_log = must_evaluate or num_done % train.log_period == 0
            if must_save or must_log or len(window.losses) == LOSS_CHECK_PERIOD:
                values = window.close()
                if not saved_for_preemption and ray.train.get_preemption_info() is not None:
                    must_save = saved_for_preemption = True
                if must_log:
                    storage.put_scalars(**values, lr=lr, workers=worker.world_size, smoothing_hint=False)
                # Check the weights too, because an update after a finite loss can make them overflow.
                if must_save and not state.is_finite():
                    raise _diverged_error("the weights are", iteration)
                if must_evaluate:
                    metrics = evaluate(state.final_model, worker)
                    evaluation = {f"{EVALUATION_PREFIX}{name}": value for name, value in metrics.items()}
                    storage.put_scalars(**evaluation, smoothing_hint=False)
                if must_log:
                    log.write()
                if must_save:
                    report_checkpoint(state, worker, num_done, metrics, evaluated=must_evaluate)
                window = _LossWindow(worker, num_done)
            storage.step()
        log.finish()
    # Evaluate now if the run resumed from the checkpoint of its last iteration, and so has no metrics yet.
    return metrics or evaluate(state.final_model, worker)


class _LossWindow:
    """Losses and durations of the iterations since the last check of the losses.

    Between two checks kp_ray does not wait for the GPU; Detectron2's model does, for some numbers.

    Args:
        worker: this worker.
        start: the first iteration of the window.
    """

    def __init__(self, worker: Worker, start: int) -> None:
        self.worker, self.start = worker, start
        self.losses: list[torch.Tensor] = []
        self.wait_s, self.start_s = 0.0, time.perf_counter()

    def next_batch(self, batches: Iterator[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return the next batch, and add the time that this takes to `wait_s`."""
        start_s = time.perf_counter()
        batch = next(batches)
        self.wait_s += time.perf_counter() - start_s
        return batch

    def close(self) -> dict[str, float]:
        """Return the losses of the latest iteration and the mean durations.

        Every worker must call this; the losses are averaged over the workers.

        Raises:
            DivergedError: a loss is not finite; every worker raises it.
        """
        losses = average_losses(self.losses, self.worker.world_size)
        for iteration, means in enumerate(losses, start=self.start):
            if not math.isfinite(means["total_loss"]):
                raise _diverged_error("the loss is", iteration)
        count = len(self.losses)
        return {**losses[-1], "data_time": self.wait_s / count, "time": (time.perf_counter() - self.start_s) / count}


def _diverged_error(subject_and_verb: str, iteration: int) -> DivergedError:
    return DivergedError(f"{subject_and_verb} no longer finite at iteration {iteration}: lower train.base_lr")


def iter_worker_batches(worker: Worker, start: int) -> Iterator[list[dict[str, Any]]]:
    """Iterate endlessly over this worker's batches of dataset dicts, from iteration `start` on."""
    return iter_batches(
        ray.train.get_dataset_shard("train"),
        worker.cfg,
        worker.skeleton,
        batch_size=worker.cfg.SOLVER.IMS_PER_BATCH // worker.world_size,
        seed=worker.member.seed,
        rank=worker.rank,
        start=start,
        num_threads=worker.config.train.num_prefetch_threads,
        locate_part=worker.locate_part,
    )


def train_step(worker: Worker, state: TrainState, batch: Sequence[dict[str, Any]], iteration: int) -> torch.Tensor:
    """Update the weights with a batch; kp_ray itself does not wait for the GPU.

    All random numbers of an iteration come from (seed, rank, iteration), so a resumed run draws the same numbers. A
    loss that is not finite on one worker spoils the weights of all workers: check the loss before saving them.

    Args:
        worker: this worker.
        state: the model and its optimizer, changed in place.
        batch: dataset dicts of this worker's images.
        iteration: number of the iteration, from 0.

    Returns:
        This worker's losses (5,) in the order of `losses.LOSSES`, averaged over the passes of `train.accumulate`.
    """
    seed_all_rng(worker.seed(iteration))
    num_passes = worker.config.train.accumulate
    pass_size = len(batch) // num_passes
    losses = []
    state.replica.train()
    state.optimizer.zero_grad()
    for number in range(num_passes):
        is_last_pass = number == num_passes - 1
        with contextlib.nullcontext() if is_last_pass else state.without_gradient_averaging():
            values = state.replica(batch[number * pass_size : (number + 1) * pass_size])
            state.scaler.scale(values.sum() / num_passes).backward()
        losses.append(values.detach())
    state.scaler.unscale_(state.optimizer)  # so that Detectron2's optimizer clips the true gradients
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.ema:
        update_ema(state.ema, state.model, worker.config.train.ema_decay or 0.0, iteration)
    return torch.stack(losses).mean(dim=0)
