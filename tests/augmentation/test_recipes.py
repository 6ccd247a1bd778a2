"""The recipes against Albumentations, which defines what they mean."""

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import albumentations as A  # noqa: N812
import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from kp_ray.augmentation.recipes import RECIPES, Recipe, resolve_recipes
from kp_ray.augmentation.sampling import Draw, sample_parameters, variant_seed
from kp_ray.config.load import build_config
from kp_ray.config.presets import DEFAULT_RECIPES
from kp_ray.errors import KpRayError
from kp_ray.keypoints import FloatArray, apply_affine

pytestmark = pytest.mark.filterwarnings("ignore:Got processor for keypoints")  # of recipes without geometry
PUBLISHED = [
    "Original", "CenterCrop_1", "CenterCrop_2", "RandomCrop_1", "RandomCrop_2", "RandomCrop_3", "RandomCrop_4",
    "RandomSquare_1", "RandomSquare_2", "RandomSquare_3", "RandomSquare_4", "Rotate45", "Rotate45_CenterCrop",
    "Rotate45_RandomCrop_1", "Rotate45_RandomCrop_2", "Rotate45_RandomCrop_3", "Rotate45_RandomCrop_4",
    "Random_ScaleCrop", "RandomBrightnessContrast", "Rescale_RandomCrop_1", "Rescale_RandomCrop_2",
    "Rescale_RandomCrop_3", "Rescale_CenterCrop", "Rescale_Rotate45_RandomCrop_1", "Rescale_Rotate45_RandomCrop_2",
    "Rescale_Rotate45_RandomCrop_3", "Rescale_Rotate45_CenterCrop",
]  # fmt: skip
FRAMES = [(1920, 1080), (640, 480), (333, 500), (101, 57)]
NUM_DRAWS = 2000
LEAST_P = 1e-4
"""Over a hundred distributions are compared; at 2000 draws two that lie 0.07 apart have a smaller p."""
BLUR = A.to_dict(A.Compose([A.Blur(p=1)]))


def keypoints_of(width: int, height: int, seed: int = 0) -> FloatArray:
    """24 points, some of them outside the frame."""
    rng = np.random.default_rng(seed)
    return rng.uniform((-0.1 * width, -0.1 * height), (1.1 * width, 1.1 * height), (24, 2))


def fixed_pipeline(recipe: Recipe, drawn: Draw, width: int, height: int) -> Any:
    """The recipe in Albumentations' transforms, with the numbers that were drawn."""
    steps: list[Any] = []
    if recipe.rotate_deg:
        steps.append(A.Rotate(limit=(drawn.angle_deg, drawn.angle_deg), border_mode=cv2.BORDER_CONSTANT, p=1))
    if recipe.scale_range:
        steps.append(A.RandomScale(scale_limit=(drawn.scale - 1, drawn.scale - 1), p=1))
    if recipe.crop_hw:
        x, y = drawn.crop_xy
        crop_w, crop_h = recipe.crop_size(width, height, scale_with_frame=True)
        random = A.Crop(x_min=x, y_min=y, x_max=x + crop_w, y_max=y + crop_h, p=1)
        steps.append(random if recipe.crop == "random" else A.CenterCrop(height=crop_h, width=crop_w, p=1))
    if recipe.then_scale != 1:
        steps.append(A.RandomScale(scale_limit=(recipe.then_scale - 1, recipe.then_scale - 1), p=1))
    return A.Compose(steps, keypoint_params=A.KeypointParams(format="xy", remove_invisible=False))


def albumentations_draws(recipe: Recipe, width: int, height: int) -> list[dict[str, dict[str, Any]]]:
    """What Albumentations draws for the recipe: parameters by transform.

    Each transform has its own seed: `Compose.set_random_seed` gives all of them the same numbers, and a large scale
    always comes with a low crop.
    """
    defined = recipe.to_albumentations(width, height)
    pipeline = A.Compose(defined.transforms, save_applied_params=True)
    picture = np.zeros((height, width), np.uint8)
    taken = []
    for seed in range(NUM_DRAWS):
        for number, step in enumerate(pipeline.transforms):
            step.set_random_seed(seed + number * NUM_DRAWS)
        taken.append(dict(pipeline(image=picture)["applied_transforms"]))
    return taken


def test_the_twenty_seven_published_recipes_are_there() -> None:
    assert list(RECIPES) == PUBLISHED
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    assert len({recipe.fingerprint for recipe in RECIPES.values()}) == 27


@pytest.mark.parametrize(
    ("name", "width", "height"),
    [
        ("Original", 1920, 1080), ("CenterCrop_1", 1280, 720), ("CenterCrop_2", 960, 960), ("RandomCrop_1", 720, 540),
        ("RandomCrop_2", 960, 720), ("RandomCrop_3", 1280, 960), ("RandomCrop_4", 1280, 720),
        ("RandomSquare_1", 960, 960), ("RandomSquare_2", 720, 720), ("RandomSquare_3", 540, 540),
        ("RandomSquare_4", 420, 420), ("Rotate45", 1920, 1080), ("Rotate45_CenterCrop", 1280, 720),
        ("Rotate45_RandomCrop_1", 720, 540), ("Rotate45_RandomCrop_2", 960, 720), ("Rotate45_RandomCrop_3", 960, 960),
        ("Rotate45_RandomCrop_4", 1280, 720), ("Random_ScaleCrop", 336, 336), ("RandomBrightnessContrast", 1920, 1080),
        ("Rescale_RandomCrop_1", 960, 720), ("Rescale_RandomCrop_2", 720, 540), ("Rescale_RandomCrop_3", 1280, 720),
        ("Rescale_CenterCrop", 1280, 720), ("Rescale_Rotate45_RandomCrop_1", 960, 720),
        ("Rescale_Rotate45_RandomCrop_2", 720, 540), ("Rescale_Rotate45_RandomCrop_3", 1280, 720),
        ("Rescale_Rotate45_CenterCrop", 1280, 720),
    ],
)  # fmt: skip
def test_each_recipe_has_its_published_size(name: str, width: int, height: int) -> None:
    for seed in range(5):
        drawn = sample_parameters(RECIPES[name], 1920, 1080, seed, scale_with_frame=False)
        assert (drawn.width, drawn.height) == (width, height)


def test_the_default_is_eighteen_variants_with_one_recipe_twice() -> None:
    chosen = resolve_recipes(DEFAULT_RECIPES)
    assert sum(copies for _, copies in chosen) == 18
    assert Counter({recipe.name: copies for recipe, copies in chosen if copies > 1}) == {"Rotate45_CenterCrop": 2}
    assert [recipe.name for recipe, _ in chosen] == list(dict.fromkeys(DEFAULT_RECIPES))


@pytest.mark.parametrize(("width", "height"), FRAMES)
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_same_numbers_give_albumentations_keypoints_and_size(name: str, width: int, height: int) -> None:
    recipe = RECIPES[name]
    points = keypoints_of(width, height)
    picture = np.zeros((height, width), np.uint8)
    for seed in range(1 if width > 1000 else 4):
        drawn = sample_parameters(recipe, width, height, seed)
        expected = fixed_pipeline(recipe, drawn, width, height)(image=picture, keypoints=points)
        assert expected["image"].shape == (drawn.height, drawn.width)
        np.testing.assert_allclose(apply_affine(drawn.affine, points), expected["keypoints"], atol=0.01, rtol=0)


@pytest.mark.parametrize("name", PUBLISHED)
@given(st.integers(48, 700), st.integers(48, 700), st.integers(0, 2**64 - 1))
@settings(max_examples=6, derandomize=True, database=None, deadline=None)
def test_the_same_numbers_give_albumentations_keypoints_in_any_frame(
    name: str, width: int, height: int, seed: int
) -> None:
    recipe, points = RECIPES[name], keypoints_of(width, height)
    drawn = sample_parameters(recipe, width, height, seed)
    crop = recipe.crop_size(width, height, scale_with_frame=True)
    assume(crop[0] <= int(width * drawn.scale) and crop[1] <= int(height * drawn.scale))  # else theirs refuses
    pipeline = fixed_pipeline(recipe, drawn, width, height)
    expected = pipeline(image=np.zeros((height, width), np.uint8), keypoints=points)
    assert expected["image"].shape == (drawn.height, drawn.width)
    np.testing.assert_allclose(apply_affine(drawn.affine, points), expected["keypoints"], atol=0.01, rtol=0)


def with_geometry() -> list[str]:
    """The recipes that draw a place, an angle or a scale."""
    names = []
    for name in PUBLISHED:
        recipe = RECIPES[name]
        moves = recipe.crop_hw is not None and recipe.crop == "random"
        if recipe.rotate_deg or recipe.scale_range or moves:
            names.append(name)
    return names


def test_all_but_four_recipes_draw_their_geometry() -> None:
    fixed = set(PUBLISHED) - set(with_geometry())
    assert fixed == {"Original", "CenterCrop_1", "CenterCrop_2", "RandomBrightnessContrast"}


@pytest.mark.parametrize("name", with_geometry())
def test_geometry_is_drawn_as_albumentations_draws_it(name: str) -> None:
    recipe, width, height = RECIPES[name], 96, 54
    theirs = albumentations_draws(recipe, width, height)
    ours = [
        sample_parameters(recipe, width, height, variant_seed(0, str(i), recipe.fingerprint, 0))
        for i in range(NUM_DRAWS)
    ]
    pairs: dict[str, tuple[list[float], list[float]]] = {}
    if recipe.rotate_deg:
        turned = [
            np.rad2deg(np.arctan2(matrix[0, 1], matrix[0, 0]))
            for matrix in (taken["Rotate"]["matrix"] for taken in theirs)
        ]
        pairs["angle"] = [drawn.angle_deg for drawn in ours], turned
        assert all(-45 <= drawn.angle_deg <= 45 for drawn in ours)
    if recipe.scale_range:
        pairs["scale"] = [drawn.scale for drawn in ours], [taken["RandomScale"]["scale"] for taken in theirs]
        assert all(0.7 <= drawn.scale <= 1.3 for drawn in ours)
    if recipe.crop_hw and (recipe.crop == "random" or recipe.scale_range):
        kind = "RandomCrop" if recipe.crop == "random" else "CenterCrop"
        corners = [taken[kind]["crop_coords"][:2] for taken in theirs]
        for axis in (0, 1):
            pairs[f"crop {'xy'[axis]}"] = [drawn.crop_xy[axis] for drawn in ours], [corner[axis] for corner in corners]
    assert pairs
    for what, (mine, reference) in pairs.items():
        assert np.ptp(mine) > 0, what
        assert ks_2samp(mine, reference).pvalue > LEAST_P, what


@pytest.mark.parametrize("name", with_geometry())
def test_what_a_recipe_draws_is_drawn_independently(name: str) -> None:
    recipe, width, height = RECIPES[name], 1920, 1080
    seeds = [variant_seed(0, str(i), recipe.fingerprint, 0) for i in range(NUM_DRAWS)]
    drawn = [sample_parameters(recipe, width, height, seed) for seed in seeds]
    taken = {"angle": [one.angle_deg for one in drawn], "scale": [one.scale for one in drawn]}
    for axis, frame in enumerate((width, height)):
        size = recipe.crop_size(width, height, scale_with_frame=True)[axis]
        room = [int(frame * one.scale) - size + 1 for one in drawn]
        places = [(one.crop_xy[axis] + 0.5) / free for one, free in zip(drawn, room, strict=True)]
        if recipe.crop == "random" and max(room) > 1:
            taken["crop " + "xy"[axis]] = places
    varied = np.array([values for values in taken.values() if np.ptp(values) > 0])
    assert len(varied)
    assert np.abs(np.corrcoef(varied) - np.eye(len(varied))).max() < 0.1


def test_a_small_difference_between_distributions_would_be_noticed() -> None:
    rng = np.random.default_rng(0)
    right = rng.uniform(0.7, 1.3, NUM_DRAWS)
    assert ks_2samp(right, rng.uniform(0.7, 1.3, NUM_DRAWS)).pvalue > LEAST_P
    assert ks_2samp(right, rng.uniform(0.64, 1.3, NUM_DRAWS)).pvalue < LEAST_P
    assert ks_2samp(right, rng.uniform(0.75, 1.25, NUM_DRAWS)).pvalue < LEAST_P


def test_every_crop_position_of_albumentations_is_reached() -> None:
    recipe = RECIPES["RandomCrop_1"]
    ours = {sample_parameters(recipe, 16, 10, seed).crop_xy for seed in range(NUM_DRAWS)}
    theirs = {taken["RandomCrop"]["crop_coords"][:2] for taken in albumentations_draws(recipe, 16, 10)}
    assert ours == theirs == {(x, y) for x in range(11) for y in range(6)}


def test_brightness_and_contrast_are_drawn_as_albumentations_draws_them() -> None:
    recipe = RECIPES["RandomBrightnessContrast"]
    theirs = [taken["RandomBrightnessContrast"] for taken in albumentations_draws(recipe, 8, 8)]
    ours = [sample_parameters(recipe, 8, 8, seed) for seed in range(NUM_DRAWS)]
    assert ks_2samp([drawn.contrast for drawn in ours], [taken["alpha"] for taken in theirs]).pvalue > LEAST_P
    assert ks_2samp([255 * drawn.brightness for drawn in ours], [taken["beta"] for taken in theirs]).pvalue > LEAST_P
    assert abs(np.corrcoef([(drawn.contrast, drawn.brightness) for drawn in ours], rowvar=False)[0, 1]) < 0.1


@pytest.mark.parametrize("name", ["Rescale_Rotate45_RandomCrop_1", "Random_ScaleCrop", "Original"])
def test_the_definition_in_albumentations_gives_pictures_of_the_same_size(name: str) -> None:
    pipeline = RECIPES[name].to_albumentations(320, 180)
    for seed in range(5):
        pipeline.set_random_seed(seed)
        shape = pipeline(image=np.zeros((180, 320, 3), np.uint8), keypoints=np.zeros((0, 2)))["image"].shape
        drawn = sample_parameters(RECIPES[name], 320, 180, seed)
        assert shape == (drawn.height, drawn.width, 3)


@given(st.sampled_from(PUBLISHED), st.integers(16, 4000), st.integers(16, 4000), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_any_frame_has_every_recipe_and_its_affine_leads_home(name: str, width: int, height: int, seed: int) -> None:
    recipe = RECIPES[name]
    drawn = sample_parameters(recipe, width, height, seed)
    assert drawn.width >= 1
    assert drawn.height >= 1
    home = np.linalg.inv(np.vstack([drawn.affine, [0, 0, 1]]))[:2]
    points = keypoints_of(width, height)
    np.testing.assert_allclose(apply_affine(home, apply_affine(drawn.affine, points)), points, atol=1e-3, rtol=0)
    scaled = int(width * drawn.scale), int(height * drawn.scale)
    for offset, size, frame in zip(drawn.crop_xy, (drawn.width, drawn.height), scaled, strict=True):
        assert 0 <= offset <= frame - int(size / recipe.then_scale)


@given(st.sampled_from(PUBLISHED), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_a_seed_always_draws_the_same(name: str, seed: int) -> None:
    one, two = (sample_parameters(RECIPES[name], 640, 360, seed) for _ in range(2))
    assert np.array_equal(one.affine, two.affine)
    assert replace(one, affine=two.affine) == replace(two, affine=two.affine)


def test_another_seed_draws_something_else() -> None:
    for name in PUBLISHED:
        recipe = RECIPES[name]
        several = {
            (d.affine.tobytes(), d.contrast) for d in (sample_parameters(recipe, 640, 360, seed) for seed in range(8))
        }
        fixed = not (recipe.rotate_deg or recipe.scale_range or recipe.brightness_contrast) and (
            recipe.crop == "center" or recipe.crop_hw is None
        )
        assert len(several) == (1 if fixed else 8), name


def test_the_seed_of_a_variant_is_its_own_and_the_same_on_every_machine() -> None:
    assert variant_seed(42, "a.jpg", "0123456789abcdef", 0) == 15856658516226839463
    keys = [(s, i, f, c) for s in (0, 1) for i in ("a.jpg", "b.jpg") for f in ("x", "y") for c in (0, 1)]
    seeds = {variant_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_a_crop_larger_than_the_frame_is_refused_with_both_sizes() -> None:
    with pytest.raises(KpRayError, match="CenterCrop_1 crops 1280x720 px, larger than the 640x480 px frame") as raised:
        sample_parameters(RECIPES["CenterCrop_1"], 640, 480, 0, scale_with_frame=False)
    assert "augment.oversize: scale" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    for size in ((1280, 720), (3840, 2160)):
        whole = sample_parameters(RECIPES["Original"], *size, 0, scale_with_frame=False)
        assert ((whole.width, whole.height), whole.crop_xy) == (size, (0, 0)), "nothing to crop, nothing to refuse"


def test_sizes_scale_with_the_frame() -> None:
    assert RECIPES["RandomCrop_1"].crop_size(960, 540, scale_with_frame=True) == (360, 270)
    assert RECIPES["RandomSquare_2"].crop_size(3840, 1080, scale_with_frame=True) == (1440, 720)
    assert RECIPES["Rotate45"].crop_size(333, 500, scale_with_frame=True) == (333, 500)
    assert RECIPES["Original"].crop_size(333, 500, scale_with_frame=True) == (333, 500)


def test_the_fingerprint_is_of_what_a_recipe_does_not_of_its_name() -> None:
    base = Recipe("base", rotate_deg=10.0, scale_range=(0.5, 2.0), crop_hw=(100, 200))
    other: dict[str, Any] = {
        "rotate_deg": 10.5, "scale_range": (0.5, 2.5), "crop_hw": (100, 201), "crop": "center", "then_scale": 0.5,
        "brightness_contrast": True, "user": "{}",
    }  # fmt: skip
    assert set(other) == {field.name for field in fields(Recipe)} - {"name"}
    assert replace(base, name="renamed").fingerprint == base.fingerprint
    changed = [replace(base, **{key: value}).fingerprint for key, value in other.items()]
    assert len({base.fingerprint, *changed}) == len(changed) + 1
    assert all(len(mark) == 16 and int(mark, 16) >= 0 for mark in changed)


def test_a_users_pipeline_becomes_a_recipe() -> None:
    chosen = resolve_recipes(["Original", "Soft", "Soft"], {"Soft": BLUR})
    assert [(recipe.name, copies) for recipe, copies in chosen] == [("Original", 1), ("Soft", 2)]
    soft = chosen[1][0]
    assert soft.to_albumentations().transforms[0].__class__.__name__ == "Blur"
    sharp = resolve_recipes(["Soft"], {"Soft": A.to_dict(A.Compose([A.Sharpen(p=1)]))})[0][0]
    assert soft.fingerprint != sharp.fingerprint
    # A config from YAML brings the same recipe as the pipeline itself.
    from_config = build_config({"augment": {"recipes": ["Soft"], "user_recipes": {"Soft": BLUR}}}).augment
    assert resolve_recipes(from_config.recipes, from_config.user_recipes) == [(soft, 1)]


@pytest.mark.parametrize("step", [A.PadIfNeeded(p=1), A.SafeRotate(p=1), A.ShiftScaleRotate(p=1), A.Blur(p=1)])
def test_what_albumentations_saves_is_taken_whatever_it_warns_of(step: Any) -> None:
    points = A.KeypointParams(format="xy", remove_invisible=False)
    saved = A.to_dict(A.Compose([step], keypoint_params=points))
    assert resolve_recipes(["mine"], {"mine": saved})[0][0].user


@pytest.mark.parametrize(
    ("names", "user", "told"),
    [
        (["Orignal"], {}, "augment.recipes: no recipe is called 'Orignal'; there are Original, CenterCrop_1"),
        ([], {}, "augment.recipes: name at least one recipe"),
        (["Rotate45"], {"Rotate45": BLUR}, "augment.user_recipes.Rotate45: a named recipe has this name already"),
        (["x"], {"x": {}}, "augment.user_recipes.x: not a pipeline saved by albumentations.to_dict"),
        (["x"], {"x": {"transform": 3}}, "not a pipeline"),
        (["x"], {"x": {"transform": {"__class_fullname__": "Nope", "p": 1}}}, "Nope"),
        (["x"], {"x": {"transform": {"__class_fullname__": "Rotate", "p": 1, "limit": "wide"}}}, "limit"),
        (["x"], {"x": {"transform": {"__class_fullname__": "Rotate", "p": 1, "limt": 3}}}, "'limt'"),
        (["Original"], {"unused": {"transform": {}}}, "augment.user_recipes.unused: not a pipeline"),
        (["x"], {"x": A.to_dict(A.Compose([A.OneOf([A.HorizontalFlip(), A.Blur()])]))}, "HorizontalFlip mirrors"),
        (["x"], {"x": A.to_dict(A.Compose([A.TimeReverse()]))}, "TimeReverse mirrors"),
        (
            ["x"],
            {"x": {"transform": {"__class_fullname__": "albumentations.VerticalFlip", "p": 1}}},
            "VerticalFlip mirrors",
        ),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_one_line(names: list[str], user: dict[str, Any], told: str) -> None:
    with pytest.raises(KpRayError) as raised:
        resolve_recipes(names, user)
    assert told in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
