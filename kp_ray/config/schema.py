"""Sections and fields of the configuration, with their types, defaults and checks.

A field's docstring says what it is, its unit, and what null means. Keys that are not listed here are refused.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from kp_ray.config.presets import DEFAULT_RECIPES
from kp_ray.config.types import (
    AnyPath,
    FolderName,
    Fraction,
    NotNegative,
    Positive,
    PredictImages,
    Seed,
    Weights,
)
from kp_ray.errors import ConfigError
from kp_ray.keypoints import Skeleton, skeleton_for
from kp_ray.storage import join, write_bytes

Metric = Literal["rmse", "median_px", "p95_px", "ap", "ap50", "ap75", "pck_0.05", "pck_0.1"]
"""Name of a metric of an evaluation; `rmse`, `median_px` and `p95_px` are in pixels."""


def metric_mode(metric: Metric) -> Literal["min", "max"]:
    """Return the direction in which a metric improves: AP and PCK are maximized, the other metrics minimized."""
    return "max" if metric.startswith(("ap", "pck")) else "min"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Section):
    """Input files: local paths or URLs. A stage refuses to start if one that it needs is null."""

    annotations: AnyPath | None = None
    """Labels: a native CSV, or COCO keypoints JSON (`.json`)."""
    images: AnyPath | None = None
    """Folder of the labelled images."""
    test_images: AnyPath | None = None
    """Folder of the images to predict."""
    sample_submission: AnyPath | None = None
    """CSV with the columns, the row set and the row order that a submission must have."""
    truth: AnyPath | None = None
    """Labels of the test images, in the formats of `annotations`, for `evaluate`."""
    corrections: AnyPath | None = None
    """CSV of corrections (image, action, keypoint, x, y) that are applied whenever the labels are read."""


class SkeletonConfig(_Section):
    """Skeleton of the labels. Required for keypoint names other than the competition's 24; overrides theirs."""

    flip_pairs: tuple[tuple[str, str], ...] | None = None
    """Pairs of left and right names that a horizontal mirror exchanges; null: the competition's."""
    sigmas: tuple[float, ...] | None = None
    """OKS standard deviation per keypoint, relative to the square root of the person's area; null: the
    competition's, of which the first 17 are COCO's."""


class SplitConfig(_Section):
    """Choice of the sources to validate on."""

    by: Literal["scene", "clip", "frame"] = "scene"
    """Unit that is held out as a whole. Frames of one scene are so alike that only `scene` measures anything."""
    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the sources to hold out; 0 holds out none, and then there is no evaluation and no search."""
    seed: Seed | None = None
    """Seed of the choice; null: the run's `seed`."""


class AugmentConfig(_Section):
    """Content of the store. Changing a field, except `min_visible`, changes the parts that depend on it."""

    recipes: tuple[str, ...] = DEFAULT_RECIPES
    """Names of recipes. A name that is listed twice gives two different variants (copies 0 and 1)."""
    user_recipes: dict[FolderName, dict[str, Any]] = {}
    """Your own recipes by name, each an Albumentations pipeline as `albumentations.to_dict` writes it."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of encoded variants (4:2:0); lower values make a smaller store."""
    sources_per_part: Positive = 32
    """Rows of the labels' file per part: the unit of work that a stopped run loses. Use 256 beyond 100,000 frames."""
    oversize: Literal["scale", "error"] = "scale"
    """Sizes of crops in frames other than 1920x1080: `scale` them with the frame, or use them as they are and refuse
    a crop that is larger than its frame (`error`)."""
    box_margin_px: Annotated[float, Field(ge=0)] = 0.0
    """Margin around the labelled points' box, in pixels of the variant; 0 as published. The loss of a training
    step ignores keypoints outside the proposed box, so a margin keeps those at its edge."""
    min_visible: NotNegative = 1
    """Training skips variants with fewer visible keypoints than this, and always those without any."""


class ModelConfig(_Section):
    """Network of every member."""

    preset: Literal["r18", "r50", "x101"] = "x101"
    """Keypoint R-CNN with this backbone: `x101` as published, `r50` about twice as fast, `r18` for CPUs."""
    weights: Weights | None = None
    """Initial weights: a URL, a file, or `zoo` for Detectron2's published weights; null: random weights."""
    cfg: dict[str, Any] = {}
    """Detectron2 options by their dotted names, e.g. {MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE: 128}. Options that other
    fields decide are refused."""


class MemberConfig(_Section):
    """One model of the ensemble; a null field is taken from `train` or `model`."""

    name: FolderName
    """Name of its folder in `<run_dir>/members`."""
    seed: Seed = 0
    """Seed of its initial weights and of the order of its training rows: members must differ to be an ensemble."""
    recipes: tuple[str, ...] | None = None
    """Stored recipes to train on; null: `train.recipes`."""
    weights: Weights | None = None
    """Initial weights; null: `model.weights`."""


class WorkerRange(_Section):
    """Smallest and largest number of workers of an elastic training run."""

    min: Positive
    """The run starts, and continues when nodes leave, with at least so many workers."""
    max: Positive
    """The run takes up to so many workers when nodes join."""

    @model_validator(mode="after")
    def _check_order(self) -> "WorkerRange":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


class TrainConfig(_Section):
    """Training of each member.

    Learning rate, iterations, steps, periods and batch size are those of a single worker. With N workers Detectron2's
    reference-world-size rule multiplies learning rate and batch by N and divides the others by N.
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
    recipes: tuple[str, ...] | None = None
    """Stored recipes to train on; null: all."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` as published; the preset `demo`, which starts from random weights, uses `adamw`."""
    base_lr: Annotated[float, Field(gt=0)] = 0.001
    """Learning rate after warm-up; this and the other defaults of the schedule are the published ones."""
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
    """Images per iteration of one worker; limited by a GPU's memory."""
    flip: bool = True
    """Mirror half of the training images. Members trained without it are refused by `predict.tta: [flip]`."""
    eval_period: NotNegative = 5000
    """Iterations between evaluations; 0: only after the last iteration."""
    best_metric: Metric = "rmse"
    """Metric by which `model_best.pth` and the best checkpoints are chosen; `rmse` is the competition's."""
    keep_best: Positive = 1
    """Number of best checkpoints to keep beside the latest; one of `x101` is about 1 GB."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Evaluate and save an exponential moving average of the weights with this decay, e.g. 0.999; null: the weights."""
    checkpoint_period: Positive = 1000
    """Iterations between checkpoints: the most that a killed worker or driver loses."""
    log_period: Positive = 20
    """Iterations between lines of `metrics.json`."""
    mlflow: str | None = None
    """Also log to MLflow: a tracking server's URI, or `local` for a SQLite file in the member's folder; null: no."""
    max_failures: int = 3
    """Restarts of a member after lost workers before it is given up; the same command then resumes it."""

    @property
    def worker_range(self) -> tuple[int, int]:
        """The smallest and largest number of workers."""
        if isinstance(self.num_workers, WorkerRange):
            return self.num_workers.min, self.num_workers.max
        return self.num_workers, self.num_workers

    @model_validator(mode="after")
    def _check_members(self) -> "TrainConfig":
        names = [member.name for member in self.members]
        if not names:
            raise ValueError("members: name at least one")
        if len(set(names)) != len(names):
            raise ValueError(f"members: two members share a name: {', '.join(names)}")
        if "ensemble" in names:
            raise ValueError("members: `ensemble` names the fused result: choose another name")
        return self


class TuneConfig(_Section):
    """Search for a schedule: each trial is a training run of the first member with sampled settings.

    A range is [lowest, highest]; equal ends fix the parameter. Warm-up and steps are shares of a trial's iterations, so
    that what short trials find applies to a long run.
    """

    num_trials: NotNegative = 16
    """Number of trials; with 0, `run` does not search."""
    max_iter: Positive | None = None
    """Iterations of a trial that is not stopped; null: `train.max_iter`."""
    eval_period: Positive | None = None
    """Iterations between a trial's evaluations, at each of which it can be stopped; null: an eighth of `max_iter`."""
    metric: Metric = "rmse"
    """Metric of the validation scenes that the search improves."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Choice of points: `tpe` learns from earlier trials; `grid` takes the ends and the middle of each range."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """Early stopping of trials: the worse half at each rung, those below the median, or none."""
    max_concurrent: Positive | None = None
    """Trials at the same time; null: as many as the cluster holds. The sampler learns more from fewer at a time."""
    points: tuple[dict[str, bool | int | float | str], ...] = ()
    """Points to try after the config's own setting and the published schedule, e.g. {base_lr: 0.002}."""
    base_lr: tuple[float, float] = (1e-4, 1e-2)
    """Range of `train.base_lr`, sampled on a logarithmic scale."""
    weight_decay: tuple[float, float] = (1e-5, 1e-2)
    """Range of `train.weight_decay`, sampled on a logarithmic scale."""
    warmup: tuple[Fraction, Fraction] = (0.0, 0.2)
    """Range of the warm-up, as a share of the iterations."""
    schedules: tuple[Literal["multistep", "cosine"], ...] = ("multistep", "cosine")
    """Values of `train.schedule` to choose from."""
    num_steps: tuple[NotNegative, NotNegative] = (1, 6)
    """Range of the number of steps of a multi-step schedule."""
    first_step: tuple[Fraction, Fraction] = (0.2, 0.6)
    """Range of the position of its first step, as a share of the iterations."""
    step_spacing: tuple[Fraction, Fraction] = (0.05, 0.2)
    """Range of the distance between its steps, as a share of the iterations."""
    gamma: tuple[float, float] = (0.1, 0.9)
    """Range of `train.gamma`."""
    flips: tuple[bool, ...] = (True, False)
    """Values of `train.flip` to choose from."""
    recipes: dict[str, tuple[str, ...]] | None = None
    """Sets of stored recipes to choose from, by name, beside `own`, which is `train.recipes`. null: also `upright`, the
    recipes of `own` that do not rotate; {}: `own` alone."""

    @property
    def mode(self) -> Literal["min", "max"]:
        """The direction in which `metric` improves."""
        return metric_mode(self.metric)

    @model_validator(mode="after")
    def _check_ranges(self) -> "TuneConfig":
        for name in ("base_lr", "weight_decay", "gamma", "warmup", "num_steps", "first_step", "step_spacing"):
            low, high = getattr(self, name)
            above_0 = "0 < " if name in ("base_lr", "weight_decay", "gamma") else ""
            if low > high or (above_0 and low <= 0):
                raise ValueError(f"{name}: a range is [low, high] with {above_0}low <= high, got [{low}, {high}]")
        if self.gamma[1] > 1:
            raise ValueError(f"gamma: at most 1, got {self.gamma[1]}")
        for name in ("schedules", "flips"):
            if not getattr(self, name):
                raise ValueError(f"{name}: name at least one")
        if "own" in (self.recipes or {}):
            raise ValueError("recipes: `own` is the config's own set; give this one another name")
        return self


class PredictConfig(_Section):
    """Prediction by every member, and fusion of their results."""

    images: PredictImages | None = None
    """Images to predict: a folder; a `.txt` or `.csv` list of names in `data.test_images`, of paths or of URLs;
    `store:val` or `store:train`. null: those of the sample submission, or without one all in `data.test_images`."""
    actors: tuple[Positive, Positive] = (1, 4)
    """Smallest and largest size of the actor pool; each actor holds all members."""
    cpus_per_actor: Annotated[float, Field(gt=0)] = 1.0
    """CPUs of each actor; also its torch threads, rounded."""
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of each actor; a fraction shares one. 0: the actor computes on CPUs."""
    batch_size: Positive = 8
    """Images that a model sees at once, and the most that a lost actor predicts again."""
    tta: tuple[Literal["flip"] | Annotated[float, Field(gt=0, le=4)], ...] = ()
    """Test-time augmentation, averaged: `flip` adds mirrored images, a number adds images at so many times the size."""
    person: Literal["score", "largest", "track"] = "track"
    """Choice among several people: best score, largest box, or best score times closeness to the clip's track."""
    fusion: Literal["mean", "median", "score"] = "mean"
    """Method of combining the members' points; `score` weights them by the scores of person and keypoint."""
    weights: Literal["equal"] | dict[str, float | dict[str, float]] = "equal"
    """Weights of the members: equal, or {member: weight or {keypoint: weight}}; what is not named weighs 1."""
    reject_sigmas: Annotated[float, Field(gt=0)] | None = None
    """Drop a member's point that is farther than this many robust sigmas from the members' median; null: keep all."""
    smooth_frames: Annotated[float, Field(gt=0)] | None = None
    """Smooth each clip over time by a Gaussian with this sigma in frames; null: do not."""
    score_threshold: Fraction = 0.7
    """Lowest score of a person that counts as found; 0.7 as published."""
    fallback_threshold: Fraction = 0.05
    """Lowest score that counts in an image where no member found a person."""
    missing: Literal["fill", "zeros"] = "fill"
    """Images without any person: `fill` from the nearest frame of the clip, else by the mean pose; or write `zeros`."""

    @model_validator(mode="after")
    def _check_actors_and_weights(self) -> "PredictConfig":
        if self.actors[0] > self.actors[1]:
            raise ValueError(f"actors: [smallest, largest] expected, got {list(self.actors)}")
        for member, value in ({} if isinstance(self.weights, str) else self.weights).items():
            if min(value.values() if isinstance(value, dict) else [value], default=0) < 0:
                raise ValueError(f"weights: {member}: a weight is 0 or more, got {value}")
        return self


class ClusterConfig(_Section):
    """Ray cluster of the run."""

    address: str | None = None
    """Address of a cluster to join; null: the environment's RAY_ADDRESS, or else a new local cluster."""
    num_cpus: Positive | None = None
    """CPUs of a local cluster, or those that an autoscaling cluster may grow to; null: what is there."""
    num_gpus: NotNegative | None = None
    """GPUs, as `num_cpus`; train and tune plan with them."""


class Config(_Section):
    """The whole configuration; `kp_ray.config.load.load_config` reads it from YAML."""

    preset: Literal["demo", "dacon"] | None = None
    """Defaults for a purpose: `demo` learns on two CPU cores in minutes, `dacon` is the published solution."""
    run_dir: Annotated[AnyPath, Field(validate_default=True)] = "runs/first"
    """Run folder that receives every result: a local path or a URL; with several nodes one that all of them reach."""
    seed: Seed = 42
    """Seed of the variants and the search, and of the split unless `split.seed` is set."""
    data: DataConfig = DataConfig()
    skeleton: SkeletonConfig = SkeletonConfig()
    split: SplitConfig = SplitConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    tune: TuneConfig = TuneConfig()
    predict: PredictConfig = PredictConfig()
    cluster: ClusterConfig = ClusterConfig()

    def path(self, *parts: str) -> str:
        """Join names to a path inside the run folder."""
        return join(self.run_dir, *parts)

    def member_dir(self, name: str) -> str:
        """Return the folder of a member."""
        return self.path("members", name)

    def require_input(self, key: str) -> str:
        """Return the path under `data.<key>`.

        Raises:
            ConfigError: it is not set.
        """
        value: str | None = getattr(self.data, key)
        if value is None:
            raise ConfigError(f"data.{key} is not set: add it to the config, or --set data.{key}=PATH")
        return value

    def build_skeleton(self, names: Sequence[str]) -> Skeleton:
        """Build the skeleton of these keypoints, with the config's flip pairs and sigmas.

        Raises:
            ConfigError: flip pairs and sigmas are needed and not set, or do not fit the names.
        """
        try:
            return skeleton_for(names, self.skeleton.flip_pairs, self.skeleton.sigmas)
        except ValueError as error:
            raise ConfigError(f"skeleton: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, which YAML and a Ray worker can hold."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return the resolved configuration, with every default, as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def save(self) -> None:
        """Write the resolved configuration to `config.yaml` in the run folder, once a stage has checked its inputs."""
        write_bytes(self.path("config.yaml"), self.to_yaml().encode())
