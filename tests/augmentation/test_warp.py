"""Windows are resampled once, without visible blur, and only from the source's pixels."""

import albumentations as A  # noqa: N812
import cv2
import numpy as np
import pytest

from kp_ray.augmentation.recipes import RECIPES
from kp_ray.augmentation.sampling import sample_parameters
from kp_ray.augmentation.warp import PaddedSource, change_brightness_contrast
from kp_ray.errors import DataError
from kp_ray.images import decode
from tests.helpers.images import to_jpeg, to_png
from tests.helpers.variants import SIZES, decode_variant, make_dotted_image, make_variants, variants_by_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_variant_is_close_to_one_cubic_resampling_of_the_source(name: str) -> None:
    width, height = SIZES[0]
    source = decode(to_jpeg(make_dotted_image(width, height)))[0][..., :3]
    for variant in variants_by_recipe(width, height)[name]:
        size = (variant.width, variant.height)
        affine = variant.affine
        expected = cv2.warpAffine(source, affine, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        if RECIPES[name].brightness_contrast:
            assert np.abs(expected.astype(int) - source).max() == 0, "the window must be the whole source"
            parameters = sample_parameters(RECIPES[name], width, height, variant.seed)
            assert abs(parameters.contrast - 1) + abs(parameters.brightness) > 0.02, "another seed changes more"
            expected = A.RandomBrightnessContrast(p=1).apply(
                expected, alpha=parameters.contrast, beta=255 * parameters.brightness
            )
        difference = np.abs(decode_variant(variant).astype(int) - expected)
        # JPEG compression alone gives a mean of 0.95 levels of 255. Variants of `crop_scale_range` may differ more,
        # because linear and cubic interpolation differ most when an image is made smaller.
        assert difference.mean() < (2.5 if RECIPES[name].crop_scale_range else 1.6)
        assert np.percentile(difference, 99.9) < 12


def test_the_comparison_with_cubic_resampling_detects_a_shift_by_a_third_of_a_pixel() -> None:
    source = make_dotted_image(*SIZES[0])
    shifted_image = cv2.warpAffine(source, np.array([[1, 0, 0.33], [0, 1, 0.33]]), SIZES[0], flags=cv2.INTER_CUBIC)
    assert np.abs(shifted_image.astype(int) - source)[8:-8, 8:-8].mean() > 2.5


@pytest.mark.parametrize(("width", "height"), [(36, 9), (9, 36)])
@pytest.mark.parametrize(
    "name", ["Rotate45", "Rotate45_RandomCrop_3", "Rescale_RandomCrop_1", "Rescale_Rotate45_RandomCrop_3"]
)
def test_the_edge_of_a_variant_is_not_darkened_by_a_border(name: str, width: int, height: int) -> None:
    flat_png = to_png(np.full((height, width, 3), 200, np.uint8))
    for variant in make_variants(flat_png, np.full((24, 3), 1.0), [(RECIPES[name], 300)]):
        assert decode_variant(variant).min() >= 197


def test_brightness_and_contrast_change_pixels_as_albumentations_does() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    bgrx = np.repeat(levels[..., None], 4, axis=2)
    for seed in range(200):
        parameters = sample_parameters(RECIPES["RandomBrightnessContrast"], 16, 16, seed)
        expected = A.RandomBrightnessContrast(p=1).apply(
            levels, alpha=parameters.contrast, beta=255 * parameters.brightness
        )
        changed_image = change_brightness_contrast(bgrx, parameters)
        assert np.abs(changed_image[..., :3].astype(int) - expected[..., None]).max() <= 1


def test_an_image_whose_padding_would_not_fit_the_memory_is_refused() -> None:
    image = np.zeros((1000, 60_000, 4), np.uint8)
    with pytest.raises(DataError, match=r"60000x1000 px is too long to be rotated or rescaled: .*: crop the image"):
        PaddedSource(image).padded_image  # noqa: B018
