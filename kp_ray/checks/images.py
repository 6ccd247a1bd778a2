"""Find image files that are missing, damaged, or of a size or format that is probably a mistake."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from kp_ray.checks.findings import Finding, error, list_names, warning
from kp_ray.data.annotations import Annotations
from kp_ray.data.image_files import require_any_image
from kp_ray.data.names import NameMatch, describe_matches, match_names
from kp_ray.errors import DataError, StorageError
from kp_ray.images import is_image_file, probe, require_decodable, require_supported
from kp_ray.storage import file_sizes, join, read_bytes

Size = tuple[int, int]
"""(width, height) in pixels of the upright image: after its EXIF orientation is applied."""


def check_images(
    annotations: Annotations,
    images_dir: str,
    *,
    progress: Callable[[int], None] | None = None,
    num_threads: int = 8,
) -> tuple[list[Finding], dict[str, Size]]:
    """Read every labelled image and find files that cannot be used or are probably a mistake.

    Errors: missing, misnamed (a file has nearly this name), names (one finding about all misnamed images, which counts
    them per difference, e.g. another suffix), empty (no bytes), unreadable, truncated. Warnings: not_jpeg (the name
    ends in .jpg, the content is of another format), size (nine in ten images share a size and this image has another),
    unlabelled_files (the folder holds images without labels; one finding for all of them).

    Args:
        annotations: N images.
        images_dir: a local folder or URL.
        progress: called in the caller's thread after each image with the number of inspected images.
        num_threads: number of images that are read at the same time.

    Returns:
        Two results: the findings in the order of the annotations, with the findings about the folder last; and the size
        of each image that can be read, by name.

    Raises:
        DataError: no labelled image has a file.
        StorageError: the folder does not exist or cannot be listed.
    """
    files = set(file_sizes(images_dir))
    matches = match_names(annotations.images, files)
    if not matches:
        require_any_image(annotations.images, files, images_dir)

    def inspect(image: str) -> tuple[Finding | None, Size | None]:
        if image in files:
            return _inspect_file(image, join(images_dir, image))
        if image in matches:
            match = matches[image]
            message = f"the file is named {match.file}, which differs in {match.difference}"
            return error("misnamed", image, message, "rename the file or the label"), None
        message = f"no such file in {images_dir}"
        return error("missing", image, message, "add it; without it the image is left out"), None

    findings = [*_names_finding(annotations.images, files, matches)]
    sizes: dict[str, Size] = {}
    with ThreadPoolExecutor(num_threads) as pool:
        results = zip(annotations.images, pool.map(inspect, annotations.images), strict=True)
        for num_inspected, (image, (finding, size)) in enumerate(results, start=1):
            if finding:
                findings.append(finding)
            if size:
                sizes[image] = size
            if progress:
                progress(num_inspected)
    findings += _unusual_sizes(sizes)
    matched_files = [match.file for match in matches.values()]
    findings += _unlabelled_files(files, [*annotations.images, *matched_files], images_dir)
    position = {image: row for row, image in enumerate([*annotations.images, ""])}
    return sorted(findings, key=lambda finding: position[finding.image]), sizes


def _names_finding(
    images: Sequence[str], files: Collection[str], matches: Mapping[str, NameMatch]
) -> Iterator[Finding]:
    """Report the images without a file whose names nearly match a file, as one finding with a count per difference."""
    if matches:
        num_missing = len(set(images).difference(files))
        message = f"{num_missing} labelled images have no file: {describe_matches(matches, num_missing)}"
        yield error("names", "", message, "write the names of the files in the labels, or rename the files")


def _inspect_file(image: str, path: str) -> tuple[Finding | None, Size | None]:
    """Read and decode one image file; return a finding about it, if any, and its size if it can be read."""
    fix = "replace the file, or save it again with another program if it looks whole; otherwise it is left out"
    try:
        content = read_bytes(path)
    except StorageError as failure:
        return error("unreadable", image, str(failure), fix), None
    if not content:
        return error("empty", image, "the file has no bytes", fix), None
    try:
        info = probe(content)
    except DataError as failure:
        return error("unreadable", image, f"the file {failure}", "otherwise the image is left out"), None
    try:
        require_supported(content)
    except DataError as failure:
        return error("unreadable", image, f"the image cannot be used: {failure}", "otherwise it is left out"), None
    try:
        require_decodable(content)
    except (DataError, MemoryError) as failure:  # a damaged header can ask for any amount of memory
        return error("truncated", image, f"the image is truncated or damaged: {failure}", fix), None
    size = info.width, info.height
    if image.lower().endswith((".jpg", ".jpeg")) and info.format not in ("JPEG", "MPO"):
        message = f"its content is {info.format}, not JPEG"
        return warning("not_jpeg", image, message, "kp_ray reads it; rename it for other programs"), size
    return None, size


def _unusual_sizes(sizes: Mapping[str, Size]) -> Iterator[Finding]:
    """Find the images whose size differs from the size that at least nine in ten images share, if there is one."""
    if not sizes:
        return
    usual_size, count = Counter(sizes.values()).most_common(1)[0]
    if count < 0.9 * len(sizes):
        return
    for image, size in sizes.items():
        if size != usual_size:
            message = f"is {size[0]}x{size[1]} px; most images are {usual_size[0]}x{usual_size[1]} px"
            yield warning("size", image, message, "check whether it belongs to this data set")


def _unlabelled_files(files: Iterable[str], labelled_names: Iterable[str], images_dir: str) -> Iterator[Finding]:
    """Report the image files in the folder that are not in `labelled_names`, as one finding."""
    names = set(labelled_names)
    unlabelled_files = sorted(file for file in files if is_image_file(file) and file not in names)
    if unlabelled_files:
        message = f"{len(unlabelled_files)} images in {images_dir} have no labels: {list_names(unlabelled_files, 3)}"
        yield warning("unlabelled_files", "", message, "label them, or ignore this: they are not used")
