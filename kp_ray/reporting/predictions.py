"""Section "Predictions": the worst images, those filled by a fallback, and those in which members differ most."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.ensemble.temporal import count_fallbacks
from kp_ray.metrics import point_errors
from kp_ray.prediction.predictions import Predictions
from kp_ray.prediction.records import FilledImage, ImageRmse
from kp_ray.reporting.formatting import format_number
from kp_ray.reporting.overlays import Overlay, overlay_uri, prediction_image_folders
from kp_ray.reporting.run_files import RunFiles
from kp_ray.visualization.colors import SERIES, TRUTH, series_color

MAX_TILES = 12
"""Maximum number of tiles in each group: worst images, filled images and disputed images."""


@dataclass(frozen=True)
class Tile:
    """An image with skeletons and a caption.

    Attributes:
        image: name of the image.
        uri: `data:` URI of the drawn image.
        value: first part of the caption, in bold, e.g. the error.
        note: second part of the caption.
    """

    image: str
    uri: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class ImageList:
    """A list of images, each with a value.

    Attributes:
        heading: title of the list.
        column: title of the values.
        rows: (image, value) pairs.
    """

    heading: str
    column: str
    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PredictionSection:
    """Tiles and lists of predicted images.

    Attributes:
        num_images: number of images in predictions.parquet; 0 without that file.
        has_truth: True if the tiles show the ground truth.
        num_filled: number of images in which no member found a person above `predict.score_threshold`; None if unknown.
        fallbacks: number of filled images by fallback.
        worst_tiles: the images with the largest RMSE.
        filled_tiles: the filled images.
        disputed_tiles: the images in which the members differ most.
        median_spread_px: median over the images of the RMS distance of the members' points from their mean; None if
            no image has predictions of two members.
        members: name and color ("#rrggbb") of each member.
        num_missed_images: member -> number of images in which the member found nobody; only members with such images.
        lists: the worst images and the filled images as lists; an empty list is left out.
    """

    num_images: int
    has_truth: bool
    num_filled: int | None
    fallbacks: Mapping[str, int]
    worst_tiles: tuple[Tile, ...]
    filled_tiles: tuple[Tile, ...]
    disputed_tiles: tuple[Tile, ...]
    median_spread_px: float | None
    members: tuple[tuple[str, str], ...]
    num_missed_images: Mapping[str, int]
    lists: tuple[ImageList, ...]


def prediction_section(config: Config, files: RunFiles) -> PredictionSection | None:
    """Build the section; None if there are no predictions, no submission and no evaluation."""
    worst_images: tuple[ImageRmse, ...] = files.evaluation.worst if files.evaluation else ()
    filled_images = _filled_images(files)
    if not worst_images and filled_images is None and files.submission is None and files.predictions is None:
        return None
    predictions = files.predictions
    spreads = _compute_spreads(predictions) if predictions else {}
    worst_captions = {
        row.image: (format_number(row.rmse), f" px{_describe_worst_point(row.image, files)}") for row in worst_images
    }
    return PredictionSection(
        num_images=len(predictions.images) if predictions else 0,
        has_truth=files.truth is not None,
        num_filled=None if filled_images is None else len(filled_images),
        fallbacks=count_fallbacks((row.how for row in filled_images or ()), near_frame="a near frame"),
        worst_tiles=_draw_tiles(config, files, worst_captions),
        filled_tiles=_draw_tiles(config, files, {row.image: (row.how, "") for row in filled_images or ()}),
        disputed_tiles=_draw_disputed_tiles(config, files, predictions, spreads) if predictions else (),
        median_spread_px=float(np.median([*spreads.values()])) if spreads else None,
        members=_member_colors(predictions) if predictions else (),
        num_missed_images=_count_missed_images(predictions) if predictions else {},
        lists=_build_lists(worst_images, filled_images or ()),
    )


def _member_colors(predictions: Predictions) -> tuple[tuple[str, str], ...]:
    return tuple((name, SERIES[index % len(SERIES)]) for index, name in enumerate(predictions.members))


def _filled_images(files: RunFiles) -> tuple[FilledImage, ...] | None:
    """Return the filled images in evaluation.json, or else in predict.json; None if both files are missing."""
    if files.evaluation is not None:
        return files.evaluation.filled
    return files.details.filled if files.details is not None else None


def _build_lists(worst_images: tuple[ImageRmse, ...], filled_images: tuple[FilledImage, ...]) -> tuple[ImageList, ...]:
    worst_rows = tuple((row.image, format_number(row.rmse)) for row in worst_images)
    filled_rows = tuple((row.image, row.how) for row in filled_images)
    lists = (
        ImageList("Worst images as a list", "RMSE (px)", worst_rows),
        ImageList("Images filled by a fallback", "fallback", filled_rows),
    )
    return tuple(image_list for image_list in lists if image_list.rows)


def _draw_tiles(config: Config, files: RunFiles, captions: Mapping[str, tuple[str, str]]) -> tuple[Tile, ...]:
    """Draw ground truth and submission over the first MAX_TILES images; skip images that cannot be read.

    Args:
        config: names the image folders.
        files: the run's files.
        captions: image -> (`value`, `note`) of its tile.
    """
    tiles = []
    for image, (value, note) in list(captions.items())[:MAX_TILES]:
        overlays: list[Overlay] = [
            (labels.keypoints[labels.images.index(image)], labels.skeleton, color)
            for labels, color in ((files.truth, TRUTH), (files.submission, None))
            if labels is not None and image in labels.images
        ]
        uri = overlay_uri(prediction_image_folders(config), image, overlays)
        if uri:
            tiles.append(Tile(image, uri, value, note))
    return tuple(tiles)


def _describe_worst_point(image: str, files: RunFiles) -> str:
    """Describe the largest error of an image's keypoints, e.g. ", nose by 31 px"; "" if no error is known."""
    truth, submission = files.truth, files.submission
    if truth is None or submission is None or truth.skeleton.names != submission.skeleton.names:
        return ""
    if image not in truth.images or image not in submission.images:
        return ""
    prediction = submission.keypoints[submission.images.index(image)]
    errors = point_errors(prediction, truth.keypoints[truth.images.index(image)])
    if not np.isfinite(errors).any():
        return ""
    worst_keypoint = int(np.nanargmax(errors))
    return f", {truth.skeleton.names[worst_keypoint]} by {errors[worst_keypoint]:,.0f} px"


def _draw_disputed_tiles(
    config: Config, files: RunFiles, predictions: Predictions, spreads: Mapping[int, float]
) -> tuple[Tile, ...]:
    """Draw every member's prediction over the MAX_TILES images with the largest spread.

    Args:
        config: names the image folders.
        files: the run's files; their ground truth or submission gives the skeleton.
        predictions: the members' predictions.
        spreads: row of the image -> spread in pixels, largest first.
    """
    labels = files.truth if files.truth is not None else files.submission
    skeleton = labels.skeleton if labels is not None else None
    if skeleton is None or predictions.keypoints.shape[2] != len(skeleton):
        return ()
    tiles = []
    for row, spread_px in list(spreads.items())[:MAX_TILES]:
        overlays: list[Overlay] = [
            (keypoints, skeleton, series_color(member))
            for member, keypoints in enumerate(predictions.keypoints[:, row])
        ]
        uri = overlay_uri(prediction_image_folders(config), predictions.images[row], overlays)
        if uri:
            tiles.append(Tile(predictions.images[row], uri, format_number(spread_px), " px apart"))
    return tuple(tiles)


def _compute_spreads(predictions: Predictions) -> dict[int, float]:
    """Compute the spread of each image: the RMS distance in pixels of the members' points from their mean.

    Returns:
        Row of the image -> spread, largest first. Images in which fewer than two members found a person are left out.
    """
    has_person = np.asarray(np.isfinite(predictions.keypoints[..., :2]).all(axis=(2, 3)))  # (M, N)
    spreads = {}
    for row in np.flatnonzero(has_person.sum(axis=0) > 1).tolist():
        points = predictions.keypoints[has_person[:, row], row, :, :2]
        squared_distances = ((points - points.mean(axis=0)) ** 2).sum(axis=2)
        spreads[row] = float(np.sqrt(squared_distances.mean()))
    return dict(sorted(spreads.items(), key=lambda item: -item[1]))


def _count_missed_images(predictions: Predictions) -> dict[str, int]:
    """Count the images in which each member found nobody; leave out members without such images."""
    counts = np.isnan(predictions.keypoints[..., 0]).all(axis=2).sum(axis=1).tolist()
    return {name: count for name, count in zip(predictions.members, counts, strict=True) if count}
