"""Decide every part of a store, before anything is written."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from kp_ray.augmentation.recipes import Recipe, resolve_recipes
from kp_ray.augmentation.variants import Source
from kp_ray.config.schema import AugmentConfig, Config
from kp_ray.data.annotations import Annotations
from kp_ray.data.load import load_labels
from kp_ray.data.split import check_lineage, split_sources, split_units
from kp_ray.errors import StoreError
from kp_ray.storage import file_sizes
from kp_ray.store.manifest import SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Part:
    """A part to be written: the recipe over one run of sources."""

    path: str
    recipe: Recipe
    copies: int
    split: Literal["train", "val"]


@dataclass(frozen=True, slots=True)
class Run:
    """One task's share: a run of sources and its parts."""

    sources: tuple[Source, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Plan:
    """All that a store will hold, and how its rows are made.

    `absent` are sources without a file, `units` is what the split kept whole, by side.
    """

    store: str
    images: str
    skeleton: tuple[str, ...]
    seed: int
    augment: AugmentConfig
    recipes: tuple[tuple[Recipe, int], ...]
    runs: tuple[Run, ...]
    units: dict[str, tuple[str, ...]]
    absent: frozenset[str]


def plan(config: Config) -> Plan:
    """The plan of a config's store: labels read and corrected, split, and every part decided.

    Raises:
        StoreError: labels, images, split or recipes do not do.
    """
    annotations = load_labels(config)
    seed = config.seed if config.split.seed is None else config.split.seed
    by = config.split.by
    splits = split_sources(annotations, by=by, fraction=config.split.fraction, seed=seed)
    check_lineage(split_units(annotations, by), splits, annotations.images)
    images = config.require_input("images")
    return plan_store(config.path("store"), images, annotations, splits, by, config.augment, config.seed)


def plan_store(
    store: str,
    images: str,
    annotations: Annotations,
    splits: Sequence[str],
    by: Literal["scene", "clip", "frame"],
    augment: AugmentConfig,
    seed: int,
) -> Plan:
    """Decide every part of a store, without touching an image's content.

    Sources in the validation split get only `Original`.

    Raises:
        StoreError: a recipe is unknown, the image folder is missing, or nothing is labelled.
    """
    recipes = tuple(resolve_recipes(augment.recipes, augment.user_recipes))
    if not len(annotations):
        raise StoreError("the annotations name no image: nothing to augment")
    sizes = file_sizes(images)
    runs: list[Run] = []
    wanted_by_split: dict[Literal["train", "val"], tuple[tuple[Recipe, int], ...]]
    wanted_by_split = {"train": recipes, "val": tuple(resolve_recipes(["Original"]))}
    places = annotations.rows or range(len(annotations))
    for split, wanted in wanted_by_split.items():
        chosen = [i for i, of in enumerate(splits) if of == split]
        # By place in the file, so that a dropped or re-split source changes its own run alone.
        for number, rows in groupby(chosen, key=lambda i: places[i] // augment.sources_per_part):
            sources = tuple(
                Source(
                    annotations.images[i],
                    annotations.scenes[i],
                    annotations.cameras[i],
                    annotations.frames[i],
                    split,
                    annotations.keypoints[i],
                )
                for i in rows
            )
            of_sources = _digest(sources, sizes)
            parts = []
            for recipe, copies in wanted:
                decides = [SCHEMA_VERSION, recipe.fingerprint, copies, seed, augment.jpeg_quality, augment.oversize]
                decides += [augment.box_margin_px, annotations.skeleton.names, of_sources]
                fingerprint = hashlib.blake2b(json.dumps(decides).encode(), digest_size=6).hexdigest()
                path = f"recipe={recipe.name}/part-{number:05d}-{fingerprint}.parquet"
                parts.append(Part(path, recipe, copies, split))
            runs.append(Run(sources, tuple(parts)))
    units = {
        split: tuple(
            sorted({unit for unit, of in zip(split_units(annotations, by), splits, strict=True) if of == split})
        )
        for split in ("train", "val")
    }
    absent = frozenset(name for name in annotations.images if name not in sizes)
    return Plan(store, images, annotations.skeleton.names, seed, augment, recipes, tuple(runs), units, absent)


def _digest(sources: Sequence[Source], sizes: dict[str, int]) -> str:
    """A digest of all that sources bring to their rows; an image counts by its name and size in bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        key = [source.name, source.scene, source.camera, source.frame, source.split, sizes.get(source.name)]
        digest.update(json.dumps(key).encode())
        digest.update(np.ascontiguousarray(source.keypoints, dtype="<f8").tobytes())
    return digest.hexdigest()
