"""Read labels from a CSV or a COCO JSON, with corrections applied."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from kp_ray.config.schema import Config, SkeletonConfig
from kp_ray.data.annotations import Annotations, parse_name
from kp_ray.data.coco_format import read_coco
from kp_ray.data.corrections import apply_corrections
from kp_ray.data.csv_format import read_csv
from kp_ray.errors import DataError, StorageError, one_line
from kp_ray.keypoints import skeleton_for
from kp_ray.storage import filesystem

FileVersion = tuple[int | None, int | None]
"""Size in bytes and modification time in ns of a file; None where the storage knows none."""


def load_labels(config: Config) -> Annotations:
    """Read the labels that a config names: annotations, corrections, skeleton.

    The last result is kept and returned again while settings and files stay the same (by size and modification time),
    so that the stages of one run read a large file once. It is shared: its arrays are read-only.

    Raises:
        ConfigError: data.annotations is not set.
        DataError, StorageError: as `load_annotations`.
    """
    path, corrections = config.require_input("annotations"), config.data.corrections
    versions = tuple(_file_version(name) for name in (path, corrections) if name)
    return _load_labels(path, corrections, config.skeleton, versions)


@lru_cache(maxsize=1)
def _load_labels(
    path: str, corrections: str | None, skeleton: SkeletonConfig, versions: tuple[FileVersion, ...]
) -> Annotations:
    """Read labels; `versions` is only part of the cache's key."""
    labels = load_annotations(path, corrections=corrections, flip_pairs=skeleton.flip_pairs, sigmas=skeleton.sigmas)
    labels.keypoints.setflags(write=False)
    return labels


def _file_version(path: str) -> FileVersion:
    fs, inner = filesystem(path)
    try:
        info = fs.get_file_info(inner)
    except OSError as error:
        raise StorageError(f"{path}: cannot be reached: {one_line(error)}") from error
    return info.size, info.mtime_ns


def load_annotations(
    path: str,
    *,
    corrections: str | None = None,
    flip_pairs: Sequence[tuple[str, str]] | None = None,
    sigmas: Sequence[float] | None = None,
) -> Annotations:
    """The labels of a COCO keypoints JSON (`.json`) or of a native wide CSV (anything else).

    The CSV has `image`, `<name>_x`, `<name>_y` per keypoint in any order, and may have `group`, which replaces the
    scene. The JSON may have `group` in an entry of `images`. An image without an annotation in the JSON is a row
    without labels.

    Args:
        path: a local path or URL.
        corrections: CSV of image, action (drop | point), keypoint, x, y; empty x and y remove the label.
        flip_pairs, sigmas: of a skeleton other than the competition's 24 points.

    Raises:
        DataError: one line with the file, the row (its line in the file, the header being 1) or image, and the fix.
    """
    read = read_coco if path.lower().endswith(".json") else read_csv
    names, images, keypoints, groups = read(path)
    repeated = [image for image, count in Counter(images).items() if count > 1]
    if repeated:
        raise DataError(
            f"{path}: the image name {repeated[0]} stands there {Counter(images)[repeated[0]]} times: keep one"
        )
    if not images:
        raise DataError(f"{path}: holds no labelled image: a header alone is not enough")
    try:
        skeleton = skeleton_for(names, flip_pairs, sigmas)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    parsed = [parse_name(image) for image in images]
    labels = Annotations(
        skeleton=skeleton,
        images=tuple(images),
        keypoints=keypoints if names == [*skeleton.names] else keypoints[:, [*map(names.index, skeleton.names)]],
        scenes=tuple(group or scene for group, (scene, _, _) in zip(groups, parsed, strict=True)),
        cameras=tuple(camera for _, camera, _ in parsed),
        frames=tuple(frame for _, _, frame in parsed),
    )
    return apply_corrections(labels, corrections) if corrections else labels
