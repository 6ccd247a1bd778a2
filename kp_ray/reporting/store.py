"""Section "Store": the variants by recipe, an example of each recipe, and the quarantined sources."""

from dataclasses import dataclass

from kp_ray.config.schema import Config
from kp_ray.reporting.formatting import jpeg_uri
from kp_ray.reporting.run_files import RunFiles
from kp_ray.reporting.samples import VariantSample
from kp_ray.store.manifest import Manifest, Quarantined, RecipeRecord


@dataclass(frozen=True)
class RecipeRow:
    """A recipe of the store.

    Attributes:
        record: the manifest's entry for the recipe.
        num_variants: number of variants.
        num_parts: number of parts.
        num_bytes: size of the parts in bytes.
        mean_visible: mean number of keypoints inside the image; None if no part could be read.
        share_too_few: share of variants with fewer than `augment.min_visible` keypoints inside the image; None if no
            part could be read.
        example_uri: `data:` URI of a variant with its skeleton; None if no part could be read.
    """

    record: RecipeRecord
    num_variants: int
    num_parts: int
    num_bytes: int
    mean_visible: float | None
    share_too_few: float | None
    example_uri: str | None


@dataclass(frozen=True)
class StoreSection:
    """The store.

    Attributes:
        num_sources: number of sources.
        num_variants: number of variants.
        num_bytes: size of all parts in bytes.
        recipes: one row per recipe, in the manifest's order.
        min_visible: the setting `augment.min_visible`.
        unreadable_parts: paths of the sampled parts that could not be read.
        num_quarantined: number of sources that at least one recipe could not use.
        quarantined: source, stage and reason of each failure.
    """

    num_sources: int
    num_variants: int
    num_bytes: int
    recipes: tuple[RecipeRow, ...]
    min_visible: int
    unreadable_parts: tuple[str, ...]
    num_quarantined: int
    quarantined: tuple[Quarantined, ...]


def store_section(config: Config, files: RunFiles) -> StoreSection | None:
    """Build the section; None without a store."""
    manifest = files.manifest
    if manifest is None:
        return None
    min_visible = config.augment.min_visible
    recipes = [
        _recipe_row(manifest, recipe, files.samples.get(recipe.name), min_visible) for recipe in manifest.recipes
    ]
    return StoreSection(
        num_sources=manifest.num_sources,
        num_variants=manifest.num_variants,
        num_bytes=sum(part.num_bytes for part in manifest.parts),
        recipes=tuple(recipes),
        min_visible=min_visible,
        unreadable_parts=tuple(path for sample in files.samples.values() for path in sample.unreadable_parts),
        num_quarantined=len({row.source for row in manifest.quarantined}),
        quarantined=manifest.quarantined,
    )


def _recipe_row(manifest: Manifest, recipe: RecipeRecord, sample: VariantSample | None, min_visible: int) -> RecipeRow:
    parts = [part for part in manifest.parts if part.recipe == recipe.name]
    num_visible = sample.is_visible.sum(axis=1) if sample is not None and len(sample.keypoints) else None
    return RecipeRow(
        record=recipe,
        num_variants=sum(part.num_rows for part in parts),
        num_parts=len(parts),
        num_bytes=sum(part.num_bytes for part in parts),
        mean_visible=None if num_visible is None else float(num_visible.mean()),
        share_too_few=None if num_visible is None else float((num_visible < min_visible).mean()),
        example_uri=jpeg_uri(sample.example) if sample is not None and sample.example is not None else None,
    )
