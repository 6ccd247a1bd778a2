"""Read labels from a CSV or a COCO JSON, with corrections applied."""

from collections import Counter
from collections.abc import Sequence

from kp_ray.data.annotations import Annotations, parse_name
from kp_ray.data.coco_format import read_coco
from kp_ray.data.corrections import apply_corrections
from kp_ray.data.csv_format import read_csv
from kp_ray.errors import DataError
from kp_ray.keypoints import skeleton_for


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
