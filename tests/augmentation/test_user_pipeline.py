"""Users' pipelines are validated when the config is read, and map keypoints together with the image."""

import json
from typing import Any

import albumentations as A  # noqa: N812
import cv2
import numpy as np
import pytest

from kp_ray.augmentation.recipes import Recipe, resolve_recipes
from kp_ray.augmentation.user_pipeline import validate_pipeline
from kp_ray.errors import ConfigError, DataError
from kp_ray.keypoints import apply_affine, is_inside_image
from tests.helpers.images import to_jpeg, to_png
from tests.helpers.variants import (
    SIZES,
    decode_variant,
    keypoints_with_dots,
    make_dotted_image,
    make_keypoints,
    make_variants,
    measure_dot_errors,
)

# Albumentations warns if a pipeline moves no keypoint.
pytestmark = pytest.mark.filterwarnings("ignore:Got processor for keypoints")


@pytest.mark.parametrize("step", [A.PadIfNeeded(p=1), A.SafeRotate(p=1), A.ShiftScaleRotate(p=1), A.Blur(p=1)])
def test_saved_pipelines_are_valid_although_albumentations_warns_about_them(step: Any) -> None:
    keypoint_params = A.KeypointParams(format="xy", remove_invisible=False)
    saved = A.to_dict(A.Compose([step], keypoint_params=keypoint_params))
    assert json.loads(validate_pipeline("mine", saved)) == json.loads(json.dumps(saved))


def saved_transform(class_name: str, **arguments: Any) -> dict[str, Any]:
    """Return a pipeline of one transform in the form of `albumentations.to_dict`."""
    return {"transform": {"__class_fullname__": class_name, "p": 1, **arguments}}


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        ({}, "cannot load this pipeline"),
        ({"transform": 3}, "cannot load this pipeline"),
        (saved_transform("Nope"), "Nope"),
        (saved_transform("Rotate", limit="wide"), "limit"),
        (saved_transform("Rotate", limt=3), "the argument 'limt' is unknown"),
        (A.to_dict(A.Compose([A.OneOf([A.HorizontalFlip(), A.Blur()])])), "HorizontalFlip mirrors"),
        (A.to_dict(A.Compose([A.TimeReverse()])), "TimeReverse mirrors"),
        (A.to_dict(A.ReplayCompose([A.Blur()])), "ReplayCompose is not supported"),
        (saved_transform("albumentations.VerticalFlip"), "VerticalFlip mirrors"),
    ],
)
def test_an_invalid_pipeline_is_refused_with_the_reason(pipeline: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate_pipeline("mine", pipeline)
    assert str(error.value).startswith("augment.user_recipes.mine: ")
    assert reason in str(error.value)


def make_user_recipe(*steps: Any, **options: Any) -> list[tuple[Recipe, int]]:
    """Make a recipe of Albumentations' transforms, with 4 copies."""
    return [(resolve_recipes(["mine"], {"mine": A.to_dict(A.Compose(list(steps), **options))})[0][0], 4)]


def test_a_reflect_border_in_a_users_pipeline_adds_no_mirrored_keypoints() -> None:
    width, height = SIZES[0]
    recipes = make_user_recipe(
        A.OneOf(
            [
                A.Rotate(limit=(15, 40), border_mode=cv2.BORDER_REFLECT_101, p=1),
                A.Affine(rotate=(-40, -15), border_mode=cv2.BORDER_REFLECT_101, p=1),
            ],
            p=1,
        ),
        A.RandomScale(scale_limit=(-0.2, 0.3), p=1),
        A.RandomCrop(height=180, width=320, p=1),
        A.RandomBrightnessContrast(p=0.5),
    )
    variants, plain_variants = (
        make_variants(to_jpeg(make_dotted_image(width, height, dots)), make_keypoints(width, height), recipes)
        for dots in (True, False)
    )
    errors: list[float] = []
    for variant, plain_variant in zip(variants, plain_variants, strict=True):
        affine, points = variant.affine, variant.keypoints
        scale = np.sqrt(np.linalg.det(affine[:, :2]))
        assert 0.79 < scale < 1.31
        source_keypoints = make_keypoints(width, height)
        np.testing.assert_allclose(apply_affine(affine, source_keypoints[:, :2]), points[:, :2], atol=0.05, rtol=0)
        is_inside = is_inside_image(points[:, :2], variant.width, variant.height)
        assert points[:, 2].tolist() == np.where(is_inside, source_keypoints[:, 2], 0).tolist()
        assert (variant.width, variant.height) == (320, 180)
        errors += measure_dot_errors(variant, plain_variant, keypoints_with_dots(width, height), scale)
    assert len(errors) >= 20
    assert max(errors) < 1.0  # Albumentations itself shifts an image against its keypoints by up to 0.3 px


def test_the_random_parameters_of_a_users_steps_are_independent_and_reproducible() -> None:
    recipe, _ = make_user_recipe(A.Rotate(limit=(-30, 30), p=1), A.RandomScale(scale_limit=(-0.3, 0.3), p=1))[0]
    content, no_keypoints = to_png(np.zeros((24, 32, 3), np.uint8)), np.full((24, 3), np.nan)
    variants = make_variants(content, no_keypoints, [(recipe, 150)])
    affines = np.array([variant.affine[:, :2] for variant in variants])
    angles, scales = np.arctan2(affines[:, 0, 1], affines[:, 0, 0]), np.linalg.det(affines)
    assert np.ptp(angles) > np.deg2rad(50)
    assert np.ptp(scales) > 1
    assert abs(np.corrcoef(angles, scales)[0, 1]) < 0.25
    second_variants = make_variants(content, no_keypoints, [(recipe, 150)])
    assert [variant.image for variant in second_variants] == [variant.image for variant in variants]


def test_a_users_pipeline_runs_with_its_own_probability() -> None:
    recipe, _ = make_user_recipe(A.InvertImg(p=1), p=0.5)[0]
    variants = make_variants(to_png(np.zeros((16, 16, 3), np.uint8)), np.full((24, 3), np.nan), [(recipe, 60)])
    assert 15 < sum(decode_variant(variant).mean() > 128 for variant in variants) < 45


def test_a_users_blur_keeps_the_keypoints_and_a_perspective_has_no_affine() -> None:
    content, source_keypoints = to_jpeg(make_dotted_image(*SIZES[0])), make_keypoints(*SIZES[0])
    blurred_variant = make_variants(
        content, source_keypoints, make_user_recipe(A.GaussianBlur(sigma_limit=(2, 3), p=1))
    )[0]
    np.testing.assert_allclose(blurred_variant.affine, np.eye(2, 3), atol=1e-6)
    np.testing.assert_allclose(blurred_variant.keypoints[:, :2], source_keypoints[:, :2], rtol=1e-6)
    assert blurred_variant.image != content
    tilted_variant = make_variants(content, source_keypoints, make_user_recipe(A.Perspective(scale=(0.1, 0.2), p=1)))[0]
    assert np.isnan(tilted_variant.affine).all()
    assert np.isnan(tilted_variant.keypoints[:, 0]).tolist() == np.isnan(source_keypoints[:, 0]).tolist()


def test_a_users_pipeline_that_returns_no_8_bit_image_is_refused() -> None:
    with pytest.raises(DataError, match="must keep every keypoint and return an 8-bit color image"):
        make_variants(
            to_jpeg(make_dotted_image(*SIZES[0])), make_keypoints(*SIZES[0]), make_user_recipe(A.ToFloat(p=1))
        )


@pytest.mark.parametrize(
    "step",
    [
        A.GridDistortion(distort_limit=(0.2, 0.3), p=1),
        A.OpticalDistortion(distort_limit=(0.3, 0.4), p=1),
        A.ElasticTransform(alpha=60, sigma=12, p=1),
    ],
    ids=lambda step: type(step).__name__,
)
def test_a_distortion_moves_the_keypoints_with_the_image(step: Any) -> None:
    width, height = SIZES[0]
    variants, plain_variants = (
        make_variants(
            to_jpeg(make_dotted_image(width, height, dots)), make_keypoints(width, height), make_user_recipe(step)
        )
        for dots in (True, False)
    )
    errors: list[float] = []
    for variant, plain_variant in zip(variants, plain_variants, strict=True):
        errors += measure_dot_errors(variant, plain_variant, keypoints_with_dots(width, height), 1.0)
    assert len(errors) >= 20
    assert np.median(errors) < 1.0
    assert max(errors) < 3.0


def test_the_error_about_a_user_recipe_that_fails_gives_the_reason() -> None:
    with pytest.raises(DataError, match="the user recipe fails on this image: CropSizeError"):
        make_variants(
            to_jpeg(make_dotted_image(320, 180)), make_keypoints(320, 180), make_user_recipe(A.RandomCrop(540, 540))
        )


def test_a_user_recipe_that_mirrors_by_a_negative_scale_is_refused() -> None:
    mirror = A.Affine(scale={"x": (-1, -1), "y": (1, 1)}, p=1)
    with pytest.raises(DataError, match="the user recipe mirrors this image"):
        make_variants(to_jpeg(make_dotted_image(*SIZES[0])), make_keypoints(*SIZES[0]), make_user_recipe(mirror))
