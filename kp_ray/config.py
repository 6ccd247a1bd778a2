"""One typed configuration for every stage: YAML in and out, dotted overrides, presets, and where a run's files lie.

A user's mistake is an `InputError`: one line that names the file or key and the fix. The command line prints it and
exits with code 2; nothing else is caught there.
"""

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pyarrow.fs as pafs
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator


class InputError(ValueError):
    """A mistake in what the user gave (config, file, option); its text is one line with the fix."""


def _absolute(path: str) -> str:
    if not path or "\0" in path:
        raise ValueError("a path is expected, or null for none")
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _absolute_weights(weights: str) -> str:
    return weights if weights == "zoo" else _absolute(weights)


def _plain_name(name: str) -> str:
    if not name or not name.isprintable() or name.startswith(".") or set(name) & set("/\\"):
        raise ValueError(f"{name!r} cannot name a folder")
    return name


AnyPath = Annotated[str, AfterValidator(_absolute)]
"""A local path or a URL; local ones are made absolute, because a Ray worker's working folder is not the user's."""
Weights = Annotated[str, AfterValidator(_absolute_weights)]
FolderName = Annotated[str, AfterValidator(_plain_name)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy, torch and Optuna all take."""

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


class TrainConfig(_Section):
    """How each member trains. LR, steps and batch are those of one worker; Detectron2's rule scales them."""

    members: tuple[MemberConfig, ...] = (MemberConfig(name="a", seed=1), MemberConfig(name="b", seed=2))
    num_workers: Positive = 1
    use_gpu: bool | None = None
    """None: GPUs if the cluster has any."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    threads_per_worker: Positive | None = None
    """Torch threads of a CPU worker; None: its CPUs, rounded up."""
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
    checkpoint_period: Positive = 1000
    log_period: Positive = 20
    max_failures: int = 3
    """How many times a member restarts after lost workers."""

    @model_validator(mode="after")
    def _members_differ(self) -> "TrainConfig":
        names = [member.name for member in self.members]
        if not names:
            raise ValueError("members: name at least one")
        if len(set(names)) != len(names):
            raise ValueError(f"members: two members share a name: {', '.join(names)}")
        return self


class TuneConfig(_Section):
    """The search. Ranges are of the base LR and the schedule; each trial is a real training run."""

    num_trials: NotNegative = 16
    """0: `run` does not tune."""
    max_iter: Positive | None = None
    """Iterations of a full trial; None: train.max_iter."""
    eval_period: Positive | None = None
    """Iterations between a trial's reports; None: a quarter of max_iter."""
    base_lr: tuple[float, float] = (1e-4, 1e-2)
    gamma: tuple[float, float] = (0.1, 0.9)
    num_steps: tuple[NotNegative, NotNegative] = (1, 6)
    schedules: tuple[Literal["multistep", "cosine"], ...] = ("multistep", "cosine")
    metric: str = "rmse"
    mode: Literal["min", "max"] = "min"
    max_concurrent: Positive | None = None
    """None: as many trials as the cluster holds."""

    @model_validator(mode="after")
    def _ranges(self) -> "TuneConfig":
        for name in ("base_lr", "gamma", "num_steps"):
            low, high = getattr(self, name)
            if low > high or (name != "num_steps" and low <= 0):
                raise ValueError(f"{name}: a range is [low, high] with 0 < low <= high, got [{low}, {high}]")
        return self


class PredictConfig(_Section):
    """Ensemble inference."""

    actors: tuple[Positive, Positive] = (1, 4)
    """Smallest and largest size of the actor pool."""
    cpus_per_actor: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_actor: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Positive = 8
    tta: tuple[Literal["flip"], ...] = ()
    """Test-time augmentation: also predict the mirrored picture."""
    fusion: Literal["mean", "median", "score"] = "mean"
    reject_sigmas: Annotated[float, Field(gt=0)] | None = 3.0
    """Drop a member's point farther than this many robust sigmas from the members' median; None: keep all."""
    score_threshold: Fraction = 0.7
    fallback_threshold: Fraction = 0.05
    """Score that counts when no member finds anyone above score_threshold."""
    missing: Literal["fill", "zeros"] = "fill"
    """Nobody found at all: fill from the nearest frame of the clip, then the mean pose; or write zeros."""

    @model_validator(mode="after")
    def _pool(self) -> "PredictConfig":
        if self.actors[0] > self.actors[1]:
            raise ValueError(f"actors: [smallest, largest] expected, got {list(self.actors)}")
        return self


class ClusterConfig(_Section):
    """Where the work runs."""

    address: str | None = None
    """None: RAY_ADDRESS if it is set, else a local cluster."""
    num_cpus: Positive | None = None
    num_gpus: NotNegative | None = None


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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for YAML and for a Ray worker."""
        return self.model_dump(mode="json")

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
        "tune": {"num_trials": 2, "max_iter": 20, "eval_period": 10, "num_steps": [1, 2]},
        "predict": {"actors": [1, 2], "score_threshold": 0.5},
    },
}  # fmt: skip


def join(base: str, *parts: str) -> str:
    """`base/part/...` for a local path or a URL."""
    return "/".join([base.rstrip("/"), *parts])


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a local path or URL, and the path inside it.

    Raises:
        InputError: the URL's scheme is not known here.
    """
    if "://" not in path:
        return pafs.LocalFileSystem(), _absolute(path)
    try:
        fs, inner = pafs.FileSystem.from_uri(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be reached: {_one_line(str(error))}") from error
    return fs, inner


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    fs, inner = filesystem(path)
    return bool(fs.get_file_info(inner).type != pafs.FileType.NotFound)


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
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else _one_line(str(error))
        raise InputError(f"{path}: {reason}") from error


def write_bytes(path: str, content: bytes) -> None:
    """Write a local or remote file so that a reader sees all of it or nothing."""
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
    else:  # an object appears when its upload is complete
        with fs.open_output_stream(inner) as stream:
            stream.write(content)


_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What PyYAML raises; a ValueError comes from an impossible date or number, e.g. 2001-99-99."""


def file_sizes(folder: str) -> dict[str, int]:
    """The files of a folder, by path inside it, with their sizes in bytes.

    Raises:
        InputError: there is no such folder.
    """
    fs, inner = filesystem(folder)
    try:
        listing = fs.get_file_info(pafs.FileSelector(inner, recursive=True))
    except OSError as error:
        raise InputError(f"{folder}: there is no such folder") from error
    prefix = len(inner.rstrip("/")) + 1
    return {info.path[prefix:]: info.size for info in listing if info.type == pafs.FileType.File}


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
            raise InputError(f"{path}: not valid YAML: {_one_line(str(error))}") from error
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
        key = _one_line(".".join(str(part) for part in first["loc"]))
        if first["type"] == "extra_forbidden":
            close = get_close_matches(str(first["loc"][-1]), _keys_beside(first["loc"]), n=1)
            message = "unknown key" + (f"; did you mean {close[0]}?" if close else "")
        else:
            message = f"{first['msg'].removeprefix('Value error, ')} (got {first['input']!r:.100})"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{name}: {key}: {_one_line(message)}{more}") from error


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    text = _one_line(text)
    try:
        parsed: Any = yaml.safe_load(value)
    except _NOT_YAML as error:
        raise InputError(f"--set {text}: the value is not YAML: {_one_line(str(error))}") from error
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


def _one_line(text: str) -> str:
    return " ".join(text.split())
