"""Image files of every format are probed, decoded and encoded, or refused."""

from pathlib import Path
from struct import pack
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from kp_ray.errors import DataError, StorageError
from kp_ray.images import (
    MAX_PIXELS,
    MAX_SIDE,
    decode,
    decode_preview,
    decode_resized,
    encode,
    encode_preview,
    list_images,
    probe,
    require_decodable,
)
from tests.helpers.data import SHARED
from tests.helpers.images import IMAGE_FILES, UNCHANGED_KINDS, decode_upright_rgb, encode_with_pillow

pytestmark = [
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),  # Pillow warns about damaged files
]


@pytest.mark.parametrize("kind", IMAGE_FILES)
def test_decode_returns_the_upright_image_and_whether_its_bytes_can_be_stored(kind: str) -> None:
    expected = decode_upright_rgb(IMAGE_FILES[kind])
    bgrx, is_storable = decode(IMAGE_FILES[kind])
    assert bgrx.shape == (*expected.shape[:2], 4)
    np.testing.assert_allclose(bgrx[..., 2::-1].astype(int), expected, atol=2)
    assert is_storable is (kind in UNCHANGED_KINDS)


def test_decode_keeps_the_upper_eight_of_sixteen_grey_bits() -> None:
    levels = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    bgrx, is_storable = decode(encode_with_pillow(Image.fromarray(levels), "PNG"))
    assert not is_storable
    np.testing.assert_array_equal(bgrx[..., :3], np.repeat((levels >> 8)[..., None], 3, axis=2))


def png_with_false_size(width: int, height: int) -> bytes:
    """Return a small PNG whose header claims another size."""
    header = b"IHDR" + pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + pack(">I", 13) + header + pack(">I", crc32(header)) + IMAGE_FILES["PNG"][33:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"image,nose_x,nose_y\n", r"is not an image .*\(found text\): save it as JPEG or PNG"),
        (b"\xff\xd8\xff", "is not an image .*: a JPEG image with a damaged header: replace the file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", r"found a HEIC image\)"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", r"found a video \(MP4 or QuickTime\)\)"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"found an SVG drawing\)"),
        (b"<!DOCTYPE html><title>404</title>", r"found a web page\)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "found a Git LFS pointer"),
        (encode_with_pillow(Image.new("RGB", (16, 16)), "ICO"), r"found an icon \(ICO\)"),
        (IMAGE_FILES["JPEG"][: len(IMAGE_FILES["JPEG"]) // 2], "cannot be decoded: "),
        (IMAGE_FILES["JPEG"][:-40], "cannot be decoded: "),
        (IMAGE_FILES["CMYK JPEG"][: len(IMAGE_FILES["CMYK JPEG"]) // 2], "cannot be decoded: "),
        (IMAGE_FILES["PNG"][: len(IMAGE_FILES["PNG"]) // 2], "cannot be decoded: "),
        (IMAGE_FILES["WEBP"][: len(IMAGE_FILES["WEBP"]) // 2], "cannot be decoded: "),
        (png_with_false_size(MAX_PIXELS // 10000 + 1, 10000), f"10001x10000 px is more than {MAX_PIXELS} pixels"),
        (png_with_false_size(100_000, 100_000), f"has more than {MAX_PIXELS} pixels: resize the image"),
        (encode_with_pillow(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "mode F is not supported"),
    ],
)
def test_decode_and_require_decodable_refuse_unusable_bytes_with_the_reason(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        decode(content)
    assert " at 0x" not in str(error.value), "a message must not quote the address of a Python object"
    with pytest.raises(DataError, match=message):
        require_decodable(content)


@given(st.sampled_from(sorted(IMAGE_FILES)), st.data())
@settings(max_examples=150)
def test_damaged_bytes_are_decoded_or_refused_by_a_data_error(kind: str, data: st.DataObject) -> None:
    content = bytearray(IMAGE_FILES[kind])
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    try:
        bgrx, _ = decode(bytes(content))
    except DataError:
        return
    assert bgrx.dtype == np.uint8
    assert bgrx.shape[2] == 4


@pytest.mark.parametrize("kind", IMAGE_FILES)
def test_probe_returns_the_upright_size_and_whether_the_file_is_an_upright_jpeg(kind: str) -> None:
    info = probe(IMAGE_FILES[kind])
    height, width = decode_upright_rgb(IMAGE_FILES[kind]).shape[:2]
    assert (info.width, info.height) == (width, height)
    assert info.format in kind
    assert info.is_upright_jpeg is (kind in {*UNCHANGED_KINDS, "MPO"})
    require_decodable(IMAGE_FILES[kind])


@pytest.mark.parametrize("file_format", ["TIFF", "JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_probe_and_decode_agree_on_the_size_in_every_orientation(file_format: str, orientation: int) -> None:
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    content = encode_with_pillow(image, file_format, exif=exif)
    info, decoded_image = probe(content), decode(content)[0]
    assert (info.height, info.width) == decoded_image.shape[:2] == ((20, 40) if orientation < 5 else (40, 20))


def test_probe_reads_only_the_header_and_require_decodable_reads_the_pixels() -> None:
    for kind in ("JPEG", "CMYK JPEG", "PNG"):
        half_file = IMAGE_FILES[kind][: len(IMAGE_FILES[kind]) // 2]
        assert (probe(half_file).width, probe(half_file).height) == (96, 64)
        with pytest.raises(DataError, match="cannot be decoded"):
            require_decodable(half_file)
    for content in (b"", b"<html>"):
        with pytest.raises(DataError):
            probe(content)


@pytest.mark.parametrize(("width", "height"), [(96, 64), (48, 32), (25, 17), (12, 8), (5, 3), (120, 80)])
def test_decoding_at_a_smaller_scale_is_close_to_resizing_the_whole_image(width: int, height: int) -> None:
    content = IMAGE_FILES["JPEG"]
    whole_image = decode(content)[0]
    resized_image = decode_resized(content, (96, 64), (width, height))
    assert resized_image.shape == (height, width, 3)
    assert np.abs(resized_image.astype(int) - decode_resized(whole_image, (96, 64), (width, height))).mean() < 3
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_resized(content[: len(content) // 2], (96, 64), (width, height))


@pytest.mark.parametrize("num_channels", [3, 4])
def test_encode_takes_bgr_and_bgrx(num_channels: int) -> None:
    image = np.full((20, 30, num_channels), (40, 90, 200, 7)[:num_channels], dtype=np.uint8)
    decoded_image, is_storable = decode(encode(image, 95))
    assert is_storable
    np.testing.assert_allclose(decoded_image[..., :3], image[..., :3], atol=4)
    with pytest.raises(DataError, match=f"{MAX_SIDE + 1}x1 px is larger than a JPEG can be"):
        encode(np.zeros((1, MAX_SIDE + 1, num_channels), np.uint8), 95)


def test_decode_preview_decodes_a_preview_and_returns_none_for_bytes_that_are_no_image() -> None:
    image = np.full((20, 30, 3), (40, 90, 200), dtype=np.uint8)
    decoded_image = decode_preview(encode_preview(image))
    assert decoded_image is not None
    np.testing.assert_allclose(decoded_image, image, atol=4)
    assert decode_preview(b"") is None
    assert decode_preview(b"not an image") is None


def test_the_images_of_a_folder_and_its_sub_folders_are_listed_sorted_for_a_path_and_a_url(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/x.jpg", "c.txt", ".hidden.jpg", "a.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert list_images(str(tmp_path)) == list_images(f"file://{tmp_path}") == ["a.webp", "a/x.jpg", "b.PNG"]
    with pytest.raises(StorageError, match="none"):
        list_images(str(tmp_path / "none"))


@pytest.mark.skipif(not (SHARED / "lsp").is_dir(), reason=f"the photographs of LSP are not in {SHARED}")
@pytest.mark.parametrize("file_format", ["AVIF", "MPO", "WEBP", "JPEG2000"])
def test_photographs_that_are_converted_to_another_format_are_read(file_format: str) -> None:
    for source in sorted((SHARED / "lsp" / "images").iterdir())[:5]:
        with Image.open(source) as photograph:
            save_options = {"save_all": True, "append_images": [photograph]} if file_format == "MPO" else {}
            content = encode_with_pillow(photograph, file_format, quality=90, **save_options)
        expected, _ = decode(source.read_bytes())
        decoded_image, is_storable = decode(content)
        assert not is_storable
        assert probe(content).format == file_format
        assert np.abs(decoded_image[..., :3].astype(int) - expected[..., :3]).mean() < 6
        require_decodable(content)
