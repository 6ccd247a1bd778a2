"""The 27 built-in recipes as data, and the look-up of the recipes that a config lists.

The built-in recipes are those of the published solution (docs/recipes.md); a config can add recipes of the user. A
built-in recipe rotates, rescales, crops, rescales again and changes brightness and contrast, in this order; each step
is optional. The first four steps together are one affine map of the source.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from kp_ray.augmentation.user_pipeline import validate_pipeline
from kp_ray.errors import ConfigError
from kp_ray.fingerprint import digest

REFERENCE_HW = (1080, 1920)
"""Height and width in pixels of the frame for which the recipes' sizes are given."""


@dataclass(frozen=True)
class Recipe:
    """The steps that make a variant of a source.

    Attributes:
        name: name in `augment.recipes`.
        rotate_deg: rotate about the centre by an angle that is uniform in [-rotate_deg, rotate_deg] degrees; the border
            is filled by reflection without repeating the edge pixel (reflect-101).
        scale_range: rescale by a factor that is uniform in this range; None does not rescale.
        crop_hw: height and width in pixels of the crop in a frame of REFERENCE_HW; None does not crop.
        crop: position of the crop: uniformly random ("random") or in the centre of the frame ("center").
        crop_scale_range: rescale the crop by a factor that is uniform in this range; None does not rescale it.
        brightness_contrast: multiply pixels by a contrast uniform in [0.8, 1.2], then add a brightness uniform in
            [-0.2, 0.2] of white.
        user_pipeline: a serialised Albumentations pipeline, which replaces all other steps.
    """

    name: str
    rotate_deg: float = 0.0
    scale_range: tuple[float, float] | None = None
    crop_hw: tuple[int, int] | None = None
    crop: Literal["random", "center"] = "random"
    crop_scale_range: tuple[float, float] | None = None
    brightness_contrast: bool = False
    user_pipeline: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that depend on what the recipe does, not on its name."""
        fields = asdict(self)
        # Version 0.1 used these names and 1.0 for no rescaling. Other fingerprints would rewrite all existing stores.
        fields |= {"then_scale": fields.pop("crop_scale_range") or 1.0, "user": fields.pop("user_pipeline")}
        return digest({key: value for key, value in fields.items() if key != "name"})

    def crop_size(self, width: int, height: int, *, scale_with_frame: bool) -> tuple[int, int]:
        """Return the crop's (width, height) in pixels, for a frame of this size; the whole frame if nothing is cropped.

        Args:
            width, height: size of the frame in pixels.
            scale_with_frame: True scales `crop_hw` from REFERENCE_HW to this frame; False takes it as pixels.
        """
        if self.crop_hw is None:
            return width, height
        if not scale_with_frame:
            return self.crop_hw[1], self.crop_hw[0]
        crop_h = max(1, round(self.crop_hw[0] * height / REFERENCE_HW[0]))
        crop_w = max(1, round(self.crop_hw[1] * width / REFERENCE_HW[1]))
        return crop_w, crop_h


def _built_in_recipes() -> dict[str, Recipe]:
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
        Recipe("Random_ScaleCrop", crop_hw=(960, 960), crop_scale_range=(0.65, 1.35)),
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


RECIPES: dict[str, Recipe] = _built_in_recipes()
"""The built-in recipes, by name."""


def resolve_recipes(
    names: Sequence[str], user_recipes: Mapping[str, Mapping[str, Any]] | None = None
) -> list[tuple[Recipe, int]]:
    """Look up the recipes that a config lists.

    Args:
        names: `augment.recipes`; a name that is listed twice gives two copies.
        user_recipes: `augment.user_recipes`: name -> pipeline, as returned by `albumentations.to_dict`.

    Returns:
        Each recipe with its number of copies, in order of first mention.

    Raises:
        ConfigError: no recipe is listed, a name is unknown, or a user's pipeline is not valid.
    """
    recipes = dict(RECIPES)
    for name, pipeline in (user_recipes or {}).items():
        if name in RECIPES:
            raise ConfigError(f"augment.user_recipes.{name}: a built-in recipe has this name: choose another name")
        recipes[name] = Recipe(name, user_pipeline=validate_pipeline(name, pipeline))
    unknown_names = [name for name in names if name not in recipes]
    if unknown_names:
        raise ConfigError(
            f"augment.recipes: unknown recipe (got {unknown_names[0]!r}): choose from {', '.join(recipes)}"
        )
    if not names:
        raise ConfigError("augment.recipes: the list is empty: name at least one recipe")
    return [(recipes[name], copies) for name, copies in Counter(names).items()]
