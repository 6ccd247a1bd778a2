"""The manifest of a finished store, its list of quarantined sources, and the columns of its rows."""

import csv
import hashlib
import io
import json
import re
from typing import Literal, TypedDict

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kp_ray.errors import StoreError
from kp_ray.storage import join, read_bytes, write_bytes
from kp_ray.store.layout import MANIFEST_NAME, QUARANTINE_NAME, find_manifest, former_path

SCHEMA_VERSION = 3
"""Version of the manifest and of the names of a store's files."""
OLDEST_READABLE_SCHEMA = 2
"""Schema of the former layout, which can still be read."""
ROWS_VERSION = 2
"""Version of the rows. It is in the fingerprint of each part, so that a new version rewrites all parts."""
METADATA_KEY = b"kp_ray"
"""Key in a part's Parquet metadata; its value is JSON with the part's quarantined sources."""

Split = Literal["train", "val"]

UNREADABLE, UNAVAILABLE = "read", "open"
"""The steps at which a source fails for all recipes, as values of `Quarantined.stage`. UNREADABLE: its image is invalid
(permanent). UNAVAILABLE: storage failed (retried on the next run)."""


def recipe_stage(recipe: str) -> str:
    """Return the value of `Quarantined.stage` for a source that this recipe cannot use."""
    return f"recipe={recipe}"


class _ManifestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecipeRecord(_ManifestModel):
    """A recipe of the store: its name, number of copies per source, and fingerprint."""

    name: str
    copies: int
    fingerprint: str


class Quarantined(_ManifestModel):
    """A source that could not be used.

    Attributes:
        source: image name.
        stage: the step that failed: reading the image (UNREADABLE or UNAVAILABLE), so that the source has no rows, or
            one recipe (`recipe_stage`), so that the source has no rows of this recipe.
        reason: why the step failed, on one line.
    """

    source: str
    stage: str
    reason: str


class PartRecord(_ManifestModel):
    """A finished part.

    Attributes:
        path: relative to the store.
        recipe: name of the recipe.
        split: "train" or "val".
        num_rows: number of variants.
        num_bytes: size of the file.
        sha256: digest of the file, in hexadecimal digits.
    """

    path: str
    recipe: str
    split: Split
    num_rows: int
    num_bytes: int
    sha256: str


class FoldTable(_ManifestModel):
    """The folds of a store whose config has `split.folds`.

    The rows of the parts do not depend on the folds, so another number of folds rewrites only the manifest. Readers add
    the column `fold` to the rows (`kp_ray.store.read`).

    Attributes:
        by: kind of the units, `split.by`; all images of one unit are in the same fold.
        units: names of the units in each fold, from fold 0.
    """

    by: Literal["scene", "clip", "frame"]
    units: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.units)


class Manifest(_ManifestModel):
    """The contents of a finished store.

    Attributes:
        schema_version: SCHEMA_VERSION of the kp_ray that wrote the store.
        kp_ray: version of the kp_ray that wrote the store.
        seed: `seed` of the config.
        skeleton: names of the K keypoints, in order.
        recipes: recipes of the training sources; the only recipe of validation sources is `Original`.
        num_sources: number of sources with at least one variant.
        num_variants: number of variants, which are the rows of all parts.
        num_rows_by_split: number of rows per split, "train" and "val".
        units: names of the units in each split, "train" and "val"; a unit is a scene, clip or frame (`split.by`).
        folds: the folds; None if a fixed set of sources is held out. With folds the split of every row is "train".
        parts: all parts, in the order in which they are read.
        quarantined: sources that at least one recipe could not use.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")  # stores written before 0.2 also have `settings`

    schema_version: int = Field(default=SCHEMA_VERSION, le=SCHEMA_VERSION)
    kp_ray: str
    seed: int
    skeleton: tuple[str, ...]
    recipes: tuple[RecipeRecord, ...]
    num_sources: int
    num_variants: int
    num_rows_by_split: dict[str, int]
    units: dict[str, tuple[str, ...]]
    folds: FoldTable | None = None
    parts: tuple[PartRecord, ...]
    quarantined: tuple[Quarantined, ...]

    @property
    def has_validation_rows(self) -> bool:
        """True if a member can be evaluated: on the held-out sources, or on the fold that it holds out."""
        return self.folds is not None or self.num_rows_by_split["val"] > 0


class StoredRow(TypedDict, total=False):
    """A row of a store: one variant. Rows that are read with selected columns hold only those columns.

    If the store has folds, the readers add the column `fold`: the number of the fold that contains the source.

    Attributes:
        source: image name.
        scene, camera, frame: scene and camera names and frame number of the source, parsed from the image name.
        split: "train" or "val".
        recipe, copy: name of the recipe, and number of the copy, from 0.
        width, height: size of the variant in pixels.
        image: the variant as a JPEG file.
        keypoints: 3K numbers: x, y, v per keypoint in pixel indices of the variant; v in {0, 1, 2}, NaN x and y where
            unlabelled.
        bbox_xyxy: 4 numbers in pixel indices of the variant: the box around the labelled keypoints, enlarged by
            `augment.box_margin_px` and clipped to the variant.
        num_visible: number of keypoints with v > 0.
        affine: 6 numbers: the (2, 3) matrix, row by row, from the source's pixel indices to the variant's.
        seed: seed of the variant's random parameters.
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
        StoreError: there is no manifest, it is damaged, or a version of kp_ray with an unreadable schema wrote it.
        StorageError: the file cannot be read.
    """
    path = find_manifest(store)
    if path is None:
        raise StoreError(f"{store}: no finished store here: run augment first")
    content = read_bytes(path)
    # Search for the version first, because a manifest of another version may have other keys.
    version_match = re.search(rb'^{\s*"schema_version": *(\d+)', content)
    version = int(version_match[1]) if version_match else SCHEMA_VERSION
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path}: written by a newer kp_ray (schema {version}): update kp_ray")
    if version < OLDEST_READABLE_SCHEMA:
        raise StoreError(
            f"{path}: written by an older kp_ray (schema {version}): delete this file and run augment, which rewrites "
            "all parts"
        )
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise StoreError(
            f"{path}: damaged: delete this file and run augment again, which keeps finished parts"
        ) from error


def write_manifest(store: str, manifest: Manifest) -> None:
    """Write `_quarantine.csv`, then `_manifest.json`, whose existence marks the store as finished.

    Raises:
        StorageError: the disk is full, or the storage does not answer or denies access.
    """
    text = io.StringIO()
    quarantine = csv.DictWriter(text, list(Quarantined.model_fields), lineterminator="\n")
    quarantine.writeheader()
    quarantine.writerows(item.model_dump() for item in manifest.quarantined)
    write_bytes(join(store, QUARANTINE_NAME), text.getvalue().encode())
    write_bytes(join(store, MANIFEST_NAME), (manifest.model_dump_json(indent=1) + "\n").encode())


def store_digest(store: str) -> str:
    """Compute one SHA-256 from a store's seed, keypoint names, parts and folds.

    Any changed byte of a row changes the digest. The former layout (schema 2) and the current layout have the same
    digest, so that members remain usable after `augment` has converted their store.

    Raises:
        StoreError: there is no finished store.
    """
    manifest = read_manifest(store)
    parts = [[former_path(part.path), part.sha256, part.split] for part in manifest.parts]
    folds = [manifest.folds.model_dump()] if manifest.folds else []
    return hashlib.sha256(json.dumps([manifest.seed, manifest.skeleton, parts, *folds]).encode()).hexdigest()


def row_schema(num_keypoints: int) -> pa.Schema:
    """Return the Arrow schema of `StoredRow` for K keypoints."""
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
