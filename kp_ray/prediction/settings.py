"""Interpret settings that several modules of `kp_ray.prediction` use."""

from typing import Any

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError

DETECTIONS_PER_IMAGE = 10
"""Value of TEST.DETECTIONS_PER_IMAGE unless `model.cfg` sets it.

Detectron2's default, 100, would decode the heat maps of 100 people per image and view, but one person is expected.
"""


def detections_per_image(config: Config) -> int:
    """Return the maximum number of detections for which a model computes keypoints, per image and view.

    Raises:
        ConfigError: TEST.DETECTIONS_PER_IMAGE is not a whole number of 1 or more.
    """
    value = config.model.cfg.get("TEST.DETECTIONS_PER_IMAGE", DETECTIONS_PER_IMAGE)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"model.cfg.TEST.DETECTIONS_PER_IMAGE: must be a whole number of 1 or more (got {value!r:.80}): correct it"
        )
    return value


def lowest_threshold(config: Config) -> float:
    """Return the score below which a detection is dropped."""
    return min(config.predict.score_threshold, config.predict.fallback_threshold)


def detection_fields(config: Config) -> dict[str, Any]:
    """Return the settings that decide which detections a member finds in an image, as JSON values."""
    section = config.predict
    return {
        "tta": list(section.tta),
        # Parts of versions that merged the views in another way are not reused.
        **({"merging": "weighted by score"} if section.tta else {}),
        "decode": section.decode,
        "precision": section.precision,
        "detections_per_image": detections_per_image(config),
        "lowest_threshold": lowest_threshold(config),
    }


def prediction_fields(config: Config) -> dict[str, Any]:
    """Return the settings that decide the rows of `predictions.parquet`: the detections, and which of them is chosen.

    `score_threshold` is among them, because a choice between several people considers only scores that reach it.
    """
    section = config.predict
    return {**detection_fields(config), "person": section.person, "score_threshold": section.score_threshold}


def view_scales(config: Config) -> list[float]:
    """Return the scales of an image's TTA views: 1, then the numbers in `predict.tta`."""
    return [1.0, *(view for view in config.predict.tta if not isinstance(view, str))]


def describe_actors(gpus_per_actor: float) -> str:
    """Describe the device of actors that take this number of GPUs."""
    return f"actors with {gpus_per_actor:g} GPUs each" if gpus_per_actor else "actors on CPUs"


def check_precision(config: Config, has_gpu: bool) -> None:
    """Refuse mixed precision for actors that compute on CPUs.

    Raises:
        ConfigError: `predict.precision` is bf16 or fp16, and `has_gpu` is False.
    """
    precision = config.predict.precision
    if not has_gpu and precision in ("bf16", "fp16"):
        raise ConfigError(
            f"predict.precision: mixed precision needs GPUs (got {precision}, and actors without a GPU): set it to "
            "auto or fp32, or run on nodes with GPUs"
        )
