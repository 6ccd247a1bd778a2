"""Base class of the configuration's sections, and types of its values: paths, names and numbers with a range."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kp_ray.storage import absolute_path


class Section(BaseModel):
    """One section of the configuration: read-only; it refuses unknown keys, infinite numbers and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_folder_name(name: str) -> str:
    if not name or not name.isprintable() or name.startswith(".") or set(name) & set("/\\"):
        raise ValueError(f"{name!r} cannot name a folder: use letters, digits, `-` and `_`")
    return name


def _check_images(value: str) -> str:
    if value in ("store:train", "store:val"):
        return value
    if value.startswith("store:"):
        raise ValueError(f"the store has no such split (got {value}): set store:train or store:val")
    return absolute_path(value)


def _check_member(value: str) -> str:
    # With or without a slash at its end, a URL names the same folder, whose member must not count twice.
    return (absolute_path(value).rstrip("/") or "/") if "/" in value else value


AnyPath = Annotated[str, AfterValidator(absolute_path)]
"""A local path or a URL. Local paths are made absolute, because Ray workers have another working directory."""
WeightsPath = Annotated[str, AfterValidator(lambda value: value if value == "zoo" else absolute_path(value))]
"""A path of model weights, or `zoo`."""
PredictImages = Annotated[str, AfterValidator(_check_images)]
"""A path of images, or the train or val side of the store."""
MemberRef = Annotated[str, AfterValidator(_check_member)]
"""A name of a member, or the path of a member's folder in another run."""
FolderName = Annotated[str, AfterValidator(_check_folder_name)]
"""A name that becomes a folder inside the run folder."""
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PrecisionSetting = Literal["auto", "fp32", "bf16", "fp16"]
"""Precision of a model's backbone; `auto` depends on the device."""
DecodeMethod = Literal["expectation", "argmax"]
"""Method of finding a keypoint in its heat map."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed in the range that NumPy, torch and Optuna all accept."""
