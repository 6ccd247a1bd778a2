"""A file's format is recognized by its content."""

import gzip
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest

from kp_ray.file_types import describe_content
from tests.helpers.images import IMAGE_FILES


def zip_file(*names: str) -> bytes:
    """Make a ZIP archive of empty files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return buffer.getvalue()


def tar_file() -> bytes:
    """Make a tar archive of one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("labels.csv"))
    return buffer.getvalue()


def numpy_file() -> bytes:
    """Make a NumPy file of one array."""
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "description"),
    [
        (b"", "an empty file"),
        (zip_file("labels.csv"), "a ZIP archive"),
        (zip_file("[Content_Types].xml", "xl/workbook.xml"), "an Excel or Office file"),
        (tar_file(), "a tar archive"),
        (gzip.compress(b"image,nose_x,nose_y\n", mtime=0), "a gzip archive"),
        (numpy_file(), "a NumPy file"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"PAR1\x15\x04", "a Parquet file"),
        ("image,nose_x\n".encode("utf-16"), "UTF-16 text"),
        ("image,nose_x\n".encode("utf-32"), "UTF-32 text"),
        ("image,nose_x\n".encode("utf-16-le"), "UTF-16 text without a byte order mark"),
        ("image,nose_x\n".encode("utf-16-be"), "UTF-16 text without a byte order mark"),
        (b"<?xml version='1.0'?><annotations><version>1.1</version></annotations>", "a CVAT XML file"),
        (b"<annotation><folder>x</folder></annotation>", "a Pascal VOC XML file"),
        (b"<?xml version='1.0'?><data/>", "an XML file"),
        (json.dumps({"images": []}).encode(), "JSON"),
        (b"\xef\xbb\xbf [1]", "JSON"),
        (b"BM_nose,image\n", "text"),
        ("이미지,코_x\n".encode("cp949"), "text"),
        (bytes(range(256)), "binary data of an unknown format"),
    ],
)
def test_the_format_of_a_file_is_recognized_by_its_content(content: bytes, description: str) -> None:
    assert describe_content(content) == description


@pytest.mark.parametrize("kind", [kind for kind in IMAGE_FILES if "PPM" not in kind])
def test_an_image_is_described_by_its_format(kind: str) -> None:
    # Two formats have other names in IMAGE_FILES: "a JPEG 2000 image" is JPEG2000, and "a JPEG image" can be an MPO.
    description = describe_content(IMAGE_FILES[kind]).replace(" 2000", "2000").replace("JPEG image", "JPEG MPO image")
    assert set(kind.split()) & set(description.split())
