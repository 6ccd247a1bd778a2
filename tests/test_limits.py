"""Limits that kp_ray attributes to other software, tested against the installed version of that software."""

import io
import warnings

import cv2
import numpy as np
import optuna
import PIL.Image
import pyarrow as pa
import pytest
import simplejpeg
import torch
from pydantic import TypeAdapter, ValidationError

from kp_ray.augmentation.recipes import RECIPES
from kp_ray.augmentation.sampling import sample_parameters
from kp_ray.augmentation.warp import PaddedSource
from kp_ray.checks.dataset import _SMALL_BODY_PX
from kp_ray.config.load import build_config
from kp_ray.config.types import Seed
from kp_ray.data.annotations import parse_name
from kp_ray.errors import DataError
from kp_ray.images import MAX_PIXELS, MAX_SIDE, encode, probe
from kp_ray.keypoints import DACON24
from kp_ray.models.presets import build_cfg
from kp_ray.store.manifest import row_schema

LARGEST_SEED = 2**32 - 1


class TestJpegSides:
    """`MAX_SIDE` is libjpeg's own limit, not the 65535 of the JPEG standard."""

    @pytest.mark.parametrize("shape", [(8, MAX_SIDE, 3), (MAX_SIDE, 8, 3)])
    def test_the_longest_side_is_written_and_read(self, shape: tuple[int, ...]) -> None:
        content = encode(np.zeros(shape, np.uint8), 90)
        assert simplejpeg.decode_jpeg(content).shape == shape
        with PIL.Image.open(io.BytesIO(content)) as image:
            image.load()
        info = probe(content)
        assert (info.height, info.width) == shape[:2]

    @pytest.mark.parametrize("side", [MAX_SIDE + 1, 65535])
    def test_libjpeg_refuses_a_longer_side_and_so_does_kp_ray(self, side: int) -> None:
        image = np.zeros((8, side, 3), np.uint8)
        with pytest.raises(ValueError, match=str(MAX_SIDE)):
            simplejpeg.encode_jpeg(image, 90, colorspace="BGR", colorsubsampling="420")
        with pytest.raises(DataError, match=str(MAX_SIDE)):
            encode(image, 90)


@pytest.mark.parametrize("recipe", ["Rotate45", "Rescale_Rotate45_CenterCrop"])
def test_sources_wider_than_32767_px_are_rotated_and_rescaled(recipe: str) -> None:
    """OpenCV 4 refused such images in `warpAffine`; version 5 and the tiles of `PaddedSource` do not."""
    width, height = 40_000, 64
    image = np.zeros((height, width, 4), np.uint8)
    image[:, width // 2 :] = 200
    parameters = sample_parameters(RECIPES[recipe], width, height, 3, scale_with_frame=True)
    window = PaddedSource(image).window(parameters)
    assert window.shape == (parameters.height, parameters.width, 4)
    inverse = np.linalg.inv(np.vstack([parameters.affine, [0, 0, 1]]))[:2]
    for x in (parameters.width // 2 - 2000, parameters.width // 2 + 2000):
        y = parameters.height // 2
        source_x = (inverse @ [x, y, 1])[0]
        if 0 < source_x < width and abs(source_x - width / 2) > 100:
            assert window[y, x, 0] == image[0, round(source_x), 0]
    assert cv2.warpAffine(image, np.eye(2, 3), (width, height)).shape == image.shape


def test_pillow_opens_the_largest_image_that_kp_ray_decodes() -> None:
    """Pillow refuses images of more than twice `MAX_IMAGE_PIXELS`; below that it only warns."""
    assert PIL.Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS < 2 * PIL.Image.MAX_IMAGE_PIXELS
    out = io.BytesIO()
    PIL.Image.new("1", (MAX_PIXELS // 5000, 5000)).save(out, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        assert probe(out.getvalue()).width == MAX_PIXELS // 5000


class TestSeeds:
    """A seed is in the range that NumPy, torch and Optuna all accept."""

    @pytest.mark.parametrize("seed", [0, LARGEST_SEED])
    def test_both_ends_are_accepted(self, seed: int) -> None:
        assert TypeAdapter(Seed).validate_python(seed) == seed
        np.random.default_rng(seed)
        torch.Generator().manual_seed(seed)
        optuna.samplers.TPESampler(seed=seed)

    def test_the_next_seed_is_refused_by_optuna_and_by_kp_ray(self) -> None:
        with pytest.raises(ValueError, match="Seed must be between"):
            optuna.samplers.TPESampler(seed=LARGEST_SEED + 1)._rng.rng  # noqa: B018  (Optuna checks the seed when it first uses it)
        with pytest.raises(ValidationError):
            TypeAdapter(Seed).validate_python(LARGEST_SEED + 1)


def test_the_longest_frame_number_fits_its_column_and_a_longer_one_is_no_frame_number() -> None:
    frame = parse_name(f"scene_A-{'9' * 18}.jpg")[2]
    assert frame == 10**18 - 1
    assert pa.array([frame], row_schema(24).field("frame").type).to_pylist() == [frame]
    assert parse_name(f"scene_A-{'9' * 19}.jpg") == (f"scene_A-{'9' * 19}", "", -1)


def test_a_body_counts_as_small_below_half_of_detectron2s_smallest_anchor() -> None:
    for preset in ("r50", "x101"):
        cfg = build_cfg(build_config({"model": {"preset": preset}}), DACON24, "cpu")
        assert min(size for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES for size in sizes) == 2 * _SMALL_BODY_PX
