"""Findings about image files."""

import io

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from PIL import Image

from kp_ray.checks.images import _inspect_file, check_images
from kp_ray.data.load import load_annotations
from kp_ray.errors import StorageError
from tests.helpers.data import SHARED
from tests.helpers.labels import NUM_KEYPOINTS, make_clips, make_labels


def make_image(width: int = 64, height: int = 48) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def encode_png(width: int = 64, height: int = 48) -> bytes:
    out = io.BytesIO()
    Image.fromarray(make_image(width, height)).save(out, "PNG")
    return out.getvalue()


def encode_rotated_jpeg() -> bytes:
    """Encode an image of 48x64 px whose EXIF orientation makes it 64x48."""
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(make_image(48, 64)).save(out, "JPEG", exif=exif)
    return out.getvalue()


def make_labels_for_names(names: list[str]):
    """Make labels of images with these names."""
    return make_labels(names, np.ones((len(names), NUM_KEYPOINTS, 2)))


def test_every_kind_of_bad_file_is_found(tmp_path):
    jpeg = simplejpeg.encode_jpeg(make_image())
    files = {
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "tail.jpg": jpeg[:-2],
        "empty.jpg": b"",
        "text.jpg": b"<html>not found",
        "png.jpg": encode_png(),
        "Upper.JPG": jpeg,
        "cut.png": encode_png()[:-500],
        "a/fine.png": encode_png(),
        "rotated.jpg": encode_rotated_jpeg(),
        "big.jpg": simplejpeg.encode_jpeg(make_image(128, 96)),
        "extra.jpg": jpeg,
        "notes.txt": b"x",
    }
    files |= {f"good{number:02d}.jpg": jpeg for number in range(30)}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    names = [*sorted(set(files) - {"Upper.JPG", "extra.jpg", "notes.txt"}), "upper.jpg", "gone.jpg"]
    reports: list[int] = []
    findings, sizes = check_images(make_labels_for_names(names), str(tmp_path), progress=reports.append)
    assert {(finding.image, finding.kind, finding.level) for finding in findings} == {
        ("cut.jpg", "truncated", "error"),
        ("tail.jpg", "truncated", "error"),
        ("empty.jpg", "empty", "error"),
        ("text.jpg", "unreadable", "error"),
        ("png.jpg", "not_jpeg", "warning"),
        ("cut.png", "truncated", "error"),
        ("upper.jpg", "misnamed", "error"),
        ("", "names", "error"),
        ("gone.jpg", "missing", "error"),
        ("big.jpg", "size", "warning"),
        ("", "unlabelled_files", "warning"),
    }
    assert sizes["a/fine.png"] == sizes["rotated.jpg"] == sizes["good00.jpg"] == (64, 48)
    assert sizes["big.jpg"] == (128, 96)
    assert "cut.jpg" not in sizes
    assert reports == list(range(1, len(names) + 1))
    assert all("\n" not in finding.message + finding.fix for finding in findings)


def test_images_without_a_common_size_cause_no_size_findings(tmp_path):
    names = [f"{number}.jpg" for number in range(4)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(simplejpeg.encode_jpeg(make_image(32 + 8 * number, 32)))
    findings, sizes = check_images(make_labels_for_names(names), str(tmp_path))
    assert findings == []
    assert sizes["3.jpg"] == (56, 32)


def test_names_that_nearly_match_are_counted_by_their_difference(tmp_path):
    jpeg = simplejpeg.encode_jpeg(make_image())
    for name in ("a b.jpg", "c.jpg", "d.jpg", "e.jpg"):
        (tmp_path / name).write_bytes(jpeg)
    findings, _ = check_images(
        make_labels_for_names(["a%20b.jpg", "c.png", "d.png", "e.jpg", "gone.jpg"]), str(tmp_path)
    )
    (summary,) = (finding for finding in findings if finding.kind == "names")
    assert "4 labelled images have no file: 2 of 4 differ from a file only in the suffix" in summary.message
    assert "1 of 4 differ from a file only in percent-encoding (name: a%20b.jpg, file: a b.jpg)" in summary.message
    assert {finding.image for finding in findings if finding.kind == "misnamed"} == {"a%20b.jpg", "c.png", "d.png"}
    assert "unlabelled_files" not in {finding.kind for finding in findings}


def test_the_finding_about_an_unsupported_format_names_the_format(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic")
    (finding,) = check_images(make_labels_for_names(["a.jpg"]), str(tmp_path))[0]
    assert (finding.kind, "a HEIC image" in finding.message) == ("unreadable", True)


def test_an_image_that_is_too_large_or_has_an_unsupported_mode_is_not_called_truncated(tmp_path, monkeypatch):
    monkeypatch.setattr("kp_ray.images.MAX_PIXELS", 64 * 48)
    Image.new("F", (64, 48)).save(tmp_path / "a.tiff")
    Image.new("1", (64, 49)).save(tmp_path / "b.png")
    findings = {image: _inspect_file(image, str(tmp_path / image))[0] for image in ("a.tiff", "b.png")}
    assert {finding.kind for finding in findings.values()} == {"unreadable"}
    assert "mode F is not supported: convert" in findings["a.tiff"].message
    assert "64x49 px is more than 3072 pixels: resize" in findings["b.png"].message


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(StorageError, match="none: there is no such folder"):
        check_images(make_clips(), str(tmp_path / "none"))
    (tmp_path / "labels.csv").touch()
    with pytest.raises(StorageError, match="is a file: give its folder"):
        check_images(make_clips(), str(tmp_path / "labels.csv"))


@pytest.mark.skipif(not (SHARED / "lsp").is_dir(), reason=f"the images of LSP are not in {SHARED}")
def test_the_images_of_a_real_data_set_have_no_findings():
    labels = load_annotations(str(SHARED / "lsp" / "train_df.csv"))
    findings, sizes = check_images(labels, str(SHARED / "lsp" / "images"))
    assert findings == []
    assert len(sizes) == len(set(labels.scenes)) == 400
