"""Plan every part of a store before anything is written.

A part holds one recipe applied to one chunk of consecutive sources. Its name contains a fingerprint of the settings,
labels and image file sizes that decide its rows, so an existing part with this name can be reused.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import numpy as np

from kp_ray.augmentation.recipes import RECIPES, Recipe, resolve_recipes
from kp_ray.augmentation.variants import Source
from kp_ray.config.schema import AugmentConfig, Config
from kp_ray.data.annotations import Annotations
from kp_ray.data.load import load_labels
from kp_ray.data.split import deal_folds, name_source_units, refuse_leaks, split_sources
from kp_ray.errors import DataError
from kp_ray.fingerprint import digest
from kp_ray.storage import file_sizes
from kp_ray.store.layout import part_path
from kp_ray.store.manifest import ROWS_VERSION, FoldTable, Split

RecipeCopies = tuple[tuple[Recipe, int], ...]
"""Recipes with their numbers of copies."""
VALIDATION_RECIPES: RecipeCopies = ((RECIPES["Original"], 1),)
"""Recipes of validation sources: only the original, because scores must not depend on augmentation."""


@dataclass(frozen=True, slots=True)
class Part:
    """A planned part: `copies` variants of one recipe for each source of a chunk; `path` is relative to the store."""

    path: str
    recipe: Recipe
    copies: int
    split: Split


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive sources of one split, and their parts, one per recipe; one task writes a chunk."""

    sources: tuple[Source, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Plan:
    """The contents that a store will have, and the settings that decide its rows.

    Attributes:
        store: local path or URL of the store.
        images: local path or URL of the folder of source images.
        skeleton: names of the K keypoints, in order.
        seed: `seed` of the config.
        augment: section `augment` of the config.
        recipes: recipes of the training sources.
        chunks: all chunks, in the order of the manifest.
        units: for "train" and for "val", the names of the units in that split; `split.by` says whether a unit is a
            scene, a clip or a frame.
        sources_without_image: names of the sources whose image file is missing.
        folds: the units in each fold; None without `split.folds`. The rows do not depend on the folds.
    """

    store: str
    images: str
    skeleton: tuple[str, ...]
    seed: int
    augment: AugmentConfig
    recipes: RecipeCopies
    chunks: tuple[Chunk, ...]
    units: dict[str, tuple[str, ...]]
    sources_without_image: frozenset[str]
    folds: FoldTable | None = None

    def recipes_for_split(self, split: Split) -> RecipeCopies:
        """Return the recipes of the sources of a split."""
        return self.recipes if split == "train" else VALIDATION_RECIPES

    def parts(self) -> Iterator[Part]:
        """Iterate over the parts of all chunks, in the order of the manifest."""
        return (part for chunk in self.chunks for part in chunk.parts)


def make_plan(config: Config) -> Plan:
    """Read the labels, split the sources, and plan every part of a config's store.

    Raises:
        ConfigError: data.annotations or data.images is not set, or a recipe is unknown.
        DataError: the labels, corrections or split cannot be used.
        StorageError: a file or folder cannot be read.
    """
    annotations = load_labels(config)
    split_seed = config.seed if config.split.seed is None else config.split.seed
    split_by, num_folds = config.split.by, config.split.folds
    if num_folds is not None:
        units = deal_folds(annotations, by=split_by, num_folds=num_folds, seed=split_seed)
        folds, splits = FoldTable(by=split_by, units=units), ["train"] * len(annotations)
    else:
        folds, splits = None, split_sources(annotations, by=split_by, fraction=config.split.fraction, seed=split_seed)
        refuse_leaks(name_source_units(annotations, split_by), splits, annotations.images)
    images = config.require_input("images")
    plan = plan_store(config.path("store"), images, annotations, splits, split_by, config.augment, config.seed)
    return replace(plan, folds=folds)


def plan_store(
    store: str,
    images: str,
    annotations: Annotations,
    splits: Sequence[str],
    split_by: Literal["scene", "clip", "frame"],
    augment: AugmentConfig,
    seed: int,
) -> Plan:
    """Plan every part of a store from the labels and from the names and sizes of the image files.

    Args:
        store: local path or URL of the store.
        images: local path or URL of the folder of source images.
        annotations: labels of N sources.
        splits: (N,) "train" or "val" for each source; a validation source gets only `Original`.
        split_by: kind of the units; all images of one unit are in the same split.
        augment: section `augment` of the config.
        seed: `seed` of the config.

    Raises:
        ConfigError: a recipe is unknown.
        DataError: there is no labelled image.
        StorageError: the image folder is missing.
    """
    recipes = tuple(resolve_recipes(augment.recipes, augment.user_recipes))
    if not len(annotations):
        raise DataError("data.annotations: no labelled image is left: add labels, or drop fewer images")
    sizes = file_sizes(images)
    chunks: list[Chunk] = []
    recipes_by_split: dict[Split, RecipeCopies] = {"train": recipes, "val": VALIDATION_RECIPES}
    for split, split_recipes in recipes_by_split.items():
        for number, sources in _cut_chunks(annotations, splits, split, augment.sources_per_part):
            sources_digest = _digest_sources(sources, sizes)
            parts = []
            for recipe, copies in split_recipes:
                fingerprint_fields = [
                    ROWS_VERSION,
                    recipe.fingerprint,
                    copies,
                    seed,
                    augment.jpeg_quality,
                    augment.oversize,
                    augment.box_margin_px,
                    annotations.skeleton.names,
                    sources_digest,
                ]
                name = f"part-{number:05d}-{digest(fingerprint_fields, 6)}.parquet"
                parts.append(Part(part_path(recipe.name, name), recipe, copies, split))
            chunks.append(Chunk(sources, tuple(parts)))
    unit_splits = set(zip(name_source_units(annotations, split_by), splits, strict=True))
    units = {
        split: tuple(sorted(unit for unit, unit_split in unit_splits if unit_split == split))
        for split in ("train", "val")
    }
    sources_without_image = frozenset(name for name in annotations.images if name not in sizes)
    keypoint_names = annotations.skeleton.names
    return Plan(store, images, keypoint_names, seed, augment, recipes, tuple(chunks), units, sources_without_image)


def _cut_chunks(
    annotations: Annotations, splits: Sequence[str], split: Split, rows_per_block: int
) -> Iterator[tuple[int, tuple[Source, ...]]]:
    """Yield (number, sources) for each chunk of a split; the number becomes part of the names of the chunk's files.

    The labels file is cut into blocks of `rows_per_block` rows. A chunk holds a block's sources that are in this split
    and were not dropped, so dropping a source changes only the parts of its own chunk.
    """
    label_rows = annotations.rows or range(len(annotations))
    indices = [index for index, source_split in enumerate(splits) if source_split == split]
    for number, chunk_indices in groupby(indices, key=lambda index: label_rows[index] // rows_per_block):
        yield (
            number,
            tuple(
                Source(
                    annotations.images[index],
                    annotations.scenes[index],
                    annotations.cameras[index],
                    annotations.frames[index],
                    split,
                    annotations.keypoints[index],
                )
                for index in chunk_indices
            ),
        )


def _digest_sources(sources: Sequence[Source], sizes: dict[str, int]) -> str:
    """Digest everything about the sources that decides their variants.

    The digest contains the size of an image file, not its pixels, so that planning opens no image. The keypoints are
    hashed as bytes, because hashing them as JSON (`fingerprint.digest`) is much slower.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for source in sources:
        fields = [source.name, source.scene, source.camera, source.frame, source.split, sizes.get(source.name)]
        hasher.update(json.dumps(fields).encode())
        hasher.update(np.ascontiguousarray(source.keypoints, dtype="<f8").tobytes())
    return hasher.hexdigest()
