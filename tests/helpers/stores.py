"""Write a small finished store without a cluster, and read the files of a store."""

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from kp_ray.config.schema import Config
from kp_ray.images import encode_preview
from kp_ray.keypoints import DACON24
from kp_ray.store.manifest import (
    Manifest,
    PartRecord,
    Quarantined,
    RecipeRecord,
    read_manifest,
    row_schema,
    write_manifest,
)
from kp_ray.store.parts import ROWS_PER_GROUP, make_parts
from kp_ray.store.plan import Plan
from kp_ray.store.write import build_manifest

STORE_IMAGES = tuple(f"001-1-1-01-Z17_A-000000{number}.jpg" for number in range(6))
"""Names of a clip's frames; the store of `write_small_store` holds the first three."""
WIDTH, HEIGHT = 320, 240


def make_image(seed: int) -> npt.NDArray[np.uint8]:
    """Make a smooth color image (HEIGHT, WIDTH, 3), BGR."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def make_points(seed: int) -> npt.NDArray[np.float64]:
    """Make the 24 points (24, 2) of one person, x and y in pixels, all inside the image of `make_image`."""
    return np.random.default_rng(seed).uniform([80, 40], [240, 200], (len(DACON24), 2))


def make_row(recipe: str, number: int, split: str) -> dict[str, Any]:
    """Make the row of frame `number` in a store; its image and points are the same for every recipe."""
    xy = make_points(number)
    return {
        "source": STORE_IMAGES[number],
        "scene": "001-1-1-01-Z17",
        "camera": "A",
        "frame": number,
        "split": split,
        "recipe": recipe,
        "copy": 0,
        "width": WIDTH,
        "height": HEIGHT,
        "num_visible": len(DACON24),
        "affine": [1, 0, 0, 0, 1, 0],
        "image": encode_preview(make_image(number)),
        "seed": number,
        "keypoints": np.column_stack([xy, np.full(len(xy), 2)]).ravel().tolist(),
        "bbox_xyxy": [*xy.min(axis=0), *xy.max(axis=0)],
    }


def write_small_store(store: Path, quarantined: tuple[Quarantined, ...] = ()) -> Manifest:
    """Write three parts of three rows: `Original` for training and validation, `Rotate45_CenterCrop` for training."""
    parts = []
    for recipe, splits in (("Original", ("train", "val")), ("Rotate45_CenterCrop", ("train",))):
        for number, split in enumerate(splits):
            path = f"recipe-{recipe}/part-{number:05d}-ab12.parquet"
            (store / path).parent.mkdir(parents=True, exist_ok=True)
            rows = [make_row(recipe, frame, split) for frame in range(3)]
            pq.write_table(pa.Table.from_pylist(rows, schema=row_schema(len(DACON24))), store / path, row_group_size=1)
            content = (store / path).read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            parts.append(
                PartRecord(
                    path=path, recipe=recipe, split=split, num_rows=len(rows), num_bytes=len(content), sha256=sha256
                )
            )
    manifest = Manifest(
        kp_ray="0.1.0",
        seed=42,
        skeleton=DACON24.names,
        recipes=(
            RecipeRecord(name="Original", copies=1, fingerprint="ab12"),
            RecipeRecord(name="Rotate45_CenterCrop", copies=2, fingerprint="ab12"),
        ),
        num_sources=1234,
        num_variants=9,
        num_rows_by_split={"train": 6, "val": 3},
        units={"train": ("001-1-1-01-Z17", "002-1-1-01-Z17"), "val": ("003-1-1-01-Z17",)},
        parts=tuple(parts),
        quarantined=quarantined,
    )
    write_manifest(str(store), manifest)
    return manifest


def part_digests(config: Config) -> dict[str, str]:
    """Return the SHA-256 of every part that the manifest of a config's store lists, by path."""
    return {part.path: part.sha256 for part in read_manifest(config.path("store")).parts}


def store_files(config: Config) -> dict[str, bytes]:
    """Return the contents of all files of a config's store, by path, except the lock file."""
    root = Path(config.path("store"))
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def read_quarantine(store: Path) -> list[dict[str, str]]:
    """Read the rows of a store's `_quarantine.csv`."""
    with open(store / "_quarantine.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_planned_store(plan: Plan) -> Manifest:
    """Write all parts and the manifest of a plan in this process, without a cluster."""
    records: dict[str, PartRecord] = {}
    quarantined: list[Quarantined] = []
    for chunk in plan.chunks:
        chunk_records, chunk_quarantined = make_parts(plan, chunk.sources, chunk.parts)
        records |= {record.path: record for record in chunk_records}
        quarantined += chunk_quarantined
    manifest = build_manifest(plan, records, quarantined)
    write_manifest(plan.store, manifest)
    return manifest


def to_former_layout(store: Path) -> None:
    """Convert a store to the layout that was used before schema 3, with other file names and formats."""
    for folder in store.glob("recipe-*"):
        folder.rename(store / folder.name.replace("recipe-", "recipe=", 1))
    schema = pa.schema([(name, pa.string()) for name in ("source", "stage", "reason")])
    pq.write_table(pa.Table.from_pylist(read_quarantine(store), schema=schema), store / "quarantine.parquet")
    (store / "_quarantine.csv").unlink()
    manifest = store / "_manifest.json"
    if manifest.exists():
        values = json.loads(manifest.read_text())
        for part in values["parts"]:
            part["path"] = part["path"].replace("recipe-", "recipe=", 1)
        (store / "manifest.json").write_text(json.dumps({**values, "schema_version": 2}, indent=1) + "\n")
        manifest.unlink()


def training_part(config: Config) -> Path:
    """Return the path of a training part of the recipe `Original`."""
    parts = read_manifest(config.path("store")).parts
    path = next(part.path for part in parts if part.recipe == "Original" and part.split == "train")
    return Path(config.path("store", path))


def damage_stored_image(part: Path, row: int) -> None:
    """Change one byte of the image in a row of a part; the part's Parquet footer stays valid."""
    metadata = pq.read_metadata(part)
    column = metadata.row_group(row // ROWS_PER_GROUP).column(metadata.schema.names.index("image"))
    content = bytearray(part.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 255
    part.write_bytes(content)


def copy_images(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Copy the images of a `data` section to `folder`, where tests may change them; return the new section."""
    shutil.copytree(data["images"], folder)
    return {**data, "images": str(folder)}
