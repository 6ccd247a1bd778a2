"""Look for mistakes in the picture files."""

import io
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import simplejpeg
from PIL import ExifTags, Image

from kp_ray.checks.findings import Finding, list_names, warning
from kp_ray.data.annotations import Annotations
from kp_ray.errors import KpRayError, one_line
from kp_ray.images import FORMATS, is_picture
from kp_ray.storage import file_sizes, join, read_bytes

_TURNED = (5, 6, 7, 8)


def check_images(
    annotations: Annotations,
    images_dir: str,
    *,
    progress: Callable[[int], None] | None = None,
    num_threads: int = 8,
) -> tuple[list[Finding], dict[str, tuple[int, int]]]:
    """What is wrong with the picture files, in the labels' order, and the (width, height) of those that can be read.

    Errors: missing, misnamed (only upper and lower case differ), empty (no bytes), unreadable, truncated. Warnings:
    not_jpeg (a picture of another kind than its name says), size (where nine in ten share one size, the others),
    unlabelled_files (pictures in the folder without labels, once). A size is that of the upright picture, after EXIF.

    Args:
        annotations: N images.
        images_dir: a local folder or URL.
        progress: called with 1 as each picture is done, from the calling thread.
        num_threads: pictures read at once.

    Raises:
        DataError: the folder is not there.
    """
    present = set(file_sizes(images_dir))
    by_lower = {name.lower(): name for name in present}

    def look(image: str) -> tuple[Finding | None, tuple[int, int] | None]:
        if image in present:
            return _inspect_image(image, join(images_dir, image))
        close = by_lower.get(image.lower())
        if close:
            return Finding(
                "error", "misnamed", image, f"the file is named {close}", "rename the file or the label"
            ), None
        return Finding("error", "missing", image, f"no such file in {images_dir}", "add it, or drop the row"), None

    found: list[Finding] = []
    sizes: dict[str, tuple[int, int]] = {}
    with ThreadPoolExecutor(num_threads) as pool:
        for image, (finding, size) in zip(annotations.images, pool.map(look, annotations.images), strict=True):
            if finding:
                found.append(finding)
            if size:
                sizes[image] = size
            if progress:
                progress(1)
    most, count = Counter(sizes.values()).most_common(1)[0] if sizes else ((0, 0), 0)
    if count >= 0.9 * len(sizes):
        for image, size in sizes.items():
            if size != most:
                message = f"is {size[0]}x{size[1]}; most are {most[0]}x{most[1]}"
                found.append(warning("size", image, message, "see whether it belongs here; recipes scale with it"))
    labelled = set(annotations.images)
    extra = sorted(name for name in present if is_picture(name) and name not in labelled)
    if extra:
        message = f"{len(extra)} pictures in {images_dir} have no labels: {list_names(extra, 3)}"
        found.append(warning("unlabelled_files", "", message, "label them, or leave them: they are not used"))
    place = {image: row for row, image in enumerate([*annotations.images, ""])}
    return sorted(found, key=lambda finding: place[finding.image]), sizes


def _inspect_image(image: str, path: str) -> tuple[Finding | None, tuple[int, int] | None]:
    """What is wrong with one picture file, and its upright (width, height)."""
    fix = "replace the file, or drop the row"
    try:
        content = read_bytes(path)
    except KpRayError as error:
        return Finding("error", "unreadable", image, str(error), fix), None
    if not content:
        return Finding("error", "empty", image, "the file has no bytes", fix), None
    try:
        picture = Image.open(io.BytesIO(content), formats=FORMATS)
        kind, (width, height) = picture.format or "", picture.size
    except Exception:  # Pillow's readers raise many kinds on foreign bytes
        return Finding("error", "unreadable", image, "the file is not a picture", fix), None
    try:
        if kind == "JPEG" and picture.mode in ("RGB", "L"):
            simplejpeg.decode_jpeg(content, "GRAY", min_height=1, min_width=1, strict=True)  # at an eighth of the size
        else:
            picture.load()
        turned = picture.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except Exception as error:
        message = f"the picture is truncated or damaged: {one_line(error)}"
        return Finding("error", "truncated", image, message, fix), None
    size = (height, width) if turned else (width, height)
    if image.lower().endswith((".jpg", ".jpeg")) and kind not in ("JPEG", "MPO"):
        return warning("not_jpeg", image, f"the file is a {kind} picture, not a JPEG", "save it as JPEG"), size
    return None, size
