"""Sizes and fingerprints of recipes, and the look-up of the recipes that a config lists."""

import json
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import albumentations as A  # noqa: N812
import pytest

from kp_ray.augmentation.recipes import RECIPES, REFERENCE_HW, Recipe, resolve_recipes
from kp_ray.augmentation.sampling import sample_parameters
from kp_ray.config.load import build_config
from kp_ray.config.presets import DEFAULT_RECIPES
from kp_ray.errors import ConfigError

BLUR = A.to_dict(A.Compose([A.Blur(p=1)]))


@pytest.mark.parametrize("name", RECIPES)
def test_scale_with_frame_changes_no_crop_in_a_frame_of_the_reference_size(name: str) -> None:
    height, width = REFERENCE_HW
    for seed in range(5):
        with_scaling, without_scaling = (
            sample_parameters(RECIPES[name], width, height, seed, scale_with_frame=scales) for scales in (True, False)
        )
        for field in ("width", "height", "crop_xy"):
            assert getattr(with_scaling, field) == getattr(without_scaling, field)


def test_the_default_recipes_give_18_variants_two_of_them_from_one_recipe() -> None:
    recipes = resolve_recipes(DEFAULT_RECIPES)
    assert sum(copies for _, copies in recipes) == 18
    assert Counter({recipe.name: copies for recipe, copies in recipes if copies > 1}) == {"Rotate45_CenterCrop": 2}
    assert [recipe.name for recipe, _ in recipes] == list(dict.fromkeys(DEFAULT_RECIPES))


def test_sizes_scale_with_the_frame() -> None:
    assert RECIPES["RandomCrop_1"].crop_size(960, 540, scale_with_frame=True) == (360, 270)
    assert RECIPES["RandomSquare_2"].crop_size(3840, 1080, scale_with_frame=True) == (1440, 720)
    assert RECIPES["Rotate45"].crop_size(333, 500, scale_with_frame=True) == (333, 500)
    assert RECIPES["Original"].crop_size(333, 500, scale_with_frame=True) == (333, 500)


def test_the_fingerprint_depends_on_every_field_but_the_name() -> None:
    base = Recipe("base", rotate_deg=10.0, scale_range=(0.5, 2.0), crop_hw=(100, 200))
    other_values: dict[str, Any] = {
        "rotate_deg": 10.5,
        "scale_range": (0.5, 2.5),
        "crop_hw": (100, 201),
        "crop": "center",
        "crop_scale_range": (0.5, 0.5),
        "brightness_contrast": True,
        "user_pipeline": "{}",
    }
    assert set(other_values) == {field.name for field in fields(Recipe)} - {"name"}
    assert replace(base, name="renamed").fingerprint == base.fingerprint
    fingerprints = [replace(base, **{key: value}).fingerprint for key, value in other_values.items()]
    assert len({base.fingerprint, *fingerprints}) == len(fingerprints) + 1
    assert all(len(fingerprint) == 16 and int(fingerprint, 16) >= 0 for fingerprint in fingerprints)


def test_fingerprints_equal_those_of_version_0_1() -> None:
    """Another fingerprint would change the random numbers of every variant of the recipe."""
    assert RECIPES["Original"].fingerprint == "802a8a793da74291"
    assert RECIPES["Rescale_Rotate45_CenterCrop"].fingerprint == "fd7aefe797b500de"


def test_a_users_pipeline_becomes_a_recipe() -> None:
    recipes = resolve_recipes(["Original", "Soft", "Soft"], {"Soft": BLUR})
    assert [(recipe.name, copies) for recipe, copies in recipes] == [("Original", 1), ("Soft", 2)]
    soft = recipes[1][0]
    assert soft.user_pipeline is not None
    assert json.loads(soft.user_pipeline) == json.loads(json.dumps(BLUR))
    sharp = resolve_recipes(["Soft"], {"Soft": A.to_dict(A.Compose([A.Sharpen(p=1)]))})[0][0]
    assert soft.fingerprint != sharp.fingerprint
    # A config gives the same recipe.
    augment_config = build_config({"augment": {"recipes": ["Soft"], "user_recipes": {"Soft": BLUR}}}).augment
    assert resolve_recipes(augment_config.recipes, augment_config.user_recipes) == [(soft, 1)]


@pytest.mark.parametrize(
    ("names", "user_recipes", "message_start"),
    [
        (["Orignal"], {}, "augment.recipes: unknown recipe (got 'Orignal')"),
        ([], {}, "augment.recipes"),
        (["Rotate45"], {"Rotate45": BLUR}, "augment.user_recipes.Rotate45"),
        (["Original"], {"unused": {"transform": {}}}, "augment.user_recipes.unused"),
    ],
)
def test_the_error_for_wrong_recipes_names_the_config_key(
    names: list[str], user_recipes: dict[str, Any], message_start: str
) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_recipes(names, user_recipes)
    assert str(error.value).startswith(f"{message_start}: ")
