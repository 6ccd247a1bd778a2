"""Section "Suspects": the labels that are probably wrong, beside their out-of-fold predictions."""

import contextlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.annotations import Annotations
from kp_ray.data.load import load_labels
from kp_ray.errors import KpRayError, RunStateError, StorageError, StoreError
from kp_ray.keypoints import FloatArray
from kp_ray.reporting.formatting import format_number
from kp_ray.reporting.overlays import overlay_uri
from kp_ray.reporting.predictions import Tile
from kp_ray.reporting.run_files import RunFiles
from kp_ray.suspects.evidence import SUSPICIOUS_SCORE
from kp_ray.suspects.files import SuspectRow
from kp_ray.suspects.stage import read_predicted_points

MAX_SUSPECTS = 12
"""Maximum number of suspects that are drawn, each with its label and its prediction."""


@dataclass(frozen=True)
class SuspectsSection:
    """The most suspicious labels.

    Attributes:
        counts: (kind of the suspected mistake, number of suspicious images) pairs, the most frequent kind first.
        tiles: one tile per drawn label, followed by a tile of its out-of-fold prediction if that exists.
        rows: the suspicious images, the most suspicious first.
    """

    counts: tuple[tuple[str, int], ...]
    tiles: tuple[Tile, ...]
    rows: tuple[SuspectRow, ...]


def suspects_section(config: Config, files: RunFiles) -> SuspectsSection | None:
    """Build the section; None without suspects.csv, or if no image is suspicious."""
    rows = tuple(row for row in files.suspects if row.score >= SUSPICIOUS_SCORE and row.kind)
    if not rows:
        return None
    counts = Counter(row.kind for row in rows).most_common()
    tiles = _draw_tiles(config, rows[:MAX_SUSPECTS], has_predictions=files.crossval is not None)
    return SuspectsSection(tuple(counts), tuple(tiles), rows)


def _draw_tiles(config: Config, rows: tuple[SuspectRow, ...], *, has_predictions: bool) -> list[Tile]:
    """Draw each suspect's label and prediction over the same crop of the image.

    Images without a file are skipped; without valid labels nothing is drawn.
    """
    try:
        labels = load_labels(config)
    except KpRayError:  # e.g. the labels were moved since
        return []
    predictions: dict[str, FloatArray] = {}
    # Only the labels are drawn without predictions, or if store, members or settings changed or were damaged since.
    with contextlib.suppress(RunStateError, StoreError, StorageError):
        if has_predictions:
            predictions, _ = read_predicted_points(config, labels.skeleton)
    tiles = []
    for row in rows:
        if row.image not in labels.images:  # a correction dropped the image
            continue
        label = labels.keypoints[labels.images.index(row.image)]
        points_by_name = {"label": label}
        if row.image in predictions:
            points_by_name["prediction"] = np.column_stack([predictions[row.image], np.full(len(label), 2.0)])
        for name, points in points_by_name.items():
            uri = _draw_points(config, labels, row.image, points, list(points_by_name.values()))
            if uri:
                note = f", {row.kind}, score {format_number(row.score)}" if name == "label" else ""
                tiles.append(Tile(row.image, uri, f"{row.rank}. {name}", note))
    return tiles


def _draw_points(
    config: Config, labels: Annotations, image: str, points: FloatArray, points_in_crop: list[FloatArray]
) -> str | None:
    """Draw `points` over an image that is cropped around all `points_in_crop`; None if the image cannot be read."""
    skeleton = labels.skeleton
    # With v = 0 a point widens the crop and is not drawn.
    undrawn = [(np.where([[True, True, False]], keypoints, 0.0), skeleton, None) for keypoints in points_in_crop]
    return overlay_uri([config.data.images], image, [*undrawn, (points, skeleton, None)])
