"""Choose the sources to validate on, by whole scenes, clips or frames: a fixed share of them, or folds.

Frames of one clip are nearly the same image: a frame's labels differ from the next frame's by only 6 to 29 px. If a
model was trained on some frames of a clip, its score on the other frames says nothing. So whole scenes are held out by
default.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from kp_ray.data.annotations import Annotations
from kp_ray.errors import ConfigError, DataError

SplitBy = Literal["scene", "clip", "frame"]
"""Unit whose images are all on one side of a split: a scene, a clip (scene and camera), or a single image."""


def split_sources(annotations: Annotations, *, by: SplitBy, fraction: float, seed: int) -> list[str]:
    """Assign each of N sources to "train" or "val".

    Units are ordered by a hash of the seed and their name, and the first units become "val". Their number is chosen so
    that the held-out share of the sources is as close to `fraction` as possible; at least one unit is held out, and
    never all. The result does not depend on the order of the sources, and few units change sides when a unit is added.

    Args:
        annotations: N sources.
        by: unit whose sources are all on one side.
        fraction: share of the sources to hold out, in [0, 1); 0 holds out none.
        seed: another seed chooses other units.

    Raises:
        ConfigError: all sources belong to one unit, so that none can be held out.
    """
    if fraction <= 0:
        return ["train"] * len(annotations)
    units = name_source_units(annotations, by)
    num_sources: dict[str, int] = {}
    for unit in units:
        num_sources[unit] = num_sources.get(unit, 0) + 1
    if len(num_sources) < 2:
        by_frame = "set split.by=frame, or " if by != "frame" and len(units) > 1 else ""
        raise ConfigError(
            f"split: all {len(units)} sources are one {by}: {by_frame}set split.fraction=0 to train on all"
        )
    ordered_units = sorted(num_sources, key=lambda unit: _hash_unit(unit, seed))
    num_held_out, best_count, best_gap = 0, 0, float("inf")
    for count, unit in enumerate(ordered_units[:-1], start=1):
        num_held_out += num_sources[unit]
        gap = abs(num_held_out - fraction * len(units))
        if gap < best_gap:
            best_count, best_gap = count, gap
    val_units = set(ordered_units[:best_count])
    return ["val" if unit in val_units else "train" for unit in units]


def deal_folds(annotations: Annotations, *, by: SplitBy, num_folds: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """Deal the units of N sources to folds with nearly equal numbers of sources.

    The units are dealt from the largest to the smallest; units with equal numbers of sources are ordered by a hash of
    the seed and their name. Each unit goes to the fold that has the fewest sources so far. So no two folds differ by
    more sources than the largest unit has, and the result does not depend on the order of the sources.

    Args:
        annotations: N sources.
        by: unit whose sources are all in one fold.
        num_folds: number of folds, 2 or more.
        seed: another seed deals other folds.

    Returns:
        The sorted names of each fold's units, as `name_source_units` returns them.

    Raises:
        ConfigError: there are fewer units than folds.
    """
    num_sources = Counter(name_source_units(annotations, by))
    if len(num_sources) < num_folds:
        by_frame = "set split.by=frame, or " if by != "frame" and len(annotations) >= num_folds else ""
        fewer_folds = f"set split.folds to {len(num_sources)} or less, or " if len(num_sources) > 1 else ""
        raise ConfigError(
            f"split.folds: there are not enough units for {num_folds} folds (the sources are of {len(num_sources)} "
            f"{by}s): {by_frame}{fewer_folds}set split.folds to null"
        )
    folds: list[list[str]] = [[] for _ in range(num_folds)]
    sizes = [0] * num_folds
    for unit in sorted(num_sources, key=lambda unit: (-num_sources[unit], _hash_unit(unit, seed))):
        smallest_fold = sizes.index(min(sizes))
        folds[smallest_fold].append(unit)
        sizes[smallest_fold] += num_sources[unit]
    return tuple(tuple(sorted(fold)) for fold in folds)


def _hash_unit(unit: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\0{unit}".encode(), digest_size=16).digest()


def name_source_units(annotations: Annotations, by: SplitBy) -> list[str]:
    """Return the name of the unit of each of N sources: its scene, its scene and camera, or its image."""
    return name_units(annotations.scenes, annotations.cameras, annotations.images, by)


def name_units(scenes: Iterable[str], cameras: Iterable[str], images: Iterable[str], by: SplitBy) -> list[str]:
    """Return the names of the units of N images with these scenes, cameras and names."""
    if by == "scene":
        return list(scenes)
    if by == "clip":
        return [f"{scene}\0{camera}" for scene, camera in zip(scenes, cameras, strict=True)]
    return list(images)


def refuse_leaks(units: Sequence[str], splits: Sequence[str], images: Sequence[str]) -> None:
    """Refuse a split in which one unit, or one image, is both in train and in val.

    Args:
        units: N names of units, from `name_source_units`.
        splits: N sides, "train" or "val".
        images: N names of sources; the variants of one source repeat its name.

    Raises:
        DataError: a unit or an image is on both sides, or a side is neither "train" nor "val".
    """
    unknown_sides = set(splits) - {"train", "val"}
    if unknown_sides:
        raise DataError(f"split: {min(unknown_sides)!r} is not a side of a split: each row is train or val")
    for kind, names in (("image", images), ("unit", units)):
        in_both = _names_in(names, splits, "train") & _names_in(names, splits, "val")
        if in_both:
            more = f" (and {len(in_both) - 1} more)" if len(in_both) > 1 else ""
            name = min(in_both).replace("\0", " camera ")
            raise DataError(f"split: the {kind} {name} is in train and in val{more}: split again by whole {kind}s")


def _names_in(names: Iterable[str], splits: Iterable[str], split: str) -> set[str]:
    return {name for name, name_split in zip(names, splits, strict=True) if name_split == split}
