"""Refuse images and recipes that would fail, before a cluster starts; refuse a store in which a recipe has no rows."""

from kp_ray.augmentation.recipes import Recipe
from kp_ray.augmentation.variants import Source
from kp_ray.data.image_files import refuse_other_spellings, require_any_image
from kp_ray.errors import ConfigError
from kp_ray.storage import file_sizes
from kp_ray.store.layout import current_path, has_store
from kp_ray.store.manifest import UNAVAILABLE, UNREADABLE, Manifest, read_manifest, recipe_stage
from kp_ray.store.parts import make_variants, sample_evenly
from kp_ray.store.plan import Plan

MAX_TRIED_IMAGES = 16
"""Maximum number of images on which a recipe is tried. It passes if it works on one of them, because a recipe that is
meant for few images fails on the others."""


def check_plan(plan: Plan) -> None:
    """Refuse a plan without any image file or with a misspelt image name, and recipes that fail on every image tried.

    Only two kinds of recipes can fail, and only these are tried: a user's pipeline, and a crop of fixed size with
    `augment.oversize: error`, which fails on a smaller frame. A recipe is not tried if the store has rows of it that
    stay.

    Raises:
        DataError: no labelled image has a file, or a file's name is another spelling of a labelled image's name.
        ConfigError: a recipe fails on every image on which it is tried.
        StoreError: the manifest is damaged, or another version of kp_ray wrote it.
        StorageError: the image folder cannot be read.
    """
    sources = [source for chunk in plan.chunks for source in chunk.sources]
    if plan.sources_without_image:
        names, files = [source.name for source in sources], file_sizes(plan.images)
        require_any_image(names, files, plan.images)
        refuse_other_spellings(names, files, plan.images)
    stored_paths: set[str] = set()
    if has_store(plan.store):
        stored_paths = {current_path(part.path) for part in read_manifest(plan.store).parts if part.num_rows}
    recipes_with_rows = {part.recipe.name for part in plan.parts() if part.path in stored_paths}
    train_sources = [source for source in sources if source.split == "train"]
    train_sources = [source for source in train_sources if source.name not in plan.sources_without_image]
    for recipe, _ in plan.recipes:
        can_fail = recipe.user_pipeline is not None or (recipe.crop_hw is not None and plan.augment.oversize == "error")
        if can_fail and recipe.name not in recipes_with_rows:
            _try_recipe(plan, recipe, train_sources)


def _try_recipe(plan: Plan, recipe: Recipe, sources: list[Source]) -> None:
    """Raise a `ConfigError` if a recipe fails on every image of an evenly spaced sample of `sources`."""
    reasons: list[str] = []
    for source in sample_evenly(sources, MAX_TRIED_IMAGES):
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
    """Refuse a store in which a recipe has no rows, because it failed on every image.

    Raises:
        ConfigError: a recipe has no rows.
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
