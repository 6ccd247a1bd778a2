"""Test reading, decoding and resizing of images, without Ray."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from detectron2.data.transforms import ResizeShortestEdge

import kp_ray.images
from kp_ray.config.schema import Config
from kp_ray.keypoints import DACON24
from kp_ray.models.inputs import to_dataset_dict
from kp_ray.models.weights import load_member
from kp_ray.prediction.decode import InputSize, decode_batch, decoded_schema, refs_table
from kp_ray.prediction.images import ImageRef
from tests.helpers.linked_runs import first_image
from tests.helpers.processes import run_command

SIZES = [InputSize(64, 114), InputSize(144, 256)]


def decode_files(*paths: Path) -> list[dict[str, Any]]:
    """Decode image files to the rows of a batch."""
    refs = [ImageRef(path.name, str(path), None, "v1") for path in paths]
    return decode_batch(refs_table(refs), SIZES).to_pylist()


def read_pixels(row: dict[str, Any], size: InputSize) -> np.ndarray:
    """Return the pixels (3, H, W) of a decoded row."""
    width, height = size.fit(row["width"], row["height"])
    return np.frombuffer(row[size.column], dtype=np.uint8).reshape(3, height, width)


def test_every_kind_of_image_is_decoded_upright_and_a_damaged_image_has_a_reason(
    run_with_members: Config, tmp_path: Path
) -> None:
    content = first_image(run_with_members).read_bytes()
    image = PIL.Image.open(io.BytesIO(content))
    rotated = image.transpose(PIL.Image.Transpose.ROTATE_90)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # viewers rotate the image by 90 degrees clockwise
    image.save(tmp_path / "plain.png")
    rotated.save(tmp_path / "rotated.jpg", quality=95, exif=exif)
    image.convert("L").save(tmp_path / "grey.jpg", quality=95)
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "whole.jpg").write_bytes(content)
    names = ["whole.jpg", "plain.png", "rotated.jpg", "grey.jpg", "cut.jpg", "missing.jpg"]
    rows = decode_files(*(tmp_path / name for name in names))
    assert [row["image"] for row in rows] == names
    assert [(row["width"], row["height"]) for row in rows] == [(320, 180)] * 4 + [(0, 0)] * 2
    assert [row["reason"] for row in rows[:4]] == [""] * 4
    assert "decoded" in rows[4]["reason"]
    assert "no such file" in rows[5]["reason"]
    assert all(row[size.column] is None for row in rows[4:] for size in SIZES)
    expected, *same_image = (read_pixels(row, SIZES[0]).astype(float) for row in rows[:3])
    for pixels in same_image:
        assert np.abs(pixels - expected).mean() < 4, "every file holds the same upright image"


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_of_too_many_pixels_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"large.{suffix}"
    PIL.Image.new("RGB", (40, 30)).save(path)
    monkeypatch.setattr(kp_ray.images, "MAX_PIXELS", 1200)
    assert decode_files(path)[0]["reason"] == ""
    monkeypatch.setattr(kp_ray.images, "MAX_PIXELS", 1199)
    assert "40x30 px is more than 1199 pixels" in decode_files(path)[0]["reason"]


def test_the_pixels_equal_the_input_of_training(run_with_members: Config) -> None:
    """Training, evaluation and prediction must see the same pixels."""
    path = first_image(run_with_members)
    (row,) = decode_files(path)
    _, cfg = load_member(run_with_members.member_dir("a"), "cpu")
    expected = to_dataset_dict({"image": path.read_bytes(), "width": 320, "height": 180}, cfg, DACON24, rng=None)
    assert InputSize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == SIZES[0]
    np.testing.assert_array_equal(read_pixels(row, SIZES[0]), expected["image"].numpy())


def test_images_are_resized_to_the_size_that_detectron2_computes() -> None:
    rng = np.random.default_rng(0)
    for width, height, short_edge, max_long_edge in rng.integers(1, 3000, (5000, 4)).tolist():
        expected = ResizeShortestEdge.get_output_shape(height, width, short_edge, max_long_edge)
        assert InputSize(short_edge, max_long_edge).fit(width, height) == tuple(max(1, side) for side in expected[::-1])


def test_a_scaled_view_has_a_scaled_size_and_its_own_column() -> None:
    assert InputSize(800, 1333).scale(0.8) == (640, 1066)
    assert InputSize(800, 1333).scale(0.8).column == "pixels_640x1066"


def test_a_decoded_batch_has_no_pickled_columns(run_with_members: Config, tmp_path: Path) -> None:
    """Ray Data pickles nested lists into columns of an extension type."""
    ref = ImageRef("x.jpg", str(first_image(run_with_members)), None, "v1")
    batch = decode_batch(refs_table([ref]), SIZES)
    assert batch.schema.equals(decoded_schema(SIZES))
    assert not any(isinstance(field.type, pa.BaseExtensionType) for field in batch.schema)


def test_decoding_does_not_import_torch() -> None:
    code = "import sys, kp_ray.prediction.decode; sys.exit('torch' in sys.modules)"
    assert run_command(sys.executable, "-c", code, timeout_s=120).returncode == 0


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_an_image_of_the_input_size_is_not_resized(factor: float) -> None:
    size = InputSize(144, 256).scale(factor)
    assert size.fit(size.max_long_edge, size.short_edge) == (size.max_long_edge, size.short_edge)
