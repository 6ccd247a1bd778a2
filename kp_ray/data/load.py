"""Read labels of any format, with corrections applied."""

import contextlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from kp_ray.config.inputs import DataConfig, SkeletonConfig
from kp_ray.config.schema import Config
from kp_ray.data.annotations import Annotations, LabelTable, check_image_name, is_inside_folder, parse_name
from kp_ray.data.coco_format import read_coco
from kp_ray.data.corrections import apply_corrections
from kp_ray.data.csv_format import read_csv
from kp_ray.data.names import describe_matches, match_names
from kp_ray.data.people import PeopleChoice, select_people
from kp_ray.data.visibility import MIN_LIKELIHOOD
from kp_ray.errors import ConfigError, DataError, StorageError, one_line
from kp_ray.keypoints import skeleton_for
from kp_ray.storage import file_sizes, filesystem

FileVersion = tuple[int | None, int | None]
"""Size in bytes and modification time in ns of a file; None if the storage does not know it."""


def load_labels(config: Config) -> Annotations:
    """Read the labels that a config names, with its corrections and skeleton.

    The last result is cached until a setting, or a file's size or modification time, changes, so that the stages of a
    run read a large file once. All callers share the result; its keypoints are read-only.

    Raises:
        ConfigError: data.annotations is not set, or no image has as many labelled points as `augment.min_visible`.
        ConfigError, DataError, StorageError: as `load_annotations`.
    """
    path, corrections = config.require_input("annotations"), config.data.corrections
    versions = tuple(file_version(name) for name in (path, corrections) if name)
    labels = _load_labels(config.data, config.skeleton, versions)
    max_labelled = int((labels.keypoints[..., 2] > 0).sum(axis=1).max())
    if max_labelled < config.augment.min_visible:
        raise ConfigError(
            f"augment.min_visible: training would skip all images of {path}, which have at most {max_labelled} "
            f"labelled points (got {config.augment.min_visible}): set it to {max_labelled} or less"
        )
    return labels


def load_truth(config: Config) -> Annotations:
    """Read the labels of the test images, `data.truth`.

    Raises:
        ConfigError: data.truth is not set.
        ConfigError, DataError, StorageError: as `load_annotations`.
    """
    return load_annotations(
        config.require_input("truth"),
        people=config.data.people,
        missing_values=config.data.missing_values,
        flip_pairs=config.skeleton.flip_pairs,
        sigmas=config.skeleton.sigmas,
        setting="data.truth",
    )


@lru_cache(maxsize=1)
def _load_labels(data: DataConfig, skeleton: SkeletonConfig, versions: tuple[FileVersion, ...]) -> Annotations:
    """Read labels; `versions` only makes the cache forget the labels when a file changes."""
    labels = load_annotations(
        str(data.annotations),
        images=data.images,
        people=data.people,
        corrections=data.corrections,
        missing_values=data.missing_values,
        flip_pairs=skeleton.flip_pairs,
        sigmas=skeleton.sigmas,
    )
    labels.keypoints.setflags(write=False)
    return labels


def file_version(path: str) -> FileVersion:
    """Return the size in bytes and the modification time in nanoseconds of a file; a changed file has another version.

    Raises:
        StorageError: the storage does not answer or denies access.
    """
    fs, inner = filesystem(path)
    try:
        info = fs.get_file_info(inner)
    except OSError as error:
        raise StorageError(f"{path}: cannot be reached: {one_line(error)}") from error
    return info.size, info.mtime_ns


def _check_names(table: LabelTable, path: str, images_dir: str | None) -> None:
    """Refuse image names that `check_image_name` refuses, and describe the files that they probably mean.

    Raises:
        DataError: a name is refused; the message has the first.
    """
    rows = [row for row, image in enumerate(table.images) if not is_inside_folder(image) or image != image.strip()]
    if not rows:
        return
    try:
        check_image_name(table.images[rows[0]], table.describe_place(rows[0], path))
    except DataError as error:
        files: dict[str, int] = {}
        with contextlib.suppress(StorageError):
            files = file_sizes(images_dir) if images_dir else {}
        names = [table.images[row] for row in rows]
        hint = describe_matches(match_names(names, files), len(set(names)))
        raise DataError(f"{error} ({hint})" if hint else str(error)) from error


def load_annotations(
    path: str,
    *,
    images: str | None = None,
    people: PeopleChoice = "error",
    corrections: str | None = None,
    missing_values: Sequence[tuple[float, float]] = (),
    flip_pairs: Sequence[tuple[str, str]] | None = None,
    sigmas: Sequence[float] | None = None,
    setting: str = "data.annotations",
) -> Annotations:
    """Read labels from a COCO keypoints JSON (`.json`), or a native or DeepLabCut CSV (any other name).

    A native CSV has the columns `image` and, per keypoint, `<name>_x` and `<name>_y`, in any order. A column `group`,
    or in the JSON a key `group` of an entry of `images`, replaces the scene in the image name. An image that has no
    annotation in the JSON is an image without labelled points.

    Args:
        path: a local path or URL.
        images: folder of the images, which helps to explain a wrong name; None if it is unknown.
        people: choice among several people in an image, see `select_people`.
        corrections: a CSV for `apply_corrections`; None: the labels are used as they are.
        missing_values: places x, y that mark a point without a label, see `data.missing_values`.
        flip_pairs, sigmas: settings of the skeleton; None only for the competition's 24 keypoints.
        setting: name of the setting that gives the path, for messages.

    Raises:
        ConfigError: the skeleton's settings are missing or do not fit the file's keypoints.
        DataError: the labels or corrections cannot be used, or no point is labelled; the message has the file, the row
            (its line in the file, counted from 1) or the image, and the fix.
        StorageError: a file cannot be read.
    """
    table = read_coco(path) if path.lower().endswith(".json") else read_csv(path)
    if not table.images:
        raise DataError(f"{path}: holds no labelled image: a header alone is not enough")
    _check_names(table, path, images)
    for x, y in missing_values:
        table.keypoints[(table.keypoints[..., :2] == (x, y)).all(axis=-1)] = (np.nan, np.nan, 0)
    table, note = select_people(table, people, path)
    try:
        skeleton = skeleton_for(table.names, flip_pairs, sigmas)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    order = [table.names.index(name) for name in skeleton.names]
    is_in_order = order == list(range(len(order)))  # then no copy is made: a million rows take half a gigabyte
    name_parts = [parse_name(image) for image in table.images]
    labels = Annotations(
        skeleton=skeleton,
        images=tuple(table.images),
        keypoints=table.keypoints if is_in_order else table.keypoints[:, order],
        scenes=tuple(group or scene for group, (scene, _, _) in zip(table.groups, name_parts, strict=True)),
        cameras=tuple(camera for _, camera, _ in name_parts),
        frames=tuple(frame for _, _, frame in name_parts),
        stated=tuple(table.stated),
        notes=(note,) if note else (),
    )
    labels = apply_corrections(labels, corrections) if corrections else labels
    _require_labelled_points(labels, path, setting, missing_values)
    return labels


def _require_labelled_points(
    labels: Annotations, path: str, setting: str, missing_values: Sequence[tuple[float, float]]
) -> None:
    """Refuse labels without a labelled point, and labels whose points are all at one place, e.g. 0, 0.

    Raises:
        DataError: no image has a labelled point, or all points are at one place.
    """
    points = labels.keypoints[labels.keypoints[..., 2] > 0, :2]
    if not len(points):
        places = f" except at data.missing_values {[list(place) for place in missing_values]}" if missing_values else ""
        raise DataError(
            f"{path}: none of its {len(labels)} images has a labelled point{places}: {setting} must name a file "
            f"with coordinates, in COCO with v 1 or 2, or with likelihoods of at least {MIN_LIKELIHOOD:g}"
        )
    if len(points) > len(labels) and (points == points[0]).all():
        x, y = points[0]
        raise DataError(
            f"{path}: all {len(points)} points of its {len(labels)} images are at {x:g}, {y:g}, which is no label: "
            f"{setting} must name the labels, not e.g. the sample submission"
        )
