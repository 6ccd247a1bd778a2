"""Which sources train and which validate, and the guard that no unit stands on both sides.

Frames of one clip are nearly the same picture: copying the next frame's label is within 6-29 px. So whole scenes are
held out by default, and a score on frames of a training clip measures nothing.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

from kp_ray.data.annotations import Annotations
from kp_ray.errors import DataError

By = Literal["scene", "clip", "frame"]


def split_sources(annotations: Annotations, *, by: By, fraction: float, seed: int) -> list[str]:
    """The side, train or val, of each of N sources.

    Units (scenes; clips, which are scene and camera; or single images) are ordered by a hash of the seed and their
    name, and the first ones validate: as many as bring the share of sources closest to `fraction`, at least one and
    never all. The result does not depend on the order of the rows, and one more unit moves few of the others.

    Args:
        annotations: N sources.
        by: what stays whole.
        fraction: share of the sources to hold out, in [0, 1); 0 holds out none.
        seed: another seed, another choice.

    Raises:
        DataError: there is only one unit, so nothing can be held out.
    """
    if fraction <= 0:
        return ["train"] * len(annotations)
    units = split_units(annotations, by)
    sizes: dict[str, int] = {}
    for unit in units:
        sizes[unit] = sizes.get(unit, 0) + 1
    if len(sizes) < 2:
        finer = "set split.by=frame, or " if by != "frame" and len(units) > 1 else ""
        raise DataError(f"split: all {len(units)} sources are one {by}: {finer}set split.fraction=0 to train on all")
    ordered = sorted(sizes, key=lambda unit: hashlib.blake2b(f"{seed}\0{unit}".encode(), digest_size=16).digest())
    held, best, best_gap = 0, 0, float("inf")
    for count, unit in enumerate(ordered[:-1], start=1):
        held += sizes[unit]
        gap = abs(held - fraction * len(units))
        if gap < best_gap:
            best, best_gap = count, gap
    validating = set(ordered[:best])
    return ["val" if unit in validating else "train" for unit in units]


def split_units(annotations: Annotations, by: By) -> list[str]:
    """The unit of each of N sources: its scene, its scene and camera, or its image name."""
    if by == "scene":
        return list(annotations.scenes)
    if by == "clip":
        return [f"{scene}\0{camera}" for scene, camera in zip(annotations.scenes, annotations.cameras, strict=True)]
    return list(annotations.images)


def check_lineage(units: Sequence[str], splits: Sequence[str], images: Sequence[str]) -> None:
    """Refuse rows of which one unit, or one image, is both trained on and validated on.

    Args:
        units: N names of what must stay whole, e.g. scenes (`split_units`).
        splits: N of "train" or "val".
        images: N source names; a store's variants of one source repeat it.

    Raises:
        DataError: naming the first unit or image on both sides, or a split of another name.
    """
    unknown = set(splits) - {"train", "val"}
    if unknown:
        raise DataError(f"split: {min(unknown)!r} is not a split: each row is train or val")
    for kind, names in (("image", images), ("unit", units)):
        both = _sides(names, splits, "train") & _sides(names, splits, "val")
        if both:
            more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
            name = min(both).replace("\0", " camera ")
            raise DataError(f"split: the {kind} {name} is in train and in val{more}: split again by a whole {kind}")


def _sides(names: Iterable[str], splits: Iterable[str], side: str) -> set[str]:
    return {name for name, split in zip(names, splits, strict=True) if split == side}
