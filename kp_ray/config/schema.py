"""The typed configuration: every section and field."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from kp_ray.config.presets import DEFAULT_RECIPES
from kp_ray.errors import ConfigError
from kp_ray.keypoints import Skeleton, skeleton_for
from kp_ray.storage import absolute_path, join, write_bytes


def _absolute_weights(weights: str) -> str:
    return weights if weights == "zoo" else absolute_path(weights)


def _plain_name(name: str) -> str:
    if not name or not name.isprintable() or name.startswith(".") or set(name) & set("/\\"):
        raise ValueError(f"{name!r} cannot name a folder")
    return name


def _absolute_images(images: str) -> str:
    return images if images in ("store:train", "store:val") else absolute_path(images)


AnyPath = Annotated[str, AfterValidator(absolute_path)]
"""A local path or a URL; local ones are made absolute, because a Ray worker's working folder is not the user's."""
Weights = Annotated[str, AfterValidator(_absolute_weights)]
PredictImages = Annotated[str, AfterValidator(_absolute_images)]
FolderName = Annotated[str, AfterValidator(_plain_name)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Metric = Literal["rmse", "median_px", "p95_px", "ap", "ap50", "ap75", "pck_0.05", "pck_0.1"]
"""Of an evaluation; `ap` and `pck` are made large, the others small."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy, torch and Optuna all take."""


def metric_mode(metric: Metric) -> Literal["min", "max"]:
    """Whether a metric is made small or large."""
    return "max" if metric.startswith(("ap", "pck")) else "min"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Section):
    """What is read."""

    annotations: AnyPath | None = None
    """Labels: the native wide CSV, or a COCO keypoints JSON."""
    images: AnyPath | None = None
    """Folder of the labelled images."""
    test_images: AnyPath | None = None
    """Folder of the images to predict."""
    sample_submission: AnyPath | None = None
    """The submission form: its columns, row set and row order."""
    truth: AnyPath | None = None
    """Labels of the test images, if there are any, in the native CSV."""
    corrections: AnyPath | None = None
    """CSV of corrections (image, action, keypoint, x, y) applied when the labels are read."""


class SkeletonConfig(_Section):
    """Only for keypoint names other than the competition's 24."""

    flip_pairs: tuple[tuple[str, str], ...] | None = None
    sigmas: tuple[float, ...] | None = None


class SplitConfig(_Section):
    """Which sources validate."""

    by: Literal["scene", "clip", "frame"] = "scene"
    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the sources held out; 0 holds out none."""
    seed: Seed | None = None
    """None: the run's seed."""


class AugmentConfig(_Section):
    """What the store holds."""

    recipes: tuple[str, ...] = DEFAULT_RECIPES
    """Recipe names; one listed twice gives two different variants."""
    user_recipes: dict[FolderName, dict[str, Any]] = {}
    """Name -> a serialised Albumentations pipeline (`albumentations.to_dict`)."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    sources_per_part: Positive = 32
    oversize: Literal["scale", "error"] = "scale"
    """When a frame is not 1920x1080: scale the recipes' sizes with it, or refuse a recipe larger than it."""
    box_margin_px: Annotated[float, Field(ge=0)] = 0.0
    min_visible: NotNegative = 1
    """Training skips a variant with fewer keypoints in its picture."""


class ModelConfig(_Section):
    """The network."""

    preset: Literal["r18", "r50", "x101"] = "x101"
    weights: Weights | None = None
    """A URL, a file, or `zoo` for Detectron2's published weights of the preset; None starts from scratch."""
    cfg: dict[str, Any] = {}
    """Any Detectron2 option by its dotted name, e.g. {MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE: 128}."""


class MemberConfig(_Section):
    """One model of the ensemble; what is None comes from the sections above it."""

    name: FolderName
    seed: Seed = 0
    recipes: tuple[str, ...] | None = None
    weights: Weights | None = None


class WorkerRange(_Section):
    """How few workers a run starts and goes on with, and how many it takes when the cluster has them."""

    min: Positive
    max: Positive

    @model_validator(mode="after")
    def _ordered(self) -> "WorkerRange":
        if self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self


class TrainConfig(_Section):
    """How each member trains. LR, steps and batch are those of one worker; Detectron2's rule scales them."""

    members: tuple[MemberConfig, ...] = (MemberConfig(name="a", seed=1), MemberConfig(name="b", seed=2))
    num_workers: Annotated[
        Annotated[Positive, Tag("number")] | Annotated[WorkerRange, Tag("range")],
        Discriminator(lambda given: "range" if isinstance(given, dict | WorkerRange) else "number"),
    ] = 1
    """A number, or {min, max}: a run then goes on with fewer workers when nodes leave and with more when they join."""
    use_gpu: bool | None = None
    """None: GPUs if the cluster has any."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    threads_per_worker: Positive | None = None
    """Torch threads of a CPU worker; None: its CPUs, rounded, at least one."""
    recipes: tuple[str, ...] | None = None
    """The stored recipes to train on; None: all."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    base_lr: Annotated[float, Field(gt=0)] = 0.001
    weight_decay: Annotated[float, Field(ge=0)] = 0.0001
    max_iter: Positive = 10000
    schedule: Literal["multistep", "cosine"] = "multistep"
    steps: tuple[Positive, ...] = (3000, 4000, 5000, 6000, 7000, 8000)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.8
    warmup_iters: NotNegative = 1000
    ims_per_batch: Positive = 2
    flip: bool = True
    eval_period: NotNegative = 5000
    """Iterations between evaluations; 0: only at the end."""
    best_metric: Metric = "rmse"
    """Which evaluation `model_best.pth` is the best of."""
    keep_best: Positive = 1
    """How many of the best checkpoints to keep beside the latest."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Evaluate and save an exponential moving average of the weights, e.g. 0.999; None: the weights themselves."""
    checkpoint_period: Positive = 1000
    log_period: Positive = 20
    mlflow: str | None = None
    """Log to MLflow too: a tracking server's URI, or `local` for a SQLite file in the member's folder."""
    max_failures: int = 3
    """How many times a member restarts after lost workers."""

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers of a run."""
        given = self.num_workers
        return (given.min, given.max) if isinstance(given, WorkerRange) else (given, given)

    @model_validator(mode="after")
    def _members_differ(self) -> "TrainConfig":
        names = [member.name for member in self.members]
        if not names:
            raise ValueError("members: name at least one")
        if len(set(names)) != len(names):
            raise ValueError(f"members: two members share a name: {', '.join(names)}")
        if "ensemble" in names:
            raise ValueError("members: `ensemble` is what they make together: choose another name")
        return self


class TuneConfig(_Section):
    """The search: what a trial draws, how, and when it is stopped. Each trial is a real training run.

    A range is [lowest, highest]; equal ends fix the parameter. Shares are of a trial's iterations, so that what a short
    trial found holds for a long run.
    """

    num_trials: NotNegative = 16
    """0: `run` does not tune."""
    max_iter: Positive | None = None
    """Iterations of a full trial; None: train.max_iter."""
    eval_period: Positive | None = None
    """Iterations between a trial's evaluations, and before the first stop; None: an eighth of max_iter."""
    metric: Metric = "rmse"
    """Which evaluation decides."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """`grid`: the ends and the middle of each range, every choice."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """What stops trials early."""
    max_concurrent: Positive | None = None
    """None: as many trials as the cluster holds, and more when it grows."""
    points: tuple[dict[str, bool | int | float | str], ...] = ()
    """Points to try first, after the config's own setting and the published schedule, e.g. {base_lr: 0.002}."""
    base_lr: tuple[float, float] = (1e-4, 1e-2)
    """Drawn by its logarithm, as weight_decay."""
    weight_decay: tuple[float, float] = (1e-5, 1e-2)
    warmup: tuple[Fraction, Fraction] = (0.0, 0.2)
    """Share of the iterations."""
    schedules: tuple[Literal["multistep", "cosine"], ...] = ("multistep", "cosine")
    num_steps: tuple[NotNegative, NotNegative] = (1, 6)
    first_step: tuple[Fraction, Fraction] = (0.2, 0.6)
    """Where a multi-step schedule's first step lies, and how far apart they lie: shares of the iterations."""
    step_spacing: tuple[Fraction, Fraction] = (0.05, 0.2)
    gamma: tuple[float, float] = (0.1, 0.9)
    flips: tuple[bool, ...] = (True, False)
    recipes: dict[str, tuple[str, ...]] | None = None
    """Named sets of stored recipes to train on, tried beside `own`, the config's. None: `upright`, those of its own
    that do not rotate; {}: none."""

    @property
    def mode(self) -> Literal["min", "max"]:
        """Whether the metric is made small or large."""
        return metric_mode(self.metric)

    @model_validator(mode="after")
    def _ranges(self) -> "TuneConfig":
        for name in ("base_lr", "weight_decay", "gamma", "warmup", "num_steps", "first_step", "step_spacing"):
            low, high = getattr(self, name)
            least = "0 < " if name in ("base_lr", "weight_decay", "gamma") else ""
            if low > high or (least and low <= 0):
                raise ValueError(f"{name}: a range is [low, high] with {least}low <= high, got [{low}, {high}]")
        if self.gamma[1] > 1:
            raise ValueError(f"gamma: at most 1, got {self.gamma[1]}")
        for name in ("schedules", "flips"):
            if not getattr(self, name):
                raise ValueError(f"{name}: name at least one")
        if "own" in (self.recipes or {}):
            raise ValueError("recipes: `own` is the config's own set; give this one another name")
        return self


class PredictConfig(_Section):
    """Ensemble inference."""

    images: PredictImages | None = None
    """What to predict. None: the form's images in data.test_images, or without a form every picture there; a folder; a
    .txt or .csv list of names in data.test_images, of paths or of URLs; `store:val` or `store:train`."""
    actors: tuple[Positive, Positive] = (1, 4)
    """Smallest and largest size of the actor pool."""
    cpus_per_actor: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Positive = 8
    """Images a model sees at once; so many are lost at most by an actor that dies."""
    tta: tuple[Literal["flip"] | Annotated[float, Field(gt=0, le=4)], ...] = ()
    """Test-time augmentation: `flip` also predicts mirrored pictures, a number also at so many times the test size."""
    person: Literal["score", "largest", "track"] = "track"
    """Which of several people: best score, largest box, or best score times closeness to the clip's track."""
    fusion: Literal["mean", "median", "score"] = "mean"
    weights: Literal["equal"] | dict[str, float | dict[str, float]] = "equal"
    """Weights of the members: equal, or {member: weight or {keypoint: weight}}; what is not named weighs 1."""
    reject_sigmas: Annotated[float, Field(gt=0)] | None = None
    """Drop a member's point farther than this many robust sigmas from the members' median; None: keep all."""
    smooth_frames: Annotated[float, Field(gt=0)] | None = None
    """Smooth each clip's points over so many frames (a Gaussian's sigma); None: do not."""
    score_threshold: Fraction = 0.7
    fallback_threshold: Fraction = 0.05
    """Score that counts when no member finds anyone above score_threshold."""
    missing: Literal["fill", "zeros"] = "fill"
    """Nobody found at all: fill from the nearest frame of the clip, then the mean pose; or write zeros."""

    @model_validator(mode="after")
    def _pool_and_weights(self) -> "PredictConfig":
        if self.actors[0] > self.actors[1]:
            raise ValueError(f"actors: [smallest, largest] expected, got {list(self.actors)}")
        for member, value in ({} if isinstance(self.weights, str) else self.weights).items():
            if min(value.values() if isinstance(value, dict) else [value], default=0) < 0:
                raise ValueError(f"weights: {member}: a weight is 0 or more, got {value}")
        return self


class ClusterConfig(_Section):
    """Where the work runs."""

    address: str | None = None
    """None: RAY_ADDRESS if it is set, else a local cluster."""
    num_cpus: Positive | None = None
    """Of a local cluster; of one that is joined and grows by itself, what it may grow to. None: what is there."""
    num_gpus: NotNegative | None = None
    """As num_cpus; train and tune plan with it."""


class Config(_Section):
    """The whole configuration; `load` reads one from YAML."""

    preset: Literal["demo", "dacon"] | None = None
    run_dir: Annotated[AnyPath, Field(validate_default=True)] = "runs/first"
    seed: Seed = 42
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
        """A path inside the run folder."""
        return join(self.run_dir, *parts)

    def member_dir(self, name: str) -> str:
        """Where a finished member lies."""
        return self.path("members", name)

    def require_input(self, key: str) -> str:
        """The path under `data.<key>`.

        Raises:
            ConfigError: it is not set.
        """
        value: str | None = getattr(self.data, key)
        if value is None:
            raise ConfigError(f"data.{key} is not set: add it to the config, or --set data.{key}=PATH")
        return value

    def build_skeleton(self, names: Sequence[str]) -> Skeleton:
        """The skeleton of these keypoints, with the config's flip pairs and sigmas.

        Raises:
            ConfigError: there are none and the keypoints are not the competition's, or they do not fit.
        """
        try:
            return skeleton_for(names, self.skeleton.flip_pairs, self.skeleton.sigmas)
        except ValueError as error:
            raise ConfigError(f"skeleton: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for YAML and for a Ray worker."""
        return self.model_dump(mode="json")

    def save(self) -> None:
        """Record in the run folder what a stage runs with, once its inputs are found good."""
        write_bytes(self.path("config.yaml"), self.to_yaml().encode())

    def to_yaml(self) -> str:
        """The resolved configuration as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
