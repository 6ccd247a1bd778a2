"""Export a store as pictures, COCO JSON and CSV."""

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.data.annotations import Annotations
from kp_ray.data.coco_format import to_coco
from kp_ray.data.csv_format import to_csv
from kp_ray.errors import StoreError
from kp_ray.storage import exists, filesystem, join, write_bytes
from kp_ray.store.manifest import read_manifest
from kp_ray.store.read import Row, iter_rows, read_table


def _export_name(row: Row) -> str:
    return f"{row['recipe']}-{row['copy']}/{os.path.splitext(row['source'])[0]}.jpg"


def export_store(
    config: Config, folder: str, *, split: str | None = None, recipes: Sequence[str] | None = None
) -> dict[str, Any]:
    """Write a store, or a part of it, as pictures with a COCO keypoints JSON and the wide CSV.

    Args:
        folder: gets `images/<recipe>-<copy>/<source>.jpg`, `annotations.json` and `annotations.csv`.
        split, recipes: which rows; None: all.

    Returns:
        `images` and `folder`.

    Raises:
        StoreError: no finished store, or a recipe it does not hold; an export is in `folder` already, or two sources
            differ in their suffix alone.
    """
    store = config.path("store")
    manifest = read_manifest(store)
    skeleton = config.build_skeleton(manifest.skeleton)
    names, keypoints, sizes, scenes, cameras, frames = [], [], [], [], [], []
    for name in ("images", "annotations.json", "annotations.csv"):
        if exists(join(folder, name)):
            raise StoreError(f"{folder}: holds {name} already, of an export or your own: name a new folder")
    source_of: dict[str, str] = {}
    planned = read_table(store, split=split, recipes=recipes, columns=["source", "recipe", "copy"])
    for row in planned.to_pylist():  # before anything is written
        name = _export_name(row)
        if name in source_of:
            raise StoreError(f"{store}: {row['source']} and {source_of[name]} would both be {name}: rename one of them")
        source_of[name] = row["source"]
    try:
        for row in iter_rows(store, split=split, recipes=recipes):
            name = _export_name(row)
            write_bytes(join(folder, "images", name), row["image"])
            names.append(name)
            keypoints.append(np.array(row["keypoints"], dtype=np.float64).reshape(-1, 3))
            sizes.append((row["width"], row["height"]))
            scenes.append(row["scene"])
            cameras.append(row["camera"])
            frames.append(row["frame"])
        if not names:
            raise StoreError(f"{store}: holds no rows of this selection: nothing to export")
        rows = Annotations(skeleton, tuple(names), np.stack(keypoints), tuple(scenes), tuple(cameras), tuple(frames))
        coco = json.dumps(to_coco(rows, sizes), ensure_ascii=False)
        write_bytes(join(folder, "annotations.json"), coco.encode())
        write_bytes(join(folder, "annotations.csv"), to_csv(rows))
    except BaseException:  # also Ctrl-C: half an export would pass for a whole one
        if exists(join(folder, "images")):
            fs, inner = filesystem(join(folder, "images"))
            fs.delete_dir(inner)
        raise
    return {"images": len(names), "folder": folder}
