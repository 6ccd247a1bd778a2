"""The augmentation recipes: 27 named ones as data, a user's own, the drawing of their parameters, fingerprints.

Albumentations 2.0.8 defines what a named recipe means: `Recipe.to_albumentations` is that definition, and `draw`
follows its distributions and rounding. A recipe is rotate, rescale, crop, rescale again, in this order, each step
optional, so every variant of it is one affine map from source to variant.
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from kp_ray.augmentation.user_pipeline import albumentations
from kp_ray.errors import ConfigError, one_line

REFERENCE_HW = (1080, 1920)
"""The frame, height x width, that the recipes' sizes are written for."""


@dataclass(frozen=True)
class Recipe:
    """A named recipe.

    Attributes:
        rotate_deg: rotate about the centre by uniform [-rotate_deg, rotate_deg], border reflect-101.
        scale_range: rescale by a uniform factor of this range.
        crop_hw: crop to this height and width, given for a 1080x1920 frame.
        crop: where: at the centre or at random.
        then_scale: rescale the crop by this factor.
        brightness_contrast: contrast factor uniform in [0.8, 1.2], brightness uniform in [-0.2, 0.2] of white.
        user: a serialised Albumentations pipeline instead of all of the above.
    """

    name: str
    rotate_deg: float = 0.0
    scale_range: tuple[float, float] | None = None
    crop_hw: tuple[int, int] | None = None
    crop: Literal["random", "center"] = "random"
    then_scale: float = 1.0
    brightness_contrast: bool = False
    user: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of what the recipe does, whatever it is called."""
        what = {key: value for key, value in asdict(self).items() if key != "name"}
        return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=8).hexdigest()

    def crop_size(self, width: int, height: int, *, scale_with_frame: bool) -> tuple[int, int]:
        """The crop's (width, height) in a frame of this size; the whole frame if the recipe does not crop."""
        if self.crop_hw is None:
            return width, height
        if not scale_with_frame:
            return self.crop_hw[1], self.crop_hw[0]
        crop_h = max(1, round(self.crop_hw[0] * height / REFERENCE_HW[0]))
        crop_w = max(1, round(self.crop_hw[1] * width / REFERENCE_HW[1]))
        return crop_w, crop_h

    def to_albumentations(self, width: int = REFERENCE_HW[1], height: int = REFERENCE_HW[0]) -> Any:
        """The recipe as an Albumentations pipeline for frames of this size.

        Keypoints are pixel indices "xy" and none is removed. Rotate makes mirrored copies of the keypoints with its
        reflect border; the real ones are those of the same draw with a constant border.
        """
        import cv2

        A = albumentations()  # noqa: N806
        if self.user is not None:
            return A.from_dict(json.loads(self.user))
        crop_w, crop_h = self.crop_size(width, height, scale_with_frame=True)
        steps: list[Any] = []
        if self.rotate_deg:
            limit = (-self.rotate_deg, self.rotate_deg)
            steps.append(A.Rotate(limit=limit, border_mode=cv2.BORDER_REFLECT_101, p=1))
        if self.scale_range:
            low, high = self.scale_range
            steps.append(A.RandomScale(scale_limit=(low - 1, high - 1), p=1))
        if self.crop_hw:
            kind = A.RandomCrop if self.crop == "random" else A.CenterCrop
            steps.append(kind(height=crop_h, width=crop_w, p=1))
        if self.then_scale != 1:
            steps.append(A.RandomScale(scale_limit=(self.then_scale - 1, self.then_scale - 1), p=1))
        if self.brightness_contrast:
            steps.append(A.RandomBrightnessContrast(p=1))
        return A.Compose(steps, keypoint_params=A.KeypointParams(format="xy", remove_invisible=False))


def _named() -> dict[str, Recipe]:
    small, medium, wide, large = (540, 720), (720, 960), (720, 1280), (960, 1280)
    rescale = (0.7, 1.3)
    recipes = [
        Recipe("Original"),
        Recipe("CenterCrop_1", crop_hw=wide, crop="center"),
        Recipe("CenterCrop_2", crop_hw=(960, 960), crop="center"),
        Recipe("RandomCrop_1", crop_hw=small),
        Recipe("RandomCrop_2", crop_hw=medium),
        Recipe("RandomCrop_3", crop_hw=large),
        Recipe("RandomCrop_4", crop_hw=wide),
        *(Recipe(f"RandomSquare_{i}", crop_hw=(side, side)) for i, side in enumerate((960, 720, 540, 420), 1)),
        Recipe("Rotate45", rotate_deg=45),
        Recipe("Rotate45_CenterCrop", rotate_deg=45, crop_hw=wide, crop="center"),
        Recipe("Rotate45_RandomCrop_1", rotate_deg=45, crop_hw=small),
        Recipe("Rotate45_RandomCrop_2", rotate_deg=45, crop_hw=medium),
        Recipe("Rotate45_RandomCrop_3", rotate_deg=45, crop_hw=(960, 960)),
        Recipe("Rotate45_RandomCrop_4", rotate_deg=45, crop_hw=wide),
        Recipe("Random_ScaleCrop", crop_hw=(960, 960), then_scale=0.35),
        Recipe("RandomBrightnessContrast", brightness_contrast=True),
        Recipe("Rescale_RandomCrop_1", scale_range=rescale, crop_hw=medium),
        Recipe("Rescale_RandomCrop_2", scale_range=rescale, crop_hw=small),
        Recipe("Rescale_RandomCrop_3", scale_range=rescale, crop_hw=wide),
        Recipe("Rescale_CenterCrop", scale_range=rescale, crop_hw=wide, crop="center"),
        Recipe("Rescale_Rotate45_RandomCrop_1", rotate_deg=45, scale_range=rescale, crop_hw=medium),
        Recipe("Rescale_Rotate45_RandomCrop_2", rotate_deg=45, scale_range=rescale, crop_hw=small),
        Recipe("Rescale_Rotate45_RandomCrop_3", rotate_deg=45, scale_range=rescale, crop_hw=wide),
        Recipe("Rescale_Rotate45_CenterCrop", rotate_deg=45, scale_range=rescale, crop_hw=wide, crop="center"),
    ]
    return {recipe.name: recipe for recipe in recipes}


RECIPES: dict[str, Recipe] = _named()
"""The named recipes, by name."""


def resolve_recipes(
    names: Sequence[str], user_recipes: Mapping[str, Mapping[str, Any]] | None = None
) -> list[tuple[Recipe, int]]:
    """The recipes of a config's list with how many copies of each, in order of first mention.

    Raises:
        ConfigError: a name is neither a named recipe nor a user's, or a user recipe is not a serialised pipeline.
    """
    known = dict(RECIPES)
    for name, pipeline in (user_recipes or {}).items():
        if name in RECIPES:
            raise ConfigError(f"augment.user_recipes.{name}: a named recipe has this name already; choose another")
        known[name] = _user_recipe(name, pipeline)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"augment.recipes: no recipe is called {unknown[0]!r}; there are {', '.join(known)}")
    if not names:
        raise ConfigError("augment.recipes: name at least one recipe")
    return [(known[name], copies) for name, copies in Counter(names).items()]


def _user_recipe(name: str, pipeline: Mapping[str, Any]) -> Recipe:
    A = albumentations()  # noqa: N806
    mirrors = (A.HorizontalFlip, A.VerticalFlip, A.Transpose, A.D4)  # a left hand becomes a right one
    try:
        serialised = json.dumps(pipeline, sort_keys=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # also for what it saved itself
            loaded = A.from_dict(json.loads(serialised))
            _check_arguments(json.loads(serialised), A.to_dict(loaded))
    except Exception as error:  # whatever Albumentations stumbles over
        reason = one_line(f"{type(error).__name__}: {error}")[:200]
        raise ConfigError(
            f"augment.user_recipes.{name}: not a pipeline saved by albumentations.to_dict: {reason}"
        ) from error
    mirror = next((step for step in _steps(loaded) if isinstance(step, mirrors)), None)
    if mirror is not None:
        raise ConfigError(
            f"augment.user_recipes.{name}: {type(mirror).__name__} mirrors the picture and leaves left and right "
            "keypoints as they are: drop it and set train.flip, which exchanges them"
        )
    return Recipe(name, user=serialised)


def _steps(pipeline: Any) -> Iterator[Any]:
    """A pipeline's transforms and those of the pipelines in it."""
    yield pipeline
    for step in getattr(pipeline, "transforms", ()):
        yield from _steps(step)


def _check_arguments(given: Any, taken: Any) -> None:
    """Albumentations passes over an argument that it does not know with no more than a warning.

    Raises:
        ValueError: naming the first that is lost when the pipeline is loaded.
    """
    if isinstance(given, dict) and isinstance(taken, dict):
        for key, value in given.items():
            if key not in taken:
                raise ValueError(f"Argument(s) '{key}' are not valid")
            _check_arguments(value, taken[key])
    elif isinstance(given, list) and isinstance(taken, list | tuple):
        for one, other in zip(given, taken, strict=False):
            _check_arguments(one, other)
