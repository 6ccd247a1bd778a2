"""`show`: write a store's variants, or predictions, as images with skeletons drawn over them."""

import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kp_ray.config.load import load_config
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, DataError, StoreError
from kp_ray.images import Image, decode_preview, encode_preview
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.prediction.predictions import read_predictions
from kp_ray.reporting.overlays import prediction_image_folders, read_image
from kp_ray.reporting.run_files import read_submission_labels, read_truth
from kp_ray.storage import exists, join, write_bytes
from kp_ray.store.layout import has_store
from kp_ray.store.manifest import Manifest, read_manifest
from kp_ray.store.read import RowReader, read_part
from kp_ray.visualization.colors import TRUTH, series_color
from kp_ray.visualization.skeletons import draw_contact_sheet, draw_legend, draw_skeleton

_COLUMNS = ("image", "keypoints", "bbox_xyxy", "recipe", "copy", "source")


@dataclass(frozen=True)
class _Selection:
    """The keyword arguments of `show`."""

    recipe: str | None
    image: str | None
    num: int
    seed: int
    submissions: Sequence[str]


@dataclass(frozen=True)
class ShowSummary:
    """The result of `show`.

    Attributes:
        pictures: number of written images, without `sheet.jpg`.
        folder: the folder that holds the images.
    """

    pictures: int
    folder: str

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        return [f"{self.pictures} image{'' if self.pictures == 1 else 's'} and sheet.jpg in {self.folder}"]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        return asdict(self)


NamedImage = tuple[str, Image]
"""File name without its suffix, and image (H, W, 3), BGR."""


def show(
    path: str,
    folder: str | None = None,
    *,
    recipe: str | None = None,
    image: str | None = None,
    num: int = 12,
    seed: int = 0,
    submissions: Sequence[str] = (),
) -> ShowSummary:
    """Draw randomly selected variants or predictions; write an image of each, and all of them as `sheet.jpg`.

    Args:
        path: a store or a `predictions.parquet`; the config.yaml beside it names the image folders.
        folder: folder for the images; None: `show` beside `path`.
        recipe: show variants of this recipe only; None: variants of all recipes.
        image: show variants of this source only, or the predictions for this image only; None: all.
        num: maximum number of images.
        seed: seed of the random selection.
        submissions: submissions to draw beside the predictions.

    Raises:
        ConfigError: `path` is neither a store nor predictions; `recipe` is set for predictions; or `submissions` are
            given for a store.
        StoreError: the store does not hold the recipe.
        DataError: the selection is empty, a predicted image does not exist, or a submission is invalid or has other
            keypoints than the predictions.
        StorageError: a file is damaged.
    """
    selection = _Selection(recipe, image, num, seed, submissions)
    out_folder = folder or join(_parent(path), "show")
    if path.endswith(".parquet") and exists(path):
        if recipe is not None:
            raise ConfigError(f"{path}: predictions have no recipe: leave --recipe out, or name a store")
        named_images = list(_draw_predictions(path, selection))
    elif has_store(path):
        if submissions:
            raise ConfigError(f"{path}: a store has no submissions: leave --submission out, or name predictions")
        named_images = list(_draw_variants(path, selection))
    else:
        raise ConfigError(f"{path}: neither a store nor predictions: name RUN/store or RUN/predictions.parquet")
    if not named_images:
        raise DataError(f"{path}: nothing matches --recipe and --image: correct them, or leave one out")
    file_names = {"sheet"}
    for name, canvas in named_images:
        file_name = name.replace("/", "_")
        while file_name in file_names:
            file_name += "_"
        file_names.add(file_name)
        write_bytes(join(out_folder, f"{file_name}.jpg"), encode_preview(canvas, 90))
    names, canvases = [name for name, _ in named_images], [canvas for _, canvas in named_images]
    write_bytes(join(out_folder, "sheet.jpg"), encode_preview(draw_contact_sheet(canvases, names, 4, 260)))
    return ShowSummary(len(named_images), out_folder)


def _parent(path: str) -> str:
    return posixpath.dirname(path.rstrip("/")) or "."


def _load_config_beside(path: str) -> Config:
    """Load the config.yaml beside a path; without that file, return the default config."""
    config_path = join(_parent(path), "config.yaml")
    return load_config(config_path) if exists(config_path) else Config()


def _draw_variants(store: str, selection: _Selection) -> Iterator[NamedImage]:
    manifest = read_manifest(store)
    skeleton = _load_config_beside(store).build_skeleton(manifest.skeleton)
    recipes = sorted({part.recipe for part in manifest.parts})
    if selection.recipe is not None and selection.recipe not in recipes:
        raise StoreError(f"{store}: no recipe {selection.recipe!r} in this store: choose one of {', '.join(recipes)}")
    reader = RowReader(_COLUMNS)
    for path, index in _select_variants(store, manifest, selection):
        row = reader.read(join(store, path), index)
        variant = decode_preview(row["image"])
        if variant is not None:
            points = np.array(row["keypoints"], dtype=float).reshape(-1, 3)
            box = np.array(row["bbox_xyxy"], dtype=float) if (points[:, 2] > 0).any() else None
            name = f"{row['recipe']}-{row['copy']}-{posixpath.splitext(row['source'])[0]}"
            yield name, draw_skeleton(variant, points, skeleton, bbox_xyxy=box)


def _select_variants(store: str, manifest: Manifest, selection: _Selection) -> list[tuple[str, int]]:
    """Choose variants at random; return (path of the part, row in the part) of each, in the store's order."""
    rng = np.random.default_rng(selection.seed)
    parts = [part for part in manifest.parts if selection.recipe in (None, part.recipe)]
    if selection.image is None:
        ends = np.cumsum([part.num_rows for part in parts])
        num_rows = int(ends[-1]) if len(ends) else 0
        store_rows = np.sort(rng.choice(num_rows, min(selection.num, num_rows), replace=False))
        return [
            (parts[i].path, int(row - ends[i] + parts[i].num_rows))
            for i, row in zip(np.searchsorted(ends, store_rows, side="right").tolist(), store_rows, strict=True)
        ]
    matches = []
    for part in parts:
        sources = read_part(join(store, part.path), ["source"])["source"].to_pylist()
        matches += [(part.path, row) for row, source in enumerate(sources) if source == selection.image]
    return [matches[index] for index in np.sort(rng.permutation(len(matches))[: selection.num])]


def _read_submissions(
    path: str, skeleton: Skeleton, submissions: Sequence[str]
) -> Iterator[tuple[str, dict[str, FloatArray]]]:
    """Yield (name, points by image) of the run's submission, if it exists, then of each submission in `submissions`.

    Args:
        path: the predictions; the run's submission is in the same folder.
        skeleton: keypoints of the predictions.
        submissions: paths of further submissions.
    """
    run_submission = join(_parent(path), "submission.csv")
    if exists(run_submission):
        labels = read_submission_labels(run_submission, skeleton)
        yield "fused", _points_by_image(labels.images, labels.keypoints)
    for submission in submissions:
        labels = read_submission_labels(submission, skeleton)
        yield posixpath.basename(submission), _points_by_image(labels.images, labels.keypoints)


def _points_by_image(images: Sequence[str], keypoints: FloatArray) -> dict[str, FloatArray]:
    """Return the points (K, 3) of each image in which somebody was found; a row of zeros means nobody."""
    return {image: points for image, points in zip(images, keypoints, strict=True) if points[:, :2].any()}


def _draw_predictions(path: str, selection: _Selection) -> Iterator[NamedImage]:
    config, predictions = _load_config_beside(path), read_predictions(path)
    skeleton = config.build_skeleton(predictions.keypoint_names)
    truth = read_truth(config, skeleton)
    series = [
        (member, _points_by_image(predictions.images, keypoints))
        for member, keypoints in zip(predictions.members, predictions.keypoints, strict=True)
    ]
    series += _read_submissions(path, skeleton, selection.submissions)
    legend = [(name, series_color(index)) for index, (name, _) in enumerate(series)]
    legend += [("truth", TRUTH)] if truth else []
    rows = [row for row, name in enumerate(predictions.images) if selection.image in (None, name)]
    if not rows:
        raise DataError(f"{path}: has no image {selection.image}: correct --image, or leave it out")
    if selection.image is None:  # images that could not be used have no prediction to show
        rows = [row for row in rows if not predictions.reasons[row]]
        if not rows:
            image, reason = predictions.images[0], predictions.reasons[0]
            raise DataError(f"{path}: no image could be used, e.g. {image}: {reason}")
    rng = np.random.default_rng(selection.seed)
    for row in np.sort(rng.permutation(rows)[: selection.num]):
        image = predictions.images[row]
        canvas = read_image(prediction_image_folders(config), image)
        if canvas is None:
            if predictions.reasons[row]:
                raise DataError(f"{path}: image {image} could not be used: {predictions.reasons[row]}")
            folders = ", ".join(folder for folder in prediction_image_folders(config) if folder)
            raise DataError(
                f"{path}: image {image} is not in the folders of {join(_parent(path), 'config.yaml')} (got {folders}): "
                "correct these settings (images that were predicted by an absolute path cannot be shown)"
            )
        if truth is not None and image in truth.images:
            points = truth.keypoints[truth.images.index(image)]
            canvas = draw_skeleton(canvas, points, skeleton, color=TRUTH)
        for index, (_, points_by_image) in enumerate(series):
            if image in points_by_image:
                canvas = draw_skeleton(canvas, points_by_image[image], skeleton, color=series_color(index))
        yield posixpath.splitext(image)[0], draw_legend(canvas, legend)
