"""Export a store as images with COCO JSON, wide CSV and YOLO-pose labels."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.annotations import Annotations
from kp_ray.data.coco_format import to_coco
from kp_ray.data.csv_format import to_csv
from kp_ray.data.yolo_format import write_yolo
from kp_ray.errors import StoreError
from kp_ray.keypoints import Skeleton
from kp_ray.storage import delete_file, delete_folder, exists, join, write_bytes
from kp_ray.store.manifest import StoredRow, read_manifest
from kp_ray.store.read import iter_rows, read_table

_FOLDERS = ("images", "labels")
_FILES = ("annotations.json", "annotations.csv")


@dataclass(frozen=True)
class ExportSummary:
    """The result of an export.

    Attributes:
        images: number of images written.
        folder: local path or URL of the folder that holds the images and their labels.
    """

    images: int
    folder: str

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        return [f"{self.images} images and annotations.json, annotations.csv in {self.folder}"]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        return asdict(self)


def export_store(
    config: Config,
    folder: str,
    *,
    split: str | None = None,
    recipes: Sequence[str] | None = None,
    fold: int | None = None,
    yolo: bool = False,
) -> ExportSummary:
    """Write rows of a store as images with a COCO keypoints JSON and the wide CSV.

    Args:
        config: the config of the run whose store is exported.
        folder: receives `images/<recipe>-<copy>/<source>.jpg`, `annotations.json` and `annotations.csv`.
        split: "train" or "val"; None exports both.
        recipes: names of the recipes to export; None exports all.
        fold: number of the fold to hold out, in a store with folds. The split "val" is this fold's rows of the recipe
            Original, and the split "train" is all rows of the other folds. None holds out no fold.
        yolo: also write `labels/`, one text file per image, for YOLO-pose.

    Raises:
        StoreError: there is no finished store, the store lacks a recipe of `recipes`, no row is selected, `folder`
            already holds an export, or two images would have the same name.
        StorageError: a part is damaged, or the folder cannot be written.
    """
    store = config.path("store")
    skeleton = config.build_skeleton(read_manifest(store).skeleton)
    for name in (*_FOLDERS, *_FILES):
        if exists(join(folder, name)):
            raise StoreError(f"{folder}: already holds {name}, which would be overwritten: choose a new folder")
    _refuse_equal_names(store, split, recipes, fold)
    try:
        num_images = _write_images(skeleton, iter_rows(store, split=split, recipes=recipes, fold=fold), folder)
        if not num_images:
            raise StoreError(f"{store}: no row has this split and these recipes: select another split or other recipes")
        if yolo:
            write_yolo(folder)
    except BaseException:  # including Ctrl-C: an unfinished export would look like a whole one
        _discard_export(folder)
        raise
    return ExportSummary(num_images, folder)


def _discard_export(folder: str) -> None:
    for name in _FOLDERS:
        delete_folder(join(folder, name))
    for path in (join(folder, name) for name in _FILES):
        if exists(path):
            delete_file(path)


def _image_name(row: StoredRow) -> str:
    return f"{row['recipe']}-{row['copy']}/{os.path.splitext(row['source'])[0]}.jpg"


def _refuse_equal_names(store: str, split: str | None, recipes: Sequence[str] | None, fold: int | None) -> None:
    """Refuse sources whose names differ only in the suffix (a.png, a.jpg): each variant is exported as .jpg.

    Raises:
        StoreError: two images would have the same name.
    """
    sources_by_name: dict[str, str] = {}
    columns = ["source", "recipe", "copy"]
    for row in read_table(store, split=split, recipes=recipes, columns=columns, fold=fold).to_pylist():
        name = _image_name(row)
        if name in sources_by_name:
            raise StoreError(
                f"{store}: {row['source']} and {sources_by_name[name]} would be exported under the same name {name}: "
                "rename one of the images"
            )
        sources_by_name[name] = row["source"]


def _write_images(skeleton: Skeleton, rows: Iterator[StoredRow], folder: str) -> int:
    """Write the images, then their annotations unless there are no images; return the number of images."""
    names, keypoints, sizes, scenes, cameras, frames = [], [], [], [], [], []
    for row in rows:
        name = _image_name(row)
        write_bytes(join(folder, "images", name), row["image"])
        names.append(name)
        keypoints.append(np.array(row["keypoints"], dtype=np.float64).reshape(-1, 3))
        sizes.append((row["width"], row["height"]))
        scenes.append(row["scene"])
        cameras.append(row["camera"])
        frames.append(row["frame"])
    if names:
        labels = Annotations(skeleton, tuple(names), np.stack(keypoints), tuple(scenes), tuple(cameras), tuple(frames))
        coco = json.dumps(to_coco(labels, sizes), ensure_ascii=False)
        write_bytes(join(folder, "annotations.json"), coco.encode())
        write_bytes(join(folder, "annotations.csv"), to_csv(labels))
    return len(names)
