"""Look for mistakes in the picture files."""

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kp_ray.checks.findings import Finding, list_names, warning
from kp_ray.data.annotations import Annotations
from kp_ray.errors import DataError, KpRayError
from kp_ray.images import is_picture, probe, require_whole
from kp_ray.storage import file_sizes, join, read_bytes


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
        info = probe(content)
    except DataError:
        return Finding("error", "unreadable", image, "the file is not a picture", fix), None
    try:
        require_whole(content)
    except (DataError, MemoryError) as error:  # a damaged header can ask for any amount of memory
        return Finding("error", "truncated", image, f"the picture is truncated or damaged: {error}", fix), None
    size = info.width, info.height
    if image.lower().endswith((".jpg", ".jpeg")) and info.format not in ("JPEG", "MPO"):
        return warning("not_jpeg", image, f"the file is a {info.format} picture, not a JPEG", "save it as JPEG"), size
    return None, size
