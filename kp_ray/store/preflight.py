"""Refuse a plan of which nothing can be written before a cluster starts, and a store that lacks a whole recipe."""

from collections.abc import Iterator

import numpy as np

from kp_ray.augmentation.recipes import Recipe
from kp_ray.augmentation.variants import Source
from kp_ray.data.image_files import refuse_other_spellings, require_any_image
from kp_ray.errors import ConfigError
from kp_ray.storage import file_sizes
from kp_ray.store.layout import has_store
from kp_ray.store.manifest import UNAVAILABLE, UNREADABLE, Manifest, read_manifest, recipe_stage
from kp_ray.store.parts import make_variants
from kp_ray.store.plan import Plan

MAX_TRIES = 16
"""Number of images on which a recipe is tried until it succeeds; a recipe for few of the images can fail on many."""


def check_plan(plan: Plan) -> None:
    """Refuse a plan whose images cannot be used, and recipes that fail on every image on which they are tried.

    The images cannot be used if none has a file, or if a file has the name of one in another spelling.

    Only recipes that can fail are tried: a user's pipeline, and a crop that is not scaled with the frame. Recipes of
    which the store holds rows have succeeded.

    Raises:
        DataError: no labelled image has a file, or the names of some are spelled otherwise than their files.
        ConfigError: a recipe fails on every image.
        StoreError: the manifest is damaged or of another version of kp_ray.
        StorageError: the image folder cannot be read.
    """
    sources = [source for chunk in plan.chunks for source in chunk.sources]
    if plan.absent:
        names, files = [source.name for source in sources], file_sizes(plan.images)
        require_any_image(names, files, plan.images)
        refuse_other_spellings(names, files, plan.images)
    stored: set[str] = set()
    if has_store(plan.store):
        manifest = read_manifest(plan.store)
        num_rows = _train_rows_by_recipe(manifest)
        stored = {recipe.fingerprint for recipe in manifest.recipes if num_rows.get(recipe.name)}
    present = [source for source in sources if source.split == "train" and source.name not in plan.absent]
    for recipe, _ in plan.recipes:
        can_fail = recipe.user_pipeline is not None or (recipe.crop_hw is not None and plan.augment.oversize == "error")
        if can_fail and recipe.fingerprint not in stored:
            _try_recipe(plan, recipe, present)


def _try_recipe(plan: Plan, recipe: Recipe, sources: list[Source]) -> None:
    """Raise a `ConfigError` if a recipe fails on MAX_TRIES images, spread evenly, or on all if there are fewer."""
    reasons: list[str] = []
    for source in _spread(sources):
        variants, refusals = make_variants(plan, source, [(recipe, 1)])
        if variants:
            return
        reasons += [f"{source.name}: {item.reason}" for item in refusals if item.stage not in (UNREADABLE, UNAVAILABLE)]
    if reasons:
        fix = "correct the pipeline" if recipe.user_pipeline is not None else "set augment.oversize=scale"
        raise ConfigError(
            f"augment.recipes: {recipe.name} fails on each of the {len(reasons)} images on which it was tried, e.g. "
            f"{reasons[0]}: {fix}, or leave the recipe out"
        )


def refuse_empty_recipes(manifest: Manifest) -> None:
    """Refuse a store that lacks all rows of a recipe, because the recipe failed on every image.

    Raises:
        ConfigError: there is such a recipe.
    """
    num_rows = _train_rows_by_recipe(manifest)
    for item in manifest.quarantined:
        for recipe, count in num_rows.items():
            if not count and item.stage == recipe_stage(recipe):
                raise ConfigError(
                    f"augment.recipes: {recipe} failed on every image, e.g. {item.source}: {item.reason}: correct the "
                    "recipe, or leave it out"
                )


def _train_rows_by_recipe(manifest: Manifest) -> dict[str, int]:
    """Count the training rows of each recipe that has parts, by the recipe's name."""
    num_rows: dict[str, int] = {}
    for part in manifest.parts:
        if part.split == "train":
            num_rows[part.recipe] = num_rows.get(part.recipe, 0) + part.num_rows
    return num_rows


def _spread(sources: list[Source]) -> Iterator[Source]:
    """Iterate over at most MAX_TRIES of the sources, at equal distances."""
    last = len(sources) - 1
    for index in np.unique(np.linspace(0, last, MAX_TRIES, dtype=int)) if sources else ():
        yield sources[index]
