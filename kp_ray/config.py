"""One typed configuration for every stage: YAML in and out, dotted overrides, presets, and where a run's files lie.

A user's mistake is an `InputError`: one line that names the file or key and the fix. The command line prints it and
exits with code 2; nothing else is caught there.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pyarrow.fs as pafs
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from kp_ray.keypoints import Skeleton, skeleton_for

LONGEST = 1000
"""Characters of a message to a user; what it quotes may be a file of one long line."""


class InputError(ValueError):
    """A mistake in what the user gave (config, file, option); its text is one line with the fix."""

    def __init__(self, told: str) -> None:
        line = one_line(told)
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} ... {line[-300:]}")


class StoppedError(InputError):
    """What was given is right, but the machines ended the work: the same command goes on."""


class DivergedError(InputError):
    """A training run's loss is no longer finite: the same settings would end so again."""


_SECRET = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")
"""The `user:password@` of a URL."""


def _absolute(path: str) -> str:
    if not path or "\0" in path:
        raise ValueError("a path is expected, or null for none")
    if _SECRET.search(path):
        raise ValueError("credentials belong in the environment (AWS_ACCESS_KEY_ID, ...), not in a path")
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _absolute_weights(weights: str) -> str:
    return weights if weights == "zoo" else _absolute(weights)


def _plain_name(name: str) -> str:
    if not name or not name.isprintable() or name.startswith(".") or set(name) & set("/\\"):
        raise ValueError(f"{name!r} cannot name a folder")
    return name


def _absolute_images(images: str) -> str:
    return images if images in ("store:train", "store:val") else _absolute(images)


AnyPath = Annotated[str, AfterValidator(_absolute)]
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


def order_of(metric: Metric) -> Literal["min", "max"]:
    """Whether a metric is made small or large."""
    return "max" if metric.startswith(("ap", "pck")) else "min"


DEFAULT_RECIPES = (
    "Original", "RandomCrop_1", "RandomCrop_2", "RandomSquare_1", "CenterCrop_1", "Rotate45", "Rotate45_CenterCrop",
    "Rotate45_RandomCrop_1", "Rotate45_RandomCrop_2", "Rotate45_CenterCrop", "Rescale_RandomCrop_1",
    "Rescale_RandomCrop_2", "Rescale_RandomCrop_3", "Rescale_CenterCrop", "Rescale_Rotate45_RandomCrop_1",
    "Rescale_Rotate45_RandomCrop_2", "Rescale_Rotate45_RandomCrop_3", "Rescale_Rotate45_CenterCrop",
)  # fmt: skip


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
        return order_of(self.metric)

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
    weights: Literal["equal", "fitted"] | dict[str, float | dict[str, float]] = "equal"
    """Of the members: equal, fitted on the store's validation scenes, or {member: weight or {keypoint: weight}}; what
    is not named weighs 1."""
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

    def input(self, key: str) -> str:
        """The path under `data.<key>`.

        Raises:
            InputError: it is not set.
        """
        value: str | None = getattr(self.data, key)
        if value is None:
            raise InputError(f"data.{key} is not set: add it to the config, or --set data.{key}=PATH")
        return value

    def skeleton_of(self, names: Sequence[str]) -> Skeleton:
        """The skeleton of these keypoints, with the config's flip pairs and sigmas.

        Raises:
            InputError: there are none and the keypoints are not the competition's, or they do not fit.
        """
        try:
            return skeleton_for(names, self.skeleton.flip_pairs, self.skeleton.sigmas)
        except ValueError as error:
            raise InputError(f"skeleton: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for YAML and for a Ray worker."""
        return self.model_dump(mode="json")

    def keep(self) -> None:
        """Record in the run folder what a stage runs with, once its inputs are found good."""
        write_bytes(self.path("config.yaml"), self.to_yaml().encode())

    def to_yaml(self) -> str:
        """The resolved configuration as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


PRESETS: dict[str, dict[str, Any]] = {
    # The published recipe of the competition that kp_ray scales out (redleaf-kim, dacon-motion-keypoints).
    "dacon": {
        "seed": 423,
        "split": {"seed": 42},
        "model": {"preset": "x101", "weights": "zoo", "cfg": {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 256}},
        "train": {
            "base_lr": 0.001, "max_iter": 10000, "steps": [3000, 4000, 5000, 6000, 7000, 8000], "gamma": 0.8,
            "ims_per_batch": 2, "eval_period": 5000,
        },
        "tune": {"num_trials": 0},  # a search of this size is not what `run` should start unasked
        "predict": {"score_threshold": 0.7},
    },
    # A small network that learns on two CPU cores within minutes, from the recipes that keep most of a person upright.
    "demo": {
        "augment": {"box_margin_px": 20, "min_visible": 14},
        "model": {"preset": "r18"},
        "train": {
            "recipes": ["Original", "CenterCrop_1", "Rescale_CenterCrop", "Rescale_RandomCrop_3"], "flip": False,
            "optimizer": "adamw", "base_lr": 0.0015, "weight_decay": 0.01, "schedule": "cosine", "max_iter": 340,
            "warmup_iters": 20, "ims_per_batch": 4, "eval_period": 170, "checkpoint_period": 85,
            "cpus_per_worker": 0.5, "threads_per_worker": 1,
        },
        "tune": {"num_trials": 2, "max_iter": 20, "eval_period": 10},
        "predict": {"actors": [1, 2], "score_threshold": 0.5},
    },
}  # fmt: skip


def join(base: str, *parts: str) -> str:
    """`base/part/...` for a local path or a URL."""
    return "/".join([base.rstrip("/"), *parts])


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a local path or URL, and the path inside it.

    What follows a URL's host or bucket is taken as it is: names with blanks, `#` or `%` are names like others.
    Credentials, region and endpoint of `s3://` come from the environment alone (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL).

    Raises:
        InputError: the URL's scheme is not known here, or the path is empty.
    """
    scheme, mark, rest = path.partition("://")
    if not mark:
        try:
            return pafs.LocalFileSystem(), _absolute(path)
        except ValueError as error:
            raise InputError(f"{path!r}: {error}") from error
    host, slash, inside = rest.partition("/")
    try:
        fs, root = _remote(f"{scheme}://{host}{slash}")
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be reached: {one_line(error)}") from error
    return fs, f"{root.rstrip('/')}{slash}{inside}"


@lru_cache(maxsize=16)
def _remote(root: str) -> tuple[pafs.FileSystem, str]:
    """Made once: a client takes 60 ms, and each has connections of its own."""
    fs, inner = pafs.FileSystem.from_uri(root)
    return fs, str(inner)


def exists(path: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        InputError: the storage does not answer, or refuses.
    """
    fs, inner = filesystem(path)
    try:
        return bool(fs.get_file_info(inner).type != pafs.FileType.NotFound)
    except OSError as error:
        raise InputError(f"{path}: cannot be reached: {one_line(error)}") from error


def read_bytes(path: str) -> bytes:
    """The bytes of a local or remote file.

    Raises:
        InputError: it is not there or cannot be read.
    """
    fs, inner = filesystem(path)
    try:
        with fs.open_input_file(inner) as stream:
            return bytes(stream.readall())
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else one_line(error)
        raise InputError(f"{path}: {reason}") from error


def read_json(path: str, fix: str) -> dict[str, Any]:
    """The JSON object that a local or remote file holds.

    Raises:
        InputError: it is not there, cannot be read, or is damaged: `fix` tells what to do then.
    """
    content = read_bytes(path)
    try:
        values = json.loads(content)
    except ValueError as error:
        raise InputError(f"{path}: damaged ({one_line(error)}): {fix}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: damaged (not a JSON object): {fix}")
    return values


def write_bytes(path: str, content: bytes) -> None:
    """Write a local or remote file so that a reader sees all of it or nothing.

    Raises:
        InputError: the remote storage does not answer, or refuses.
    """
    fs, inner = filesystem(path)
    if isinstance(fs, pafs.LocalFileSystem):
        target = Path(inner)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(content)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return
    try:
        # An object appears when its stream is closed, also when an exception closes it: so all of it in one write.
        with fs.open_output_stream(inner) as stream:
            stream.write(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {one_line(error)}") from error


_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What PyYAML raises; a ValueError comes from an impossible date or number, e.g. 2001-99-99."""


def file_sizes(folder: str) -> dict[str, int]:
    """The files of a folder, by path inside it, with their sizes in bytes.

    Raises:
        InputError: there is no such folder.
    """
    return {name: info.size for name, info in file_infos(folder).items()}


def file_infos(folder: str) -> dict[str, pafs.FileInfo]:
    """The files of a folder, by path inside it, with their sizes and times.

    Raises:
        InputError: there is no such folder.
    """
    fs, inner = filesystem(folder)
    try:
        listing = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise InputError(f"{folder}: {'there is no such folder' if missing else one_line(error)}") from error
    prefix = len(inner.rstrip("/")) + 1
    return {info.path[prefix:]: info for info in listing if info.type == pafs.FileType.File}


def load(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file (None: defaults) with `a.b=value` overrides.

    The preset, if any, lies below the file, the overrides above it.

    Raises:
        InputError: the file is missing or not YAML, or a key or value is not allowed.
    """
    given: dict[str, Any] = {}
    name = path or "config"
    if path is not None:
        content = read_bytes(path)
        try:
            given = yaml.safe_load(content.decode("utf-8-sig")) or {}
        except _NOT_YAML as error:
            raise InputError(f"{path}: not valid YAML: {one_line(error)}") from error
        if not isinstance(given, dict):
            raise InputError(f"{path}: a mapping of settings is expected, e.g. `run_dir: runs/first`")
    for override in overrides:
        given = _merge(given, _parse_override(override))
    return build(given, name)


def build(values: Mapping[str, Any], name: str = "config") -> Config:
    """A checked configuration from plain values; their preset, if any, lies below them.

    Raises:
        InputError: naming `name`, the first wrong key and the fix.
    """
    preset = values.get("preset")
    if isinstance(preset, str) and preset in PRESETS:
        values = _merge(PRESETS[preset], values)
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = one_line(".".join(str(part) for part in first["loc"]))
        if first["type"] == "extra_forbidden":
            close = get_close_matches(str(first["loc"][-1]), _keys_beside(first["loc"]), n=1)
            message = "unknown key" + (f"; did you mean {close[0]}?" if close else "")
        else:
            got = _SECRET.sub("***@", repr(first["input"]))
            message = f"{first['msg'].removeprefix('Value error, ')} (got {got:.100})"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{name}: {key}: {one_line(message)}{more}") from error


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    text = one_line(text)
    try:
        parsed: Any = yaml.safe_load(value)
    except _NOT_YAML as error:
        raise InputError(f"--set {text}: the value is not YAML: {one_line(error)}") from error
    # Detectron2's own options have dots in their names, so `model.cfg.` keeps the rest of the key whole.
    head, dotted_cfg, option = key.strip().partition("model.cfg.")
    parts = ["model", "cfg", option] if dotted_cfg and not head else key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"--set {text}: expected KEY=VALUE, e.g. --set train.max_iter=500")
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def _keys_beside(location: Sequence[str | int]) -> list[str]:
    section: Any = Config
    for part in location[:-1]:
        if isinstance(part, int):  # an item of a tuple
            section = get_args(section)[0]
            continue
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            return []
        section = field.annotation
    return list(getattr(section, "model_fields", {}))


def one_line(told: object) -> str:
    """The text of an error, say, on one line."""
    return " ".join(str(told).split())
