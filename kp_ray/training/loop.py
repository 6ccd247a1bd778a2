"""Training on Ray Train: every worker runs Detectron2's model, optimizer, scheduler and event storage on the rows of
the store that Ray Data deals out to it.

Each member of the ensemble is one Ray Train run, named after the member and kept in its folder, so the same command
goes on where a stopped one ended.
"""

import copy
import itertools
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from ray.train.torch import get_device

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config, MemberConfig, metric_mode
from kp_ray.ensemble.temporal import fill_missing
from kp_ray.errors import KpRayError
from kp_ray.metrics import evaluate_keypoints
from kp_ray.models.decoding import detect_people
from kp_ray.models.presets import build_cfg, build_model, scale_cfg
from kp_ray.models.weights import load_weights, save_model
from kp_ray.storage import join, write_bytes
from kp_ray.store.manifest import read_manifest
from kp_ray.store.read import iter_rows
from kp_ray.training.checkpoint import SCORE, WORST, reported_checkpoints
from kp_ray.training.dataloader import iter_batches
from kp_ray.training.log_writers import TrainingLog
from kp_ray.training.optimizer import build_optimizer, update_ema

LOSSES = ("loss_box_reg", "loss_cls", "loss_keypoint", "loss_rpn_cls", "loss_rpn_loc")
"""Of Detectron2's keypoint R-CNN."""


def train_loop_per_worker(loop: dict[str, Any]) -> dict[str, Any]:
    """What each worker runs: Detectron2's training loop over the worker's shard.

    Args:
        loop: `config` and `member` as plain values, and the member's `folder`.

    Returns:
        What `fit_member` does, or one line: `error` if training cannot start, `diverged` if it cannot go on.
    """
    worker = Worker(build_config(loop["config"]), MemberConfig.model_validate(loop["member"]))
    start, not_in_weights, wrong = 0, list[str](), ""
    try:
        start, not_in_weights = worker.restore(ray.train.get_checkpoint())
    except KpRayError as error:
        wrong = str(error)
    for told in comm.all_gather(wrong):  # a file may be missing on one node alone; the others would wait for it
        if told:
            return {"error": told}
    cfg, inputs = worker.cfg, worker.inputs(ray.train.get_dataset_shard("train"), start)
    latest: dict[str, float] = {}
    log_kwargs = {"rank": worker.rank, "num_workers": worker.world, "mlflow": worker.config.train.mlflow}
    with EventStorage(start) as storage, TrainingLog(loop["folder"], start, **log_kwargs) as log:
        for iteration in range(start, cfg.SOLVER.MAX_ITER):
            began = time.perf_counter()
            batch = next(inputs)
            fed = time.perf_counter()
            losses = worker.step(batch, iteration)
            if not np.isfinite(losses["total_loss"]):
                return {"diverged": f"the loss is no longer finite at iteration {iteration}: lower train.base_lr"}
            times = {"data_time": fed - began, "time": time.perf_counter() - began}
            rate = worker.optimizer.param_groups[0]["lr"]
            storage.put_scalars(**losses, **times, lr=rate, workers=worker.world, smoothing_hint=False)
            worker.scheduler.step()
            done = iteration + 1
            evaluate = worker.due(done, cfg.TEST.EVAL_PERIOD)
            if evaluate:
                latest = worker.evaluate()
                storage.put_scalars(**{f"val/{k}": v for k, v in latest.items()}, smoothing_hint=False)
            if evaluate or done % worker.config.train.log_period == 0:
                log.write()
            if evaluate or worker.due(done, cfg.SOLVER.CHECKPOINT_PERIOD):
                worker.report(done, latest, evaluated=evaluate)
            storage.step()
    latest = latest or worker.evaluate()
    worker.publish(loop["folder"])
    return {
        "iterations": cfg.SOLVER.MAX_ITER,
        "resumed_from": start,
        "not_in_weights": not_in_weights,
        **latest,
    }


class Worker:
    """One worker's model and all that a checkpoint holds of it."""

    def __init__(self, config: Config, member: MemberConfig) -> None:
        context = ray.train.get_context()
        self.config, self.member, self.seed = config, member, member.seed
        self.rank, self.world, self.device = context.get_world_rank(), context.get_world_size(), get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(config.train.threads_per_worker or max(1, round(config.train.cpus_per_worker)))
        manifest = read_manifest(config.path("store"))
        self.skeleton = config.build_skeleton(manifest.skeleton)
        self.cfg = scale_cfg(build_cfg(config, self.skeleton, self.device.type), self.world)
        seed_all_rng(_seed(self.seed, 0, -1))
        self.network = build_model(self.cfg)
        self.model = self.network
        if self.world > 1:
            # Detectron2's create_ddp_model needs its own launcher; batch statistics stay each worker's own, as there.
            ids = [context.get_local_rank()] if self.device.type == "cuda" else None
            self.model = torch.nn.parallel.DistributedDataParallel(
                self.network, device_ids=ids, broadcast_buffers=False
            )
        self.optimizer = build_optimizer(self.cfg, self.network, config.train)
        self.scheduler = build_lr_scheduler(self.cfg, self.optimizer)
        on_gpu = self.device.type == "cuda"
        self.precision = torch.float16 if on_gpu else torch.bfloat16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=on_gpu and self.cfg.SOLVER.AMP.ENABLED)
        self.average: torch.nn.Module | None = None

    def due(self, done: int, period: int) -> bool:
        """Whether something done every `period` iterations (0: never) or at the end is due."""
        return done == self.cfg.SOLVER.MAX_ITER or (period > 0 and done % period == 0)

    @property
    def result(self) -> torch.nn.Module:
        """What is evaluated and published: the moving average of the weights, if one is kept."""
        return self.average or self.network

    def restore(self, checkpoint: ray.train.Checkpoint | None) -> tuple[int, list[str]]:
        """Take up a checkpoint, or the starting weights.

        Returns:
            The iteration to go on with, and the names of tensors that the starting weights do not have.
        """
        weights = self.member.weights or self.config.model.weights
        missing: list[str] = []
        if checkpoint is None and weights:
            missing = load_weights(self.network, weights, preset=self.config.model.preset, skeleton=self.skeleton)
        if self.config.train.ema_decay is not None:
            self.average = copy.deepcopy(self.network).eval()
        if checkpoint is None:
            return 0, missing
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, "checkpoint.pth"), map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["model"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # a CPU's has none
            self.scaler.load_state_dict(state["scaler"])
        # With another number of workers than before, the same images have been seen after fewer or more iterations. The
        # schedule is a function of the iteration alone.
        iteration = min(round(state["iteration"] * state["workers"] / self.world), self.cfg.SOLVER.MAX_ITER)
        self.scheduler.last_epoch = iteration
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate
        return iteration, missing

    def inputs(self, shard: ray.data.DataIterator, start: int) -> Iterator[list[dict[str, Any]]]:
        """The model's inputs from iteration `start` on."""
        size = self.cfg.SOLVER.IMS_PER_BATCH // self.world
        return iter_batches(shard, self.cfg, self.skeleton, size=size, seed=self.seed, rank=self.rank, start=start)

    def step(self, inputs: Sequence[dict[str, Any]], iteration: int) -> dict[str, float]:
        """One update; returns the losses, averaged over the workers, with their sum `total_loss`.

        All random numbers of an iteration come from (seed, rank, iteration), so a resumed run draws the same.
        """
        seed_all_rng(_seed(self.seed, self.rank, iteration))
        self.model.train()
        losses: dict[str, torch.Tensor] = {}
        values = torch.full((len(LOSSES),), torch.nan, device=self.device)
        try:
            with torch.autocast(self.device.type, self.precision, enabled=self.cfg.SOLVER.AMP.ENABLED):
                losses = self.model(inputs)
            values = torch.stack([losses[name].detach().float() for name in LOSSES])
        except FloatingPointError:
            pass  # Detectron2's own word for a diverged model; the other workers must hear it too
        if self.world > 1:
            torch.distributed.all_reduce(values)
            values /= self.world
        means = dict(zip(LOSSES, values.tolist(), strict=True))
        means["total_loss"] = sum(means.values())
        if np.isfinite(means["total_loss"]):
            self.optimizer.zero_grad()
            self.scaler.scale(torch.stack([loss.float() for loss in losses.values()]).sum()).backward()
            self.scaler.unscale_(self.optimizer)  # before Detectron2's optimizer clips
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.average:
                update_ema(self.average, self.network, self.config.train.ema_decay or 0.0, iteration)
        return means

    def evaluate(self) -> dict[str, float]:
        """Metrics on the validation split, each worker predicting its share; empty without validation rows.

        All predict with the first worker's batch statistics: those that are saved.
        """
        if self.world > 1:
            for statistic in self.result.buffers():
                torch.distributed.broadcast(statistic, src=0)
        self.result.eval()
        shard = iter_rows(self.config.path("store"), split="val", shard=(self.rank, self.world))
        own: list[dict[str, Any]] = []
        while rows := list(itertools.islice(shard, 4)):
            for row, people in zip(rows, detect_people(self.result, self.cfg, self.skeleton, rows), strict=True):
                del row["image"]
                own.append({**row, "best": people[0] if people else None})
        everyone = sorted((one for share in comm.all_gather(own) for one in share), key=lambda one: one["source"])
        return self._metrics(everyone) if everyone else {}

    def _metrics(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        nobody = np.full((len(self.skeleton), 3), np.nan)
        seen = np.array([row["best"] is not None for row in rows])
        predicted, _ = fill_missing(
            np.stack([row["best"].keypoints if row["best"] else nobody for row in rows]),
            seen,
            [row["scene"] for row in rows],
            [row["camera"] for row in rows],
            [row["frame"] for row in rows],
            mean_pose=np.zeros((len(self.skeleton), 2)),
        )
        scores = np.array([row["best"].score if row["best"] else 0.0 for row in rows])
        truth = np.stack([np.array(row["keypoints"], dtype=np.float64).reshape(-1, 3) for row in rows])
        found = seen & (scores >= self.config.predict.score_threshold)
        metrics = evaluate_keypoints(predicted, truth, self.skeleton, found=found, scores=scores).to_json()
        flat = {**metrics, **{f"pck_{share}": value for share, value in metrics["pck"].items()}}
        return {name: float(value) for name, value in flat.items() if isinstance(value, int | float)}

    def report(self, done: int, metrics: Mapping[str, float], *, evaluated: bool) -> None:
        """Tell Ray Train of a checkpoint and the latest evaluation, and wait until it has taken note of them."""
        metric = self.config.train.best_metric
        score = metrics.get(metric, math.nan) if evaluated else math.nan
        worst = -WORST if metric_mode(metric) == "max" else WORST
        values = {"iteration": done, SCORE: score if math.isfinite(score) else worst}
        values |= {name: value for name, value in metrics.items() if math.isfinite(value)}
        name = f"checkpoint_{done * self.world:07d}"  # iterations of one worker: grows when the workers become fewer
        if self.rank != 0:
            ray.train.report(values, checkpoint_dir_name=name)
            return
        with tempfile.TemporaryDirectory() as folder:
            state = {
                "model": self.network.state_dict(),
                "average": self.average.state_dict() if self.average else None,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "iteration": done,
                "workers": self.world,
            }
            torch.save(state, Path(folder, "checkpoint.pth"))
            ray.train.report(values, checkpoint=ray.train.Checkpoint.from_directory(folder), checkpoint_dir_name=name)
        # Ray Train looks for reports now and then; a worker that dies before it looked would lose this one.
        reported_checkpoints()

    def publish(self, folder: str) -> None:
        """Leave the finished member in its folder; `model_final.pth` comes last."""
        if self.rank != 0:
            return
        with tempfile.TemporaryDirectory() as local:
            save_model(self.result, self.cfg, local, self.skeleton)
            scored = [one for one in reported_checkpoints() if abs(one.metrics[SCORE]) < WORST]
            if scored:
                sign = -1 if metric_mode(self.config.train.best_metric) == "max" else 1
                best = min(scored, key=lambda one: sign * one.metrics[SCORE])
                with best.checkpoint.as_directory() as saved:
                    state = torch.load(Path(saved, "checkpoint.pth"), map_location="cpu", weights_only=True)
                content = {"model": state["average"] or state["model"], "keypoints": list(self.skeleton.names)}
                torch.save({**content, "iteration": state["iteration"]}, Path(local, "model_best.pth"))
            for path in sorted(Path(local).iterdir(), key=lambda path: path.name == "model_final.pth"):
                write_bytes(join(folder, path.name), path.read_bytes())


def _seed(seed: int, rank: int, iteration: int) -> int:
    return int(np.random.SeedSequence([seed, rank, iteration + 1]).generate_state(1)[0])
