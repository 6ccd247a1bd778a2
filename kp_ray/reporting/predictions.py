"""Build the section "Predictions": the worst, the filled and the most disputed images."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.annotations import Annotations
from kp_ray.keypoints import Skeleton
from kp_ray.metrics import point_errors
from kp_ray.prediction.predictions import Predictions
from kp_ray.prediction.records import FilledImage, ImageError
from kp_ray.reporting.formatting import format_number
from kp_ray.reporting.pictures import Overlay, overlay_uri
from kp_ray.reporting.run_files import RunFiles
from kp_ray.visualization.colors import SERIES, TRUTH, series_color

MAX_PICTURES = 12
"""Maximum number of pictures of worst, of disputed and of filled images."""


@dataclass(frozen=True)
class Tile:
    """A picture with a caption.

    Attributes:
        image: name of the image.
        uri: `data:` URI of the picture.
        value: first word of the caption, e.g. the error.
        note: rest of the caption.
    """

    image: str
    uri: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class ImageList:
    """A list of images with a value each.

    Attributes:
        heading: title of the list.
        column: title of the values.
        rows: image and value.
    """

    heading: str
    column: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PredictionSection:
    """Pictures and lists of predicted images.

    Attributes:
        num_images: number of images in predictions.parquet.
        has_truth: True if the pictures show the truth.
        num_filled: number of images in which no member found a person at the usual score; None if it is not known.
        fallbacks: number of filled images by fallback.
        worst: pictures of the images with the largest RMSE.
        filled: pictures of the filled images.
        disputed: pictures of the images in which the members differ most.
        median_spread_px: RMS distance of the members' points from their mean, in the median image.
        members: name and colour ("#rrggbb") of each member.
        num_lost: by member, number of images in which it found nobody, if there are any.
        lists: all worst and all filled images.
    """

    num_images: int
    has_truth: bool
    num_filled: int | None
    fallbacks: Mapping[str, int]
    worst: tuple[Tile, ...]
    filled: tuple[Tile, ...]
    disputed: tuple[Tile, ...]
    median_spread_px: float | None
    members: tuple[tuple[str, str], ...]
    num_lost: Mapping[str, int]
    lists: tuple[ImageList, ...]


def prediction_section(config: Config, files: RunFiles) -> PredictionSection | None:
    """Build the section; None without predictions, a submission and an evaluation."""
    worst: tuple[ImageError, ...] = files.evaluation.worst if files.evaluation else ()
    filled = _filled_images(files)
    if not worst and filled is None and files.submission is None and files.predictions is None:
        return None
    predictions = files.predictions
    spreads = _spreads(predictions) if predictions else {}
    return PredictionSection(
        num_images=len(predictions.images) if predictions else 0,
        has_truth=files.truth is not None,
        num_filled=None if filled is None else len(filled),
        fallbacks=Counter(re.sub(r"^frame \d+$", "a near frame", row.how) for row in filled or ()),
        worst=_tiles(config, files, {row.image: format_number(row.rmse) for row in worst}, " px"),
        filled=_tiles(config, files, {row.image: row.how for row in filled or ()}, ""),
        disputed=_disputed_tiles(config, files, predictions, spreads) if predictions else (),
        median_spread_px=float(np.median([*spreads.values()])) if spreads else None,
        members=tuple(
            (name, SERIES[member_index % len(SERIES)])
            for member_index, name in enumerate(predictions.members if predictions else ())
        ),
        num_lost=_count_lost(predictions) if predictions else {},
        lists=_build_lists(worst, filled or ()),
    )


def _filled_images(files: RunFiles) -> tuple[FilledImage, ...] | None:
    if files.evaluation is not None:
        return files.evaluation.filled
    return files.details.filled if files.details is not None else None


def _build_lists(worst: tuple[ImageError, ...], filled: tuple[FilledImage, ...]) -> tuple[ImageList, ...]:
    lists = (
        ImageList("Worst images as a list", "RMSE (px)", tuple((row.image, format_number(row.rmse)) for row in worst)),
        ImageList("Images filled by a fallback", "fallback", tuple((row.image, row.how) for row in filled)),
    )
    return tuple(images for images in lists if images.rows)


def _tiles(config: Config, files: RunFiles, values: Mapping[str, str], unit: str) -> tuple[Tile, ...]:
    """Draw truth and submission over the first images of `values`; images that cannot be shown are left out.

    Args:
        config: names the image folders.
        files: of the run.
        values: value by image, shown in the caption.
        unit: after the value; with it comes the keypoint with the largest error, if it is known.
    """
    tiles = []
    for image, value in list(values.items())[:MAX_PICTURES]:
        overlays: list[Overlay] = [
            (labels.keypoints[labels.images.index(image)], labels.skeleton, color)
            for labels, color in ((files.truth, TRUTH), (files.submission, None))
            if labels is not None and image in labels.images
        ]
        uri = overlay_uri(config, image, overlays)
        if uri:
            tiles.append(Tile(image, uri, value, f"{unit}{_worst_point(image, files)}" if unit else ""))
    return tuple(tiles)


def _worst_point(image: str, files: RunFiles) -> str:
    """Describe the predicted keypoint of an image that is farthest from the truth; "" if it is not known."""
    truth, submission = files.truth, files.submission
    if truth is None or submission is None or truth.skeleton.names != submission.skeleton.names:
        return ""
    if image not in truth.images or image not in submission.images:
        return ""
    predicted, labels = (people.keypoints[people.images.index(image)] for people in (submission, truth))
    errors = point_errors(predicted, labels)
    if not np.isfinite(errors).any():
        return ""
    farthest = int(np.nanargmax(errors))
    return f", {truth.skeleton.names[farthest]} by {errors[farthest]:,.0f} px"


def _disputed_tiles(
    config: Config, files: RunFiles, predictions: Predictions, spreads: Mapping[int, float]
) -> tuple[Tile, ...]:
    """Draw every member's prediction over the images with the largest spread."""
    skeleton = _skeleton(files.truth, files.submission)
    if skeleton is None or predictions.keypoints.shape[2] != len(skeleton):
        return ()
    tiles = []
    for row, spread_px in list(spreads.items())[:MAX_PICTURES]:
        overlays: list[Overlay] = [
            (keypoints, skeleton, series_color(member))
            for member, keypoints in enumerate(predictions.keypoints[:, row])
        ]
        uri = overlay_uri(config, predictions.images[row], overlays)
        if uri:
            tiles.append(Tile(predictions.images[row], uri, format_number(spread_px), " px apart"))
    return tuple(tiles)


def _skeleton(*candidates: Annotations | None) -> Skeleton | None:
    return next((labels.skeleton for labels in candidates if labels is not None), None)


def _spreads(predictions: Predictions) -> dict[int, float]:
    """Compute the RMS distance in pixels of the members' points from their mean, per image.

    Returns:
        Row of the image -> distance, largest first; images in which fewer than two members found a person are left out.
    """
    found = np.asarray(np.isfinite(predictions.keypoints[..., :2]).all(axis=(2, 3)))  # (M, N)
    spreads = {}
    for row in np.flatnonzero(found.sum(axis=0) > 1).tolist():
        points = predictions.keypoints[found[:, row], row, :, :2]
        squared = ((points - points.mean(axis=0)) ** 2).sum(axis=2)
        spreads[row] = float(np.sqrt(squared.mean()))
    return dict(sorted(spreads.items(), key=lambda item: -item[1]))


def _count_lost(predictions: Predictions) -> dict[str, int]:
    """Count the images in which a member found nobody, for each member with such images."""
    lost = np.isnan(predictions.keypoints[..., 0]).all(axis=2).sum(axis=1).tolist()
    return {name: count for name, count in zip(predictions.members, lost, strict=True) if count}
