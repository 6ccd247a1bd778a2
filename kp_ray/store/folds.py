"""Show a store with folds as a member sees it: one fold is held out, the other folds are for training.

A store with folds holds every recipe of every source. The manifest's table gives the fold of each unit (scene, clip or
frame); a row's unit follows from its scene, camera and source.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kp_ray.config.schema import Config
from kp_ray.data.split import name_units
from kp_ray.errors import StoreError
from kp_ray.store.manifest import FoldTable, Manifest, read_manifest

FOLD_COLUMNS = ("source", "scene", "camera", "recipe", "copy")
"""Columns of a part that decide a row's fold and split."""
VALIDATION_RECIPE_NAME = "Original"
"""Name of the recipe of validation rows. They have no other recipe, because scores must not depend on augmentation."""


def check_held_out_fold(config: Config, member: str) -> int | None:
    """Check the store's number of folds; return the fold that a member holds out, or None without `split.folds`.

    Raises:
        StoreError: there is no finished store, or its number of folds is not the config's.
    """
    check_num_folds(config, read_manifest(config.path("store")))
    return config.held_out_fold(member)


def check_num_folds(config: Config, manifest: Manifest) -> None:
    """Refuse a store whose number of folds is not the config's.

    Raises:
        StoreError: the numbers of folds differ.
    """
    num_stored = len(manifest.folds) if manifest.folds else None
    if num_stored != config.split.folds:
        raise StoreError(
            f"split.folds: differs from the store's number of folds, {num_stored or 0} (got "
            f"{'null' if config.split.folds is None else config.split.folds}): run augment, which keeps every part "
            "that stays the same, or restore the setting"
        )


def refuse_fold_leaks(store: str, folds: FoldTable) -> None:
    """Refuse folds if two of them hold the same unit.

    Raises:
        StoreError: a unit is in two folds; the message names it.
    """
    seen_units: set[str] = set()
    for units in folds.units:
        if leaked_units := sorted(seen_units & set(units)):
            raise StoreError(f"{store}: {leaked_units[0]} is in two folds: augment into a new run_dir")
        seen_units |= set(units)


def select_rows(
    table: pa.Table, folds: FoldTable, *, split: str | None, fold: int | None
) -> tuple[pa.Table, npt.NDArray[np.intp]]:
    """Select the rows that belong to a split if one fold is held out, and add the column `fold`.

    Args:
        table: rows with at least the columns of FOLD_COLUMNS.
        folds: the store's folds.
        split: "train" selects the rows of the other folds; "val" selects one row of the recipe Original per source of
            the held-out fold; None selects both.
        fold: fold that is held out; None: no fold, so that every row is a training row.

    Returns:
        The selected rows, with the column `split` set for this held-out fold, and their indices in `table`.

    Raises:
        StoreError: the unit of a row is in no fold.
    """
    row_folds = find_row_folds(table, folds)
    is_held_out = row_folds == fold  # all False if `fold` is None
    is_val = is_held_out & is_validation_row(table)
    if split is not None:
        indices = np.flatnonzero(is_val if split == "val" else ~is_held_out)
    else:
        indices = np.flatnonzero(is_val | ~is_held_out)
    table = table.append_column("fold", pa.array(row_folds, pa.int32()))
    if "split" in table.column_names:
        splits = pa.array(np.where(is_held_out, "val", "train").tolist(), pa.string())
        table = table.set_column(table.column_names.index("split"), "split", splits)
    return table.take(indices), indices


def is_validation_row(table: pa.Table) -> npt.NDArray[np.bool_]:
    """Return (N,) whether a row with the columns of FOLD_COLUMNS is the validation row of its source."""
    is_original = np.array(table["recipe"].to_pylist()) == VALIDATION_RECIPE_NAME
    return np.asarray(is_original & (table["copy"].to_numpy() == 0))


def find_row_folds(table: pa.Table, folds: FoldTable) -> npt.NDArray[np.int32]:
    """Return the fold numbers (N,) of N rows with the columns of FOLD_COLUMNS.

    Raises:
        StoreError: the unit of a row is in no fold.
    """
    scenes, cameras, sources = (table[name].to_pylist() for name in ("scene", "camera", "source"))
    units = name_units(scenes, cameras, sources, folds.by)
    fold_by_unit = _fold_by_unit(folds)
    for unit in units:
        if unit not in fold_by_unit:
            raise StoreError(
                f"split.folds: the manifest lists no fold for {unit!r}: run augment, which gives it a fold"
            )
    return np.array([fold_by_unit[unit] for unit in units], dtype=np.int32)


@lru_cache(maxsize=4)
def _fold_by_unit(folds: FoldTable) -> dict[str, int]:
    return {unit: fold for fold, units in enumerate(folds.units) for unit in units}
