"""Recognize a file's format by its first bytes, for messages about a file of an unexpected format."""

JPEG, PNG, WEBP, BMP, GIF = "a JPEG image", "a PNG image", "a WEBP image", "a BMP image", "a GIF image"
TIFF, AVIF, JPEG2000 = "a TIFF image", "an AVIF image", "a JPEG 2000 image"
TEXT = "text"
UNKNOWN = "binary data of an unknown format"
UTF16, UTF32 = "UTF-16 text", "UTF-32 text"
UTF16_WITHOUT_BOM = "UTF-16 text without a byte order mark"

# Offset in the file, bytes at that offset, description. The first entry that matches a file describes it.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", JPEG),
    (0, b"\x89PNG\r\n\x1a\n", PNG),
    (8, b"WEBP", WEBP),
    (0, b"GIF8", GIF),
    (0, b"II*\0", TIFF),
    (0, b"MM\0*", TIFF),
    (4, b"ftypavi", AVIF),
    (4, b"jP  \r\n\x87\n", JPEG2000),
    (0, b"\xff\x4f\xff\x51", JPEG2000),
    *((4, b"ftyp" + brand, "a HEIC image") for brand in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")),
    (4, b"ftypcrx ", "a camera's raw image (CR3)"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw image (RAF)"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"8BPS", "a Photoshop image"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"DDS ", "a DDS image"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"%PDF", "a PDF"),
    (4, b"ftyp", "a video (MP4 or QuickTime)"),
    (4, b"moov", "a video (QuickTime)"),
    (8, b"AVI ", "a video (AVI)"),
    (0, b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)"),
    (30, b"[Content_Types].xml", "an Excel or Office file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"PK\x05\x06", "an empty ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel or Office file of the old format"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"\x93NUMPY", "a NumPy file"),
    (0, b"MATLAB 5.0", "a MATLAB file"),
    *((0, bytes([0x80, version]), "a Python pickle") for version in range(2, 6)),
    (0, b"version https://git-lfs", "a Git LFS pointer: the file itself was not downloaded"),
    (0, b"\xff\xfe\0\0", UTF32),
    (0, b"\0\0\xfe\xff", UTF32),
    (0, b"\xff\xfe", UTF16),
    (0, b"\xfe\xff", UTF16),
    (0, b"BM", BMP),  # text can begin with these letters too: `describe_content` checks for a zero byte
)
_MARKUP: tuple[tuple[bytes, str], ...] = (
    (b"<svg", "an SVG drawing"),
    (b"<html", "a web page"),
    (b"<!doctype html", "a web page"),
    (b"<annotations", "a CVAT XML file"),
    (b"<annotation", "a Pascal VOC XML file"),
    (b"<?xml", "an XML file"),
)
_HEAD_BYTES = 2048


def describe_content(content: bytes) -> str:
    """Describe a file's format for a message, e.g. "a ZIP archive"; only the first 2048 bytes are examined."""
    head = content[:_HEAD_BYTES]
    if not head:
        return "an empty file"
    for offset, signature, description in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature and (description != BMP or b"\0" in head):
            return description
    # In UTF-16 every second byte of Latin letters is zero; text in UTF-8 holds no zero bytes.
    if len(head) > 3 and max(head[0:64:2].count(0), head[1:64:2].count(0)) >= len(head[0:64:2]) - 1:
        return UTF16_WITHOUT_BOM
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"<":
        return next((description for tag, description in _MARKUP if tag in text.lower()), "an XML file")
    if text[:1] in (b"{", b"["):
        return "JSON"
    return UNKNOWN if b"\0" in head else TEXT
