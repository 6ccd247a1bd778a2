"""Detectron2's options under `model.cfg`: which options take effect, and what to set instead of the rest.

Detectron2's own trainer reads every option; kp_ray has its own input, loop and evaluation. An option that these would
ignore is refused.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from detectron2.config import CfgNode

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, one_line

DERIVED_OPTIONS: dict[str, str] = {
    "MODEL.DEVICE": "set train.use_gpu or predict.gpus_per_actor",
    "MODEL.WEIGHTS": "set model.weights",
    "MODEL.KEYPOINT_ON": "remove it: it is always true",
    "MODEL.ROI_HEADS.NUM_CLASSES": "remove it: a person is the only class",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "set predict.score_threshold and predict.fallback_threshold",
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": "remove it: the labels decide it",
    "TEST.KEYPOINT_OKS_SIGMAS": "set skeleton.sigmas",
    "TEST.EVAL_PERIOD": "set train.eval_period",
    "DATASETS.TRAIN": "set data.annotations and train.recipes",
    "DATASETS.TEST": "set split",
    "INPUT.RANDOM_FLIP": "set train.flip",
    "SOLVER.REFERENCE_WORLD_SIZE": "set train.num_workers",
    "SOLVER.BASE_LR": "set train.base_lr",
    "SOLVER.WEIGHT_DECAY": "set train.weight_decay",
    "SOLVER.MAX_ITER": "set train.max_iter",
    "SOLVER.LR_SCHEDULER_NAME": "set train.schedule",
    "SOLVER.STEPS": "set train.steps",
    "SOLVER.GAMMA": "set train.gamma",
    "SOLVER.WARMUP_ITERS": "set train.warmup_iters",
    "SOLVER.IMS_PER_BATCH": "set train.ims_per_batch",
    "SOLVER.CHECKPOINT_PERIOD": "set train.checkpoint_period",
    "SOLVER.AMP.ENABLED": "set train.precision",
}
"""Options that follow from kp_ray's settings -> what to do instead."""

_OTHER_MODEL = "remove it: kp_ray trains keypoint R-CNN, which does not read it"
REFUSED_OPTIONS: dict[str, str] = {
    "VERSION": "remove it: it is the version of Detectron2's config format",
    "OUTPUT_DIR": "set run_dir",
    "SEED": "set `seed` of a member under train.members",
    "VIS_PERIOD": "remove it, and draw variants and predictions with `kp-ray show`",
    "GLOBAL": "remove it: nothing reads it",
    "INPUT.CROP": "list recipes that crop under train.recipes",
    "INPUT.MASK_FORMAT": _OTHER_MODEL,
    "DATASETS.PROPOSAL_FILES_TRAIN": _OTHER_MODEL,
    "DATASETS.PROPOSAL_FILES_TEST": _OTHER_MODEL,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": _OTHER_MODEL,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": _OTHER_MODEL,
    "DATALOADER.NUM_WORKERS": "set train.threads_per_feed",
    "DATALOADER.SAMPLER_TRAIN": "remove it; to weight a recipe, list its name several times under augment.recipes",
    "DATALOADER.REPEAT_THRESHOLD": "list a recipe several times under augment.recipes",
    "DATALOADER.REPEAT_SQRT": "list a recipe several times under augment.recipes",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": "set augment.min_visible",
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": "set augment.min_visible",
    "MODEL.LOAD_PROPOSALS": _OTHER_MODEL,
    "MODEL.MASK_ON": _OTHER_MODEL,
    "MODEL.ANCHOR_GENERATOR.ANGLES": _OTHER_MODEL,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": _OTHER_MODEL,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": _OTHER_MODEL,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": _OTHER_MODEL,
    "MODEL.ROI_BOX_CASCADE_HEAD": _OTHER_MODEL,
    "MODEL.ROI_MASK_HEAD": _OTHER_MODEL,
    "MODEL.SEM_SEG_HEAD": _OTHER_MODEL,
    "MODEL.PANOPTIC_FPN": _OTHER_MODEL,
    "MODEL.RETINANET": _OTHER_MODEL,
    "SOLVER.NUM_DECAYS": "set train.steps and train.gamma",
    "TEST.EXPECTED_RESULTS": "remove it, and compare evaluation.json of two runs",
    "TEST.AUG": "set predict.tta",
    "TEST.PRECISE_BN": "set MODEL.RESNETS.NORM and MODEL.FPN.NORM to GN, which needs no batch statistics",
}
"""Options, or groups of options, that nothing in kp_ray reads -> what to do instead."""

ALLOWED_VALUES: dict[str, tuple[str, ...]] = {
    "INPUT.FORMAT": ("BGR", "RGB"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN",),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads",),
}
"""Options that take effect -> the only values that work in kp_ray."""

HONORED_OPTIONS = (
    "CUDNN_BENCHMARK",
    "FLOAT32_PRECISION",  # Detectron2 after 0.6
    "DATALOADER.ASPECT_RATIO_GROUPING",
    "INPUT.MIN_SIZE_TRAIN",
    "INPUT.MAX_SIZE_TRAIN",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.BACKBONE",
    "MODEL.FPN",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE",
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
    "MODEL.ANCHOR_GENERATOR.OFFSET",
    "MODEL.RPN",
    "MODEL.ROI_HEADS.IN_FEATURES",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS",
    "MODEL.ROI_HEADS.IOU_LABELS",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
    "MODEL.ROI_BOX_HEAD",
    "MODEL.ROI_KEYPOINT_HEAD",
    "MODEL.RESNETS",
    "SOLVER.BASE_LR_END",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.WEIGHT_DECAY_NORM",
    "SOLVER.WARMUP_FACTOR",
    "SOLVER.WARMUP_METHOD",
    "SOLVER.RESCALE_INTERVAL",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "SOLVER.CLIP_GRADIENTS",
    "TEST.DETECTIONS_PER_IMAGE",
)
"""Options, or groups of options, that take effect; a refused option in such a group stays refused."""


POSITIVE_OPTIONS = (
    "INPUT.MIN_SIZE_TRAIN",
    "INPUT.MAX_SIZE_TRAIN",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
    "MODEL.RPN.PRE_NMS_TOPK_TEST",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    "MODEL.RPN.POST_NMS_TOPK_TEST",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "TEST.DETECTIONS_PER_IMAGE",
)
"""Options whose numbers are sizes in pixels or counts of at least 1."""


def iter_options(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """Iterate over the dotted names of a Detectron2 config's options."""
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from iter_options(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def find_entry(name: str, table: Mapping[str, Any] | tuple[str, ...]) -> str | None:
    """Find the entry of a table for an option: its own name, else its innermost group; None without an entry."""
    parts = name.split(".")
    groups = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((group for group in groups if group in table), None)


def check_option(name: str, value: Any, cfg: CfgNode) -> None:
    """Refuse an option of `model.cfg` that would be ignored or would break kp_ray's loop.

    Args:
        name: dotted name of the option.
        value: value in `model.cfg`.
        cfg: Detectron2's config before `model.cfg` is applied; it has every option of the installed Detectron2.

    Raises:
        ConfigError: the option does not exist, follows from a setting of kp_ray, would be ignored, or has a value that
            does not work; the message says what to do instead.
    """

    def refuse(problem: str, advice: str) -> NoReturn:
        raise ConfigError(f"model.cfg.{one_line(name)}: {problem} (got {value!r:.80}): {advice}")

    options = set(iter_options(cfg))
    if name not in options:
        if any(option.startswith(f"{name}.") for option in options):
            refuse("this is a group of options", "name each option, e.g. SOLVER.CLIP_GRADIENTS.ENABLED")
        refuse("Detectron2 has no such option", "correct the name, or remove it")
    if name in DERIVED_OPTIONS:
        refuse("this option follows from kp_ray's settings", DERIVED_OPTIONS[name])
    group = find_entry(name, REFUSED_OPTIONS)
    if group:
        refuse("kp_ray would ignore this option", REFUSED_OPTIONS[group])
    if value is None and _option(cfg, name) is not None:
        refuse("this option needs a value", "set one, or remove the option")
    if name in ALLOWED_VALUES:
        if value not in ALLOWED_VALUES[name]:
            refuse("this value does not work", f"set {' or '.join(ALLOWED_VALUES[name])}")
    elif not find_entry(name, HONORED_OPTIONS):
        refuse("kp_ray does not know this option of Detectron2", "remove it")


def _option(cfg: CfgNode, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), cfg)


def check_combinations(config: Config, cfg: CfgNode) -> None:
    """Refuse options that have no effect with, or contradict, the other settings.

    Args:
        config: gives the optimizer, the schedule and `model.cfg`.
        cfg: Detectron2's config with all options of `config`.

    Raises:
        ConfigError: an option has no effect with the other settings or contradicts them, or a number is too small.
    """
    train, options = config.train, config.model.cfg
    schedules = {train.schedule, *(config.tune.schedules if config.tune.num_trials else ())}
    for name in ("SOLVER.MOMENTUM", "SOLVER.NESTEROV"):
        if name in options and train.optimizer != "sgd":
            raise ConfigError(
                f"model.cfg.{name}: train.optimizer {train.optimizer} ignores it: remove it, or set train.optimizer=sgd"
            )
    if "SOLVER.BASE_LR_END" in options and "cosine" not in schedules:
        raise ConfigError(
            "model.cfg.SOLVER.BASE_LR_END: train.schedule multistep ignores it: remove it, or set train.schedule=cosine"
        )
    searches_cosine = config.tune.num_trials > 0 and "cosine" in config.tune.schedules
    if "SOLVER.BASE_LR_END" in options and searches_cosine and config.tune.base_lr[0] < cfg.SOLVER.BASE_LR_END:
        raise ConfigError(
            f"model.cfg.SOLVER.BASE_LR_END: is above the search's lowest rate (got {cfg.SOLVER.BASE_LR_END:g}, tune."
            f"base_lr begins at {config.tune.base_lr[0]:g}): lower it, or raise tune.base_lr"
        )
    if cfg.CUDNN_BENCHMARK and train.deterministic:
        raise ConfigError("model.cfg.CUDNN_BENCHMARK: train.deterministic excludes it: set one of them to false")
    for name in POSITIVE_OPTIONS:
        value = _option(cfg, name)
        numbers = [value] if isinstance(value, int | float) else list(value)
        if not all(isinstance(number, int | float) for number in numbers):
            raise ConfigError(f"model.cfg.{name}: numbers are expected (got {value}): correct them")
        if min(numbers, default=0) < 1:
            raise ConfigError(f"model.cfg.{name}: must be at least 1 (got {value}): raise it")
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or sizes[0] > sizes[1]):
        raise ConfigError(
            f"model.cfg.INPUT.MIN_SIZE_TRAIN: the sampling range needs [smallest, largest] (got {sizes}): set two sizes"
        )
