"""The contents of a finished store: columns of its rows, manifest, quarantine."""

import hashlib
import json
import re
from typing import Literal, TypedDict

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from kp_ray.errors import StoreError
from kp_ray.storage import exists, join, read_bytes, write_bytes, write_parquet

SCHEMA_VERSION = 2
"""Version of the rows' columns, the parts' names and the manifest."""
METADATA_KEY = b"kp_ray"
"""Key of a part's Parquet metadata under which its quarantined sources stand as JSON."""

Split = Literal["train", "val"]

UNREADABLE, UNAVAILABLE = "read", "open"
"""UNREADABLE: the image is invalid (permanent). UNAVAILABLE: storage failed (retried on the next run)."""


def recipe_stage(recipe: str) -> str:
    """Return the stage of a quarantined source that this recipe alone refused."""
    return f"recipe={recipe}"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecipeRecord(_Record):
    """A recipe of the store."""

    name: str
    copies: int
    fingerprint: str


class Quarantined(_Record):
    """A source without rows: of one recipe (`stage` is its `recipe_stage`) or of all (UNREADABLE, UNAVAILABLE)."""

    source: str
    stage: str
    reason: str


class PartRecord(_Record):
    """A finished part; `path` is relative to the store, `sha256` is that of the file in hexadecimal digits."""

    path: str
    recipe: str
    split: Split
    num_rows: int
    num_bytes: int
    sha256: str


class Manifest(_Record):
    """The contents of a finished store.

    Attributes:
        schema_version: SCHEMA_VERSION of the writer.
        kp_ray: version of the writer.
        seed: `seed` of the config.
        skeleton: names of the K keypoints, in order.
        recipes: with the number of copies of each.
        num_sources: those that have rows.
        num_variants: rows.
        num_rows_by_split: rows under "train" and "val".
        units: scenes, clips or frames (`split.by`) under "train" and "val".
        parts: in the order in which they are read.
        quarantined: sources that some or all recipes lack.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # stores written before 0.2 also have `settings`

    schema_version: int = SCHEMA_VERSION
    kp_ray: str
    seed: int
    skeleton: tuple[str, ...]
    recipes: tuple[RecipeRecord, ...]
    num_sources: int
    num_variants: int
    num_rows_by_split: dict[str, int]
    units: dict[str, tuple[str, ...]]
    parts: tuple[PartRecord, ...]
    quarantined: tuple[Quarantined, ...]


class StoredRow(TypedDict, total=False):
    """A row of a store: one variant. A reader that selects columns returns rows with those columns alone.

    Attributes:
        source: image name.
        scene, camera, frame: of the source.
        split: "train" or "val".
        recipe, copy: the recipe's name and which of its copies, from 0.
        width, height: of the variant, in pixels.
        image: the encoded variant.
        keypoints: 3K numbers: x, y, v per keypoint in pixel indices of the variant; v in {0, 1, 2}, NaN x and y where
            unlabelled.
        bbox_xyxy: 4 numbers: the visible keypoints' box with its margin, clipped, in pixel indices of the variant.
        num_visible: keypoints with v > 0.
        affine: 6 numbers: (2, 3) row by row, from the source's pixel indices to the variant's.
        seed: of the variant's random numbers.
    """

    source: str
    scene: str
    camera: str
    frame: int
    split: str
    recipe: str
    copy: int
    width: int
    height: int
    image: bytes
    keypoints: list[float]
    bbox_xyxy: list[float]
    num_visible: int
    affine: list[float]
    seed: int


def read_manifest(store: str) -> Manifest:
    """Read the manifest of a finished store.

    Raises:
        StoreError: there is none, it is damaged, or another version of kp_ray wrote it.
        StorageError: it cannot be read.
    """
    path = join(store, "manifest.json")
    if not exists(path):
        raise StoreError(f"{store}: no finished store here: run augment first")
    content = read_bytes(path)
    try:
        manifest = Manifest.model_validate_json(content)
        version = manifest.schema_version
    except ValidationError as error:
        first_key = re.search(rb'^{\s*"schema_version": *(\d+)', content)  # the rest may be of another version
        version = int(first_key[1]) if first_key else 0
        if 0 < version < SCHEMA_VERSION:
            raise StoreError(
                f"{path}: written by an older kp_ray (schema {version}): delete this file and run augment, which "
                "rebuilds all parts"
            ) from error
        if version <= SCHEMA_VERSION:
            raise StoreError(
                f"{path}: damaged: delete this file and run augment again, finished parts are kept"
            ) from error
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path}: written by a newer kp_ray (schema {version}): update kp_ray")
    return manifest


def write_manifest(store: str, manifest: Manifest) -> None:
    """Write `quarantine.parquet`, then `manifest.json`, with which the store is finished.

    Raises:
        StorageError: the storage is full, does not answer, or refuses.
    """
    schema = pa.schema([("source", pa.string()), ("stage", pa.string()), ("reason", pa.string())])
    table = pa.Table.from_pylist([item.model_dump() for item in manifest.quarantined], schema=schema)
    write_parquet(join(store, "quarantine.parquet"), table)
    write_bytes(join(store, "manifest.json"), (manifest.model_dump_json(indent=1) + "\n").encode())


def store_digest(store: str) -> str:
    """Return the SHA-256 of the digests and order of a store's parts: it changes with any byte of any row.

    Raises:
        StoreError: no finished store.
    """
    manifest = read_manifest(store)
    parts = [[part.path, part.sha256, part.split] for part in manifest.parts]
    return hashlib.sha256(json.dumps([manifest.seed, manifest.skeleton, parts]).encode()).hexdigest()


def row_schema(num_keypoints: int) -> pa.Schema:
    """Return the Parquet columns of `StoredRow` for K keypoints."""
    return pa.schema(
        [
            ("source", pa.string()),
            ("scene", pa.string()),
            ("camera", pa.string()),
            ("frame", pa.int64()),
            ("split", pa.string()),
            ("recipe", pa.string()),
            ("copy", pa.int32()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("image", pa.binary()),
            ("keypoints", pa.list_(pa.float32(), 3 * num_keypoints)),
            ("bbox_xyxy", pa.list_(pa.float32(), 4)),
            ("num_visible", pa.int32()),
            ("affine", pa.list_(pa.float64(), 6)),
            ("seed", pa.uint64()),
        ]
    )
