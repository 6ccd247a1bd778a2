"""What a finished store holds: schema, manifest, parts, quarantine."""

import hashlib
import json
import re
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from kp_ray.errors import StoreError
from kp_ray.storage import exists, join, read_bytes, write_bytes, write_parquet

SCHEMA_VERSION = 2
METADATA_KEY = b"kp_ray"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecipeRecord(_Record):
    """A recipe of the store."""

    name: str
    copies: int
    fingerprint: str


READ, OPEN = "read", "open"
"""The stages at which a picture itself is refused, and at which storage gives none; the latter may pass."""


def stage_of(recipe: str) -> str:
    """The stage at which a recipe refuses a picture."""
    return f"recipe={recipe}"


class Quarantined(_Record):
    """A source that a recipe, or at the stages `read` and `open` every recipe, could not use."""

    source: str
    stage: str
    reason: str


class PartRecord(_Record):
    """A finished Parquet file; `path` is relative to the store."""

    path: str
    recipe: str
    split: Literal["train", "val"]
    num_rows: int
    num_bytes: int
    sha256: str


class Manifest(_Record):
    """What a finished store holds."""

    schema_version: int = SCHEMA_VERSION
    kp_ray: str
    seed: int
    skeleton: tuple[str, ...]
    settings: dict[str, Any]
    recipes: tuple[RecipeRecord, ...]
    num_sources: int
    num_variants: int
    num_rows_by_split: dict[str, int]
    units: dict[str, tuple[str, ...]]
    parts: tuple[PartRecord, ...]
    quarantined: tuple[Quarantined, ...]


def read_manifest(store: str) -> Manifest:
    """The manifest of a finished store.

    Raises:
        StoreError: there is none, it is damaged, or a newer kp_ray wrote it.
    """
    path = join(store, "manifest.json")
    if not exists(path):
        raise StoreError(f"{store}: no finished store here; run augment first")
    content = read_bytes(path)
    try:
        manifest = Manifest.model_validate_json(content)
        version = manifest.schema_version
    except ValidationError as error:
        newer = re.search(rb'^{\s*"schema_version": *(\d+)', content)
        version = int(newer[1]) if newer else 0
        if 0 < version < SCHEMA_VERSION:
            raise StoreError(
                f"{path}: of an older kp_ray (schema {version}); delete this file and run augment, which makes all anew"
            ) from error
        if version <= SCHEMA_VERSION:
            raise StoreError(
                f"{path}: damaged; delete this file and run augment again, finished parts are kept"
            ) from error
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path}: written by a newer kp_ray (schema {version}); update kp_ray")
    return manifest


def write_manifest(store: str, manifest: Manifest) -> None:
    """Write the manifest and `quarantine.parquet` beside it."""
    schema = pa.schema([("source", pa.string()), ("stage", pa.string()), ("reason", pa.string())])
    table = pa.Table.from_pylist([q.model_dump() for q in manifest.quarantined], schema=schema)
    write_parquet(join(store, "quarantine.parquet"), table)
    write_bytes(join(store, "manifest.json"), (manifest.model_dump_json(indent=1) + "\n").encode())


def store_digest(store: str) -> str:
    """A digest of all bytes of a store's parts and their order.

    Raises:
        StoreError: no finished store.
    """
    manifest = read_manifest(store)
    parts = [[part.path, part.sha256, part.split] for part in manifest.parts]
    return hashlib.sha256(json.dumps([manifest.seed, manifest.skeleton, parts]).encode()).hexdigest()


def row_schema(num_keypoints: int) -> pa.Schema:
    """The columns of a store's rows."""
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
