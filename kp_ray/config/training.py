"""Sections of the configuration that describe training: network, members and schedule."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from kp_ray.config.types import FolderName, NotNegative, Positive, PrecisionSetting, Section, Seed, WeightsPath

Metric = Literal["rmse", "median_px", "p95_px", "ap", "ap50", "ap75", "pck_0.02", "pck_0.05", "pck_0.1"]
"""Name of a metric of an evaluation; `rmse`, `median_px` and `p95_px` are in pixels."""


def metric_mode(metric: Metric) -> Literal["min", "max"]:
    """Return the direction in which a metric improves: AP and PCK are maximized, the other metrics minimized."""
    return "max" if metric.startswith(("ap", "pck")) else "min"


class ModelConfig(Section):
    """Network of every member."""

    preset: Literal["r18", "r50", "x101"] = "x101"
    """Keypoint R-CNN with this backbone: `x101` as in the published solution, `r50` twice as fast, `r18` for CPUs."""
    weights: WeightsPath | None = None
    """Initial weights: a URL, a file, or `zoo` for Detectron2's published weights; null: random weights, with which
    `r50` and `x101` diverge."""
    cfg: dict[str, Any] = Field(default_factory=dict)
    """Detectron2 options by their dotted names, e.g. {MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE: 128}. An option that
    follows from another field, or that kp_ray would ignore, is refused with what to set instead."""


class MemberConfig(Section):
    """One model of the ensemble; null `recipes` and `weights` are taken from `train` and `model`."""

    name: FolderName
    """Name of the member, and of its folder in `<run_dir>/members`."""
    seed: Seed = 0
    """Seed of the member's initial weights and of the order of its training rows; give each member another seed."""
    recipes: tuple[str, ...] | None = None
    """Stored recipes to train on; null: `train.recipes`."""
    weights: WeightsPath | None = None
    """Initial weights; null: `model.weights`."""
    fold: NotNegative | None = None
    """Fold of `split.folds` on which the member validates instead of training, from 0; null: the i-th member (from 0)
    holds out fold i mod `split.folds`."""


class WorkerRange(Section):
    """Smallest and largest number of workers of an elastic training run."""

    min: Positive
    """Smallest number of workers with which the run starts, and continues when nodes leave."""
    max: Positive
    """Largest number of workers, up to which the run grows when nodes join."""

    @model_validator(mode="after")
    def _check_order(self) -> "WorkerRange":
        if self.min > self.max:
            raise ValueError(f"min: is more than max (got {self.min} and {self.max}): lower it")
        return self


class TrainConfig(Section):
    """Training of each member.

    Learning rate, iterations, steps, `eval_period` and batch size are those of a single worker. With N workers
    Detectron2's reference-world-size rule multiplies learning rate and batch by N and divides the others by N.
    `checkpoint_period` and `log_period` count the iterations of any number of workers.
    """

    members: tuple[MemberConfig, ...] = (MemberConfig(name="a", seed=1), MemberConfig(name="b", seed=2))
    """Models of the ensemble; as many train at the same time as the cluster holds."""
    num_workers: Annotated[
        Annotated[Positive, Tag("number")] | Annotated[WorkerRange, Tag("range")],
        Discriminator(lambda value: "range" if isinstance(value, dict | WorkerRange) else "number"),
    ] = 1
    """Workers per member: a number, or {min, max} for a run that adapts when nodes leave or join."""
    use_gpu: bool | None = None
    """Let each worker take one GPU; null: if the cluster has any."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPUs that Ray reserves for each worker."""
    threads_per_worker: Positive | None = None
    """Torch threads of a worker on CPUs; null: `cpus_per_worker`, rounded, at least 1."""
    threads_per_feed: Positive | None = None
    """Prefetch threads of a worker: they read, decode and resize images in advance, one batch per thread; null:
    `cpus_per_worker`, rounded, at least 1. Their number does not change the batches."""
    parts_on_disk_gb: Annotated[float, Field(ge=0)] | None = None
    """Largest total size of the parts that each node copies to its disk from a store on object storage. Workers read
    the other parts from object storage. null: half of the free disk space."""
    precision: PrecisionSetting = "auto"
    """Number format of the model's backbone; auto: bf16 on GPUs, or fp16 on GPUs older than Ampere, and fp32 on CPUs.
    With `fp32`, only convolutions may use TF32, which is torch's default."""
    recipes: tuple[str, ...] | None = None
    """Stored recipes to train on; null: all."""
    tuned: bool = True
    """Train with the settings that the run folder's search found, if there is one and `tune.num_trials` is not 0;
    false: with the config's own."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` as in the published solution; the preset `demo`, which starts from random weights, uses `adamw`."""
    base_lr: Annotated[float, Field(gt=0)] = 0.001
    """Learning rate after warm-up; this and the other defaults of the schedule are those of the published solution."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0001
    """L2 penalty (SGD) or decoupled decay (AdamW) of the weights, except those of normalization layers."""
    max_iter: Positive = 10000
    """Iterations of a training run."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    """Learning rate after warm-up: multiplied by `gamma` at each of `steps`, or a half cosine down to 0."""
    steps: tuple[Positive, ...] = (3000, 4000, 5000, 6000, 7000, 8000)
    """Iterations of the multi-step schedule; those at or after `max_iter` are ignored."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Factor of the multi-step schedule."""
    warmup_iters: NotNegative = 1000
    """Iterations in which the learning rate rises linearly from a thousandth of `base_lr`."""
    ims_per_batch: Positive = 2
    """Images per iteration of one worker; a GPU's memory limits `ims_per_batch` / `accumulate`."""
    accumulate: Positive = 1
    """Passes in which a worker computes the images of an iteration; the gradients are averaged over the passes."""
    flip: bool = True
    """Mirror half of the training images. Members trained without it are refused by `predict.tta: [flip]`."""
    eval_period: NotNegative = 5000
    """Iterations between evaluations; 0: only after the last iteration."""
    best_metric: Metric = "rmse"
    """Metric by which `model_best.pth` and the best checkpoints are chosen; `rmse` is the competition's."""
    keep_best: Positive = 1
    """Number of best checkpoints to keep beside the latest; one of `x101` is about 1 GB."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Evaluate and save an exponential moving average of the weights with this decay, e.g. 0.999; null: the weights
    themselves."""
    checkpoint_period: Positive = 1000
    """Largest number of iterations that are lost when a worker or the driver is killed; it is not divided by the number
    of workers. Two checkpoints are saved per period: if the latest one is not recorded yet, the run resumes from the
    one before it."""
    deterministic: bool = False
    """Let cudnn use deterministic algorithms only, without TF32; this can be slower, and the published solution does
    not do it. CPUs need no setting."""
    log_period: Positive = 20
    """Iterations between lines of `metrics.json`."""
    mlflow: str | None = None
    """Also log to MLflow: a tracking server's URI, or `local` for a SQLite file in the member's folder; null: no."""
    max_failures: NotNegative = 3
    """Number of times a member is restarted after it lost workers; then it stops, and the same command resumes it."""

    @property
    def min_workers(self) -> int:
        """The smallest number of workers."""
        return self.num_workers.min if isinstance(self.num_workers, WorkerRange) else self.num_workers

    @property
    def max_workers(self) -> int:
        """The largest number of workers."""
        return self.num_workers.max if isinstance(self.num_workers, WorkerRange) else self.num_workers

    @property
    def num_prefetch_threads(self) -> int:
        """The number of a worker's prefetch threads."""
        return self.threads_per_feed or max(1, round(self.cpus_per_worker))

    @model_validator(mode="after")
    def _check_members(self) -> "TrainConfig":
        names = [member.name for member in self.members]
        if not names:
            raise ValueError("members: name at least one")
        if len(set(names)) != len(names):
            raise ValueError(f"members: two members share a name: {', '.join(names)}: rename one")
        if "ensemble" in names:
            raise ValueError("members: `ensemble` names the fused result: choose another name")
        if self.precision == "fp16" and self.use_gpu is False:
            raise ValueError("precision: fp16 needs GPUs, and use_gpu is false: set precision to auto, fp32 or bf16")
        if self.ims_per_batch % self.accumulate:
            raise ValueError(
                f"accumulate: ims_per_batch ({self.ims_per_batch}) cannot be divided into equal passes "
                f"(got {self.accumulate}): set a divisor"
            )
        return self
