"""Training on Ray Train: every worker runs Detectron2's model, optimizer, scheduler and event storage on the rows of
the store that Ray Data deals out to it.

Each member of the ensemble is one Ray Train run, named after the member and kept in its folder, so the same command
goes on where a stopped one ended.
"""

import contextlib
import copy
import importlib.util
import itertools
import json
import logging
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage
from pyarrow.fs import LocalFileSystem
from ray.train import CheckpointConsistencyMode
from ray.train.torch import TorchTrainer, get_device

from kp_ray.config import (
    Config,
    DivergedError,
    InputError,
    MemberConfig,
    StoppedError,
    TrainConfig,
    WorkerRange,
    build,
    exists,
    filesystem,
    join,
    one_line,
    order_of,
    read_bytes,
    read_json,
    write_bytes,
)
from kp_ray.detectron import (
    build_cfg,
    build_model,
    build_optimizer,
    follow,
    load_weights,
    predict_rows,
    save_model,
    scale_cfg,
    to_dataset_dict,
)
from kp_ray.ensemble import fill_missing
from kp_ray.keypoints import Skeleton
from kp_ray.metrics import evaluate_keypoints
from kp_ray.store import (
    RowReader,
    iter_rows,
    ray_data_settings,
    read_manifest,
    read_parquet,
    reason_of,
    select_parts,
    store_digest,
    writer_lock,
)

WHOLE_SHARD = 10_000_000
"""Rows of the shuffle buffer: it holds places of rows, not pictures, so the whole shard fits."""
FEED_CPUS = 0.5
"""What a training run leaves free, beside its workers, for Ray Data's tasks."""
BATCHES_AHEAD = 3

SCORE, WORST = "score", 1e30
"""What a checkpoint reports of `train.best_metric`, `WORST` (with the sign that makes it so) if it was not evaluated:
what Ray Train writes of a NaN it cannot read again."""

LOSSES = ("loss_box_reg", "loss_cls", "loss_keypoint", "loss_rpn_cls", "loss_rpn_loc")
"""Of Detectron2's keypoint R-CNN."""

_COLUMNS = ("image", "width", "height", "keypoints", "bbox_xyxy")


def train(config: Config, progress: Callable[[str, int, int, float], None] | None = None) -> dict[str, Any]:
    """Train every member that is not finished, as many at once as the cluster holds.

    Args:
        config: with a finished store in its run folder; a Ray cluster must be running.
        progress: called with (member, iteration, iterations in all, latest loss).

    Returns:
        Per member: what `fit_member` returns and `seconds`, or `skipped: true`.

    Raises:
        InputError: another process trains in this run folder, no training rows, a cluster too small for one member, a
            diverged loss, or workers lost too often. The other members are trained first.
    """
    check_options(config)
    check_settings(config)
    with writer_lock(config.path("members")):
        return _train(config, progress)


def _train(config: Config, progress: Callable[[str, int, int, float], None] | None) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    failed: list[InputError] = []
    waiting = []
    for member in config.train.members:
        _check_rows(config, member)
        if exists(join(config.member_dir(member.name), "model_final.pth")):
            summary[member.name] = {"skipped": True}
        else:
            waiting.append(member)
    at_once, use_gpu = runs_at_once(config)
    config.keep()
    running: dict[Any, tuple[MemberConfig, float]] = {}
    # Ray Train's `fit` blocks, so each member gets a task that needs no CPU of its own.
    fit = ray.remote(num_cpus=0, max_retries=0)(_fit_member)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                member = waiting.pop(0)
                _note_settings(config, member)
                running[fit.remote(config.to_dict(), member.name, use_gpu)] = (member, time.time())
            done, _ = ray.wait(list(running), timeout=1.0)
            for reference in done:
                member, began = running.pop(reference)
                try:
                    summary[member.name] = {**ray.get(reference), "seconds": round(time.time() - began, 1)}
                except ray.exceptions.RayTaskError as error:
                    if not isinstance(error.cause, InputError):
                        raise
                    failed.append(error.cause)  # of this member alone
            if progress:
                for member, _ in running.values():
                    _tell_progress(config, member, progress)
    except ray.exceptions.RayError as error:
        raise InputError(f"training stopped: {reason_of(error)}; run train again to go on") from error
    if failed:
        raise InputError("; ".join(str(one) for one in failed))
    return {name: summary[name] for name in (member.name for member in config.train.members)}


def check_options(config: Config) -> None:
    """Refuse before anything starts what every worker would refuse.

    Raises:
        InputError: a wrong option of Detectron2, or MLflow is not there.
    """
    manifest = read_manifest(config.path("store"))
    build_cfg(config, config.skeleton_of(manifest.skeleton), "cpu")
    if config.train.mlflow and importlib.util.find_spec("mlflow") is None:
        raise InputError("train.mlflow: MLflow is not installed: pip install 'kp_ray[mlflow]'")
    if config.train.mlflow == "local" and not isinstance(filesystem(config.run_dir)[0], LocalFileSystem):
        raise InputError("train.mlflow: `local` needs a local run_dir: name a tracking server's URI")


def _check_rows(config: Config, member: MemberConfig) -> None:
    usable, needed = len(usable_rows(config, member)), config.train.ims_per_batch * config.train.worker_range[1]
    if usable < needed:
        raise InputError(
            f"member {member.name}: {usable} training rows have at least {config.augment.min_visible} visible "
            f"keypoints, a step needs {needed}: add images or recipes, or lower train.ims_per_batch"
        )


def usable_rows(config: Config, member: MemberConfig) -> pa.Table:
    """`path` and `row` of the store's rows that a member trains on: enough visible keypoints, a box with an area."""
    _, paths = select_parts(config.path("store"), split="train", recipes=_recipes(config, member))
    least = max(1, config.augment.min_visible)

    def look(path: str) -> pa.Table:
        table = read_parquet(path, ["num_visible", "bbox_xyxy"])
        box = np.array(table["bbox_xyxy"].to_pylist()).reshape(-1, 4)
        has_area = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
        rows = np.flatnonzero((table["num_visible"].to_numpy() >= least) & has_area)
        return pa.table({"path": pa.array([path] * len(rows), pa.string()), "row": pa.array(rows, pa.int64())})

    with ThreadPoolExecutor() as pool:
        return pa.concat_tables(
            [pa.table({"path": pa.array([], pa.string()), "row": pa.array([], pa.int64())}), *pool.map(look, paths)]
        )


def _recipes(config: Config, member: MemberConfig) -> tuple[str, ...] | None:
    return member.recipes or config.train.recipes


def runs_at_once(config: Config) -> tuple[int, bool]:
    """How many training runs the cluster holds at once, beside what feeds them, and whether they use GPUs.

    Raises:
        InputError: not even one fits.
    """
    now, later = ray.cluster_resources(), config.cluster  # a cluster that grows may have no node yet
    have = {"CPU": max(now.get("CPU", 0), later.num_cpus or 0), "GPU": max(now.get("GPU", 0), later.num_gpus or 0)}
    train = config.train
    use_gpu = have["GPU"] > 0 if train.use_gpu is None else train.use_gpu
    fewest, most = (_fitting(have, train, workers, use_gpu) for workers in train.worker_range)
    if fewest < 1:
        least, _ = train.worker_range
        gpus = f" and {least} GPUs" if use_gpu else ""
        raise InputError(
            f"the cluster has {have['CPU']:g} CPUs and {have['GPU']:g} GPUs; training asks for "
            f"{least * train.cpus_per_worker + FEED_CPUS:g} CPUs{gpus}: lower train.num_workers or "
            "train.cpus_per_worker"
        )
    if not fits_a_node(config, train.cpus_per_worker, 1 if use_gpu else 0):
        raise InputError(
            f"no node has {train.cpus_per_worker:g} CPUs{' and a GPU' if use_gpu else ''} for a worker: lower "
            "train.cpus_per_worker, or train.num_workers' share of each node"
        )
    if not (later.num_cpus or later.num_gpus):  # of nodes that are still to come, nothing is known
        places = sum(_places(node, train.cpus_per_worker, use_gpu) for node in _nodes())
        least, wanted = train.worker_range
        if places < least:  # Ray would wait for them without end
            raise InputError(
                f"the nodes have room for {places} workers of {train.cpus_per_worker:g} CPUs"
                f"{' and a GPU' if use_gpu else ''} each, training asks for {least}: lower train.num_workers or "
                "train.cpus_per_worker"
            )
        most = min(most, places // wanted)
    # Ray counts the whole cluster for each elastic run.
    return 1 if isinstance(train.num_workers, WorkerRange) else most, use_gpu


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _places(node: Mapping[str, float], cpus: float, use_gpu: bool) -> int:
    """How many workers of so many CPUs, and a GPU, a node holds."""
    places = int(node.get("CPU", 0) / cpus + 1e-9)
    return min(places, int(node.get("GPU", 0))) if use_gpu else places


def fits_a_node(config: Config, cpus: float, gpus: float) -> bool:
    """Whether some node holds this at once; of a cluster that grows, the largest node may still come."""
    nodes = _nodes()
    later = {"CPU": config.cluster.num_cpus, "GPU": config.cluster.num_gpus}
    grown = {name: later[name] or max(node.get(name, 0) for node in nodes) for name in later}
    return any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in [*nodes, grown])


def _fitting(have: Mapping[str, float], train: TrainConfig, workers: int, use_gpu: bool) -> int:
    """How many runs of so many workers these resources hold."""
    fits = int(have["CPU"] / (workers * train.cpus_per_worker + FEED_CPUS) + 1e-9)
    return min(fits, int(have["GPU"] // workers)) if use_gpu else fits


NOT_DECIDING = {
    "members", "cpus_per_worker", "threads_per_worker", "use_gpu", "keep_best", "log_period", "max_failures", "mlflow",
}  # fmt: skip
"""Of the training section, what may change when a run goes on."""


def _settings(config: Config, member: MemberConfig) -> dict[str, Any]:
    """What decides a member's weights, as plain values."""
    values = config.to_dict()
    decides = {f"model.{name}": value for name, value in values["model"].items()}
    decides |= {f"train.{name}": value for name, value in values["train"].items() if name not in NOT_DECIDING}
    decides |= {f"member.{name}": value for name, value in member.model_dump(mode="json").items() if name != "name"}
    decides |= {"augment.min_visible": config.augment.min_visible, "skeleton": values["skeleton"]}
    decides["the store"] = store_digest(config.path("store"))
    return dict(json.loads(json.dumps(decides)))


def check_settings(config: Config) -> None:
    """Refuse settings other than those that the members of this run folder began with.

    Raises:
        InputError: naming the setting.
    """
    for member in config.train.members:
        if exists(join(config.member_dir(member.name), "settings.json")):
            _check_same_settings(config, member)


def _note_settings(config: Config, member: MemberConfig) -> None:
    path = join(config.member_dir(member.name), "settings.json")
    write_bytes(path, json.dumps(_settings(config, member), indent=1).encode())


def _check_same_settings(config: Config, member: MemberConfig) -> None:
    folder = config.member_dir(member.name)
    path, now = join(folder, "settings.json"), _settings(config, member)
    before = read_json(path, "delete this file and go on with the settings that the member began with")
    for name in now:
        if before.get(name) != now[name]:
            told = "another store" if name == "the store" else f"{name} {before.get(name)!r:.80}, now {now[name]!r:.80}"
            raise InputError(
                f"{folder}: was trained with other settings: {told}; give the member a new name, choose a new run_dir, "
                "or delete this folder to train it anew"
            )


def _tell_progress(config: Config, member: MemberConfig, progress: Callable[[str, int, int, float], None]) -> None:
    path = join(config.member_dir(member.name), "metrics.json")
    if exists(path):
        lines = read_bytes(path).splitlines()
        if lines:
            latest = json.loads(lines[-1])
            total = round(config.train.max_iter / latest["workers"])
            progress(member.name, latest["iteration"] + 1, total, latest.get("total_loss", float("nan")))


def _fit_member(values: Mapping[str, Any], name: str, use_gpu: bool) -> dict[str, Any]:
    config = build(values)
    member = next(one for one in config.train.members if one.name == name)
    return fit_member(config, member, use_gpu=use_gpu, folder=config.member_dir(name))


def fit_member(
    config: Config,
    member: MemberConfig,
    *,
    use_gpu: bool,
    folder: str,
) -> dict[str, Any]:
    """One Ray Train run, from its last checkpoint if it has one, to a finished member in `folder`.

    Returns:
        The last evaluation, `iterations`, `resumed_from` (the iteration of the checkpoint gone on from, 0: none) and
        `not_in_weights` (names of tensors that the starting weights do not have).

    Raises:
        DivergedError: the loss is no longer finite.
        InputError: the starting weights or a part of the store cannot be used.
        StoppedError: workers were lost or failed more than `train.max_failures` times.
    """
    # The controller asks for reports every two seconds by default, which would hold back every report.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    train = config.train
    # Ray Data shards and shuffles which rows, not their pictures: a stream of pictures keeps its coordinator busy for
    # as long as training is the slower side (measured: 40 % of a core a run), and cannot be shuffled as a whole.
    rows = usable_rows(config, member)
    # Each worker's shard is a run of these rows for the whole training; in the store they are sorted by recipe.
    mixed = rows.take(np.random.default_rng(member.seed).permutation(len(rows)))
    with ray_data_settings():
        dataset = ray.data.from_arrow(mixed)
    parent, _, name = folder.rstrip("/").rpartition("/")
    resources = {"CPU": train.cpus_per_worker, **({"GPU": 1} if use_gpu else {})}
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"config": config.to_dict(), "member": member.model_dump(mode="json"), "folder": folder},
        datasets={"train": dataset},
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.worker_range if isinstance(train.num_workers, WorkerRange) else train.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=parent,
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            # Ray keeps the latest beside these.
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=train.keep_best,
                checkpoint_score_attribute=SCORE,
                checkpoint_score_order=order_of(train.best_metric),
            ),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise StoppedError(
            f"member {member.name}: training stopped: {reason_of(error)}; run the same command to go on"
        ) from error
    outcome = dict(result.return_value or {})
    if "diverged" in outcome:
        raise DivergedError(f"member {member.name}: {outcome['diverged']}")
    if "error" in outcome:
        raise InputError(f"member {member.name}: {outcome['error']}")
    return outcome


def train_loop_per_worker(loop: dict[str, Any]) -> dict[str, Any]:
    """What each worker runs: Detectron2's training loop over the worker's shard.

    Args:
        loop: `config` and `member` as plain values, and the member's `folder`.

    Returns:
        What `fit_member` does, or one line: `error` if training cannot start, `diverged` if it cannot go on.
    """
    worker = _Worker(build(loop["config"]), MemberConfig.model_validate(loop["member"]))
    start, not_in_weights, wrong = 0, list[str](), ""
    try:
        start, not_in_weights = worker.restore(ray.train.get_checkpoint())
    except InputError as error:
        wrong = str(error)
    for told in comm.all_gather(wrong):  # a file may be missing on one node alone; the others would wait for it
        if told:
            return {"error": told}
    cfg, inputs = worker.cfg, worker.inputs(ray.train.get_dataset_shard("train"), start)
    latest: dict[str, float] = {}
    with EventStorage(start) as storage, _Log(loop["folder"], start, worker) as log:
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


class _Worker:
    """One worker's model and all that a checkpoint holds of it."""

    def __init__(self, config: Config, member: MemberConfig) -> None:
        context = ray.train.get_context()
        self.config, self.member, self.seed = config, member, member.seed
        self.rank, self.world, self.device = context.get_world_rank(), context.get_world_size(), get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(config.train.threads_per_worker or max(1, round(config.train.cpus_per_worker)))
        manifest = read_manifest(config.path("store"))
        self.skeleton = config.skeleton_of(manifest.skeleton)
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
            missing = load_weights(self.network, self.config, weights, self.skeleton)
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
        return feed(shard, self.cfg, self.skeleton, size=size, seed=self.seed, rank=self.rank, start=start)

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
                follow(self.average, self.network, self.config.train.ema_decay or 0.0, iteration)
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
            for row, people in zip(rows, predict_rows(self.result, self.cfg, self.skeleton, rows), strict=True):
                del row["image"]
                own.append({**row, "best": people[0] if people else None})
        everyone = sorted((one for share in comm.all_gather(own) for one in share), key=lambda one: one["source"])
        return self._metrics(everyone) if everyone else {}

    def _metrics(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        nobody = np.full((len(self.skeleton), 3), np.nan)
        seen = np.array([row["best"] is not None for row in rows])
        predicted, _ = fill_missing(
            np.stack([row["best"][2] if row["best"] else nobody for row in rows]),
            seen,
            [row["scene"] for row in rows],
            [row["camera"] for row in rows],
            [row["frame"] for row in rows],
            mean_pose=np.zeros((len(self.skeleton), 2)),
        )
        scores = np.array([row["best"][0] if row["best"] else 0.0 for row in rows])
        truth = np.stack([np.array(row["keypoints"], dtype=np.float64).reshape(-1, 3) for row in rows])
        found = seen & (scores >= self.config.predict.score_threshold)
        metrics = evaluate_keypoints(predicted, truth, self.skeleton, found=found, scores=scores)
        flat = {**metrics, **{f"pck_{share}": value for share, value in metrics["pck"].items()}}
        return {name: float(value) for name, value in flat.items() if isinstance(value, int | float)}

    def report(self, done: int, metrics: Mapping[str, float], *, evaluated: bool) -> None:
        """Tell Ray Train of a checkpoint and the latest evaluation, and wait until it has taken note of them."""
        metric = self.config.train.best_metric
        score = metrics.get(metric, math.nan) if evaluated else math.nan
        worst = -WORST if order_of(metric) == "max" else WORST
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
        _checkpoints()

    def publish(self, folder: str) -> None:
        """Leave the finished member in its folder; `model_final.pth` comes last."""
        if self.rank != 0:
            return
        with tempfile.TemporaryDirectory() as local:
            save_model(self.result, self.cfg, local, self.skeleton)
            scored = [one for one in _checkpoints() if abs(one.metrics[SCORE]) < WORST]
            if scored:
                sign = -1 if order_of(self.config.train.best_metric) == "max" else 1
                best = min(scored, key=lambda one: sign * one.metrics[SCORE])
                with best.checkpoint.as_directory() as saved:
                    state = torch.load(Path(saved, "checkpoint.pth"), map_location="cpu", weights_only=True)
                content = {"model": state["average"] or state["model"], "keypoints": list(self.skeleton.names)}
                torch.save({**content, "iteration": state["iteration"]}, Path(local, "model_best.pth"))
            for path in sorted(Path(local).iterdir(), key=lambda path: path.name == "model_final.pth"):
                write_bytes(join(folder, path.name), path.read_bytes())


def _checkpoints() -> list[ray.train.ReportedCheckpoint]:
    """The checkpoints that Ray Train keeps, once it has taken note of all that were reported."""
    return ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)


class _MlflowWriter(EventWriter):
    """Logs to a run of an MLflow tracking server; a member's folder remembers which."""

    def __init__(self, uri: str, folder: str) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        # By default each call to a server that is gone takes minutes, and all workers wait.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self.client = MlflowClient(f"sqlite:///{folder}/mlflow.db" if uri == "local" else uri)
        noted = join(folder, "mlflow_run.txt")
        if not exists(noted):
            with contextlib.suppress(MlflowException):  # it is there, perhaps since a moment ago
                self.client.create_experiment("kp_ray")
            experiment = self.client.get_experiment_by_name("kp_ray")
            run = self.client.create_run(experiment.experiment_id, run_name=folder.rstrip("/").rpartition("/")[2])
            write_bytes(noted, run.info.run_id.encode())
        self.run = read_bytes(noted).decode()

    def write(self) -> None:
        from mlflow.entities import Metric

        storage, now = get_event_storage(), int(time.time() * 1000)
        latest = storage.latest().items()
        metrics = [Metric(name, value, now, step) for name, (value, step) in latest if step == storage.iter]
        with _not_ending_training():
            self.client.log_batch(self.run, metrics)

    def close(self) -> None:
        with _not_ending_training():
            self.client.set_terminated(self.run)


@contextlib.contextmanager
def _not_ending_training() -> Iterator[None]:
    """A tracking server that does not answer is no reason to stop."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        logging.getLogger(__name__).warning("train.mlflow: %s", one_line(error)[:200])


class _Log:
    """`metrics.json` and `tensorboard/` of a member, written by Detectron2's writers and copied to its folder."""

    def __init__(self, folder: str, start: int, worker: _Worker) -> None:
        self.folder, self.start, self.active, self.workers = folder, start, worker.rank == 0, worker.world
        self.mlflow = worker.config.train.mlflow

    def __enter__(self) -> "_Log":
        if self.active:
            self.work = tempfile.TemporaryDirectory()
            local, earlier = Path(self.work.name, "metrics.json"), join(self.folder, "metrics.json")
            if self.start and exists(earlier):  # what a lost worker logged after its last checkpoint comes again
                kept = []
                for line in map(json.loads, read_bytes(earlier).splitlines()):
                    done = int((line["iteration"] + 1) * line["workers"])  # as iterations of one worker
                    if done <= self.start * self.workers:
                        line |= {"iteration": max(0, done // self.workers - 1), "workers": self.workers}
                        kept.append(f"{json.dumps(line)}\n")
                local.write_text("".join(kept))
            # Windows of 1: a window of the last values would be lost with the worker.
            board = TensorboardXWriter(f"{self.work.name}/tensorboard", window_size=1, purge_step=self.start)
            self.writers: list[EventWriter] = [JSONWriter(str(local), window_size=1), board]
            if self.mlflow:
                with _not_ending_training():
                    self.writers.append(_MlflowWriter(self.mlflow, self.folder))
        return self

    def write(self) -> None:
        """Write the latest iteration."""
        if self.active:
            for writer in self.writers:
                writer.write()
            self._copy()

    def _copy(self) -> None:
        for path in Path(self.work.name).rglob("*"):
            if path.is_file():
                write_bytes(join(self.folder, path.relative_to(self.work.name).as_posix()), path.read_bytes())

    def __exit__(self, *exception: object) -> None:
        if self.active:
            with self.work:
                for writer in self.writers:
                    writer.close()
                self._copy()


def feed(
    shard: ray.data.DataIterator,
    cfg: CfgNode,
    skeleton: Skeleton,
    *,
    size: int,
    seed: int,
    rank: int,
    start: int = 0,
) -> Iterator[list[dict[str, Any]]]:
    """Endless batches of a model's inputs, read from the store and mapped a few iterations ahead in a thread.

    Args:
        shard: a worker's share of the places (`path`, `row`) of the training rows.
        size: rows a batch.
        seed, rank: with the iteration they decide a batch's rows, sizes and flips, so a resumed run goes on with those
            that come next.
        start: the first iteration.
    """
    reader = RowReader(_COLUMNS)

    def read(places: list[dict[str, Any]], iteration: int) -> list[dict[str, Any]]:
        rng = np.random.default_rng([seed, rank, iteration])
        return [to_dataset_dict(reader.read(**place), cfg, skeleton, rng) for place in places]

    numbered = zip(itertools.islice(_batches(shard, size, seed), start, None), itertools.count(start))
    with ThreadPoolExecutor(1) as thread:
        ahead = deque(thread.submit(read, *batch) for batch in itertools.islice(numbered, BATCHES_AHEAD))
        for batch in numbered:
            yield ahead.popleft().result()
            ahead.append(thread.submit(read, *batch))


def _batches(shard: ray.data.DataIterator, size: int, seed: int) -> Iterator[list[dict[str, Any]]]:
    """Endless batches of full size, each epoch in another order of the whole shard."""
    for epoch in itertools.count():
        batches = shard.iter_batches(
            batch_size=size,
            batch_format="pyarrow",
            drop_last=True,
            local_shuffle_buffer_size=WHOLE_SHARD,
            local_shuffle_seed=seed + epoch,
        )
        for batch in batches:
            yield batch.to_pylist()


def _seed(seed: int, rank: int, iteration: int) -> int:
    return int(np.random.SeedSequence([seed, rank, iteration + 1]).generate_state(1)[0])
