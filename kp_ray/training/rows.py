"""List the rows of the store on which a member trains."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa

from kp_ray.config.schema import Config
from kp_ray.config.training import MemberConfig
from kp_ray.errors import StoreError
from kp_ray.keypoints import CONTINUOUS_OFFSET
from kp_ray.storage import join
from kp_ray.store.folds import check_held_out_fold
from kp_ray.store.manifest import Manifest
from kp_ray.store.read import read_part_rows, select_parts

Item = TypeVar("Item")
_REFERENCE_SCHEMA = pa.schema([("path", pa.string()), ("row", pa.int64()), ("is_wide", pa.bool_())])
_SELECTION_COLUMNS = ("num_visible", "bbox_xyxy", "width", "height")
_MIN_BOX_SIDE_PX = 0.01
"""Shorter sides can become 0 when the image is resized and the box rounded to 32 bits. A box without an area makes the
loss of the region proposals infinite, because it contains the logarithm of the side."""


def select_training_parts(
    store: str, recipes: Sequence[str] | None, fold: int | None = None
) -> tuple[Manifest, list[str]]:
    """Select the parts with the training rows of some recipes, as `select_parts` does.

    Raises:
        StoreError: see `select_parts`; a recipe is not stored, or only for validation, as `Original` can be.
    """
    manifest, paths = select_parts(store, split="train", recipes=recipes, fold=fold)
    stored_recipes = sorted({part.recipe for part in manifest.parts if part.split == "train"})
    missing_recipe = next((name for name in recipes or () if name not in stored_recipes), None)
    if missing_recipe is not None:
        choice = ", ".join(stored_recipes)
        raise StoreError(f"{store}: holds no recipe {missing_recipe!r} for training: choose from {choice}")
    return manifest, paths


def usable_rows(config: Config, member: MemberConfig) -> pa.Table:
    """List the store's rows that a member trains on: those with enough visible keypoints and a box with an area.

    Returns:
        References to rows: `path` of the part, `row` in the part, and `is_wide`, true for an image wider than high.

    Raises:
        StoreError: there is no finished store, or it does not hold a recipe of the member.
        StorageError: a part is missing or damaged.
    """
    min_visible = max(1, config.augment.min_visible)
    tables = _read_training_rows(
        config, member, lambda path, table, row_numbers: _list_usable(path, table, row_numbers, min_visible)
    )
    return pa.concat_tables([_REFERENCE_SCHEMA.empty_table(), *tables])


def count_rows(config: Config, member: MemberConfig) -> int:
    """Count the training rows of a member's recipes, including those that `usable_rows` leaves out.

    Raises:
        StoreError: there is no finished store, or it does not hold a recipe of the member.
    """
    store, recipes = config.path("store"), member.recipes or config.train.recipes
    manifest, paths = select_training_parts(store, recipes)
    if manifest.folds is not None:
        return sum(_read_training_rows(config, member, lambda path, table, row_numbers: len(row_numbers)))
    selected_paths = set(paths)
    return sum(part.num_rows for part in manifest.parts if join(store, part.path) in selected_paths)


def _read_training_rows(
    config: Config, member: MemberConfig, convert: Callable[[str, pa.Table, Sequence[int]], Item]
) -> list[Item]:
    """Read a member's training rows, without the fold that it holds out, and return a result per part.

    Args:
        config: the run's configuration.
        member: the member.
        convert: makes a part's result from the part's path, its training rows and their numbers in the part.
    """
    fold = check_held_out_fold(config, member.name)
    recipes = member.recipes or config.train.recipes
    manifest, paths = select_training_parts(config.path("store"), recipes, fold)

    def read(path: str) -> Item:
        return convert(path, *read_part_rows(path, _SELECTION_COLUMNS, folds=manifest.folds, split="train", fold=fold))

    with ThreadPoolExecutor() as pool:
        return list(pool.map(read, paths))


def _list_usable(path: str, table: pa.Table, row_numbers: Sequence[int], min_visible: int) -> pa.Table:
    """Return references to the usable rows of a table; `row_numbers` gives the number of each row in its part."""
    boxes = np.array(table["bbox_xyxy"].to_pylist()).reshape(-1, 4)
    width, height = table["width"].to_numpy(), table["height"].to_numpy()
    # Training clips the box to the image, whose last pixel ends half a pixel after its index.
    ends = np.minimum(boxes[:, 2:], np.column_stack([width, height]) - CONTINUOUS_OFFSET)
    has_area = (ends - boxes[:, :2] >= _MIN_BOX_SIDE_PX).all(axis=1)
    usable = np.flatnonzero((table["num_visible"].to_numpy() >= min_visible) & has_area)
    is_wide = width[usable] > height[usable]
    usable_numbers = np.array(row_numbers, dtype=np.int64)[usable]
    columns = {"path": [path] * len(usable), "row": usable_numbers, "is_wide": is_wide}
    return pa.table(columns, schema=_REFERENCE_SCHEMA)
