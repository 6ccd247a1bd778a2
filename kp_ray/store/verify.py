"""Verify a store: compare its parts with their recorded digests, and a sample of its rows with remade rows."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from kp_ray.storage import delete_file, exists, hash_file, join, writer_lock
from kp_ray.store.layout import current_path
from kp_ray.store.manifest import UNAVAILABLE, UNREADABLE, PartRecord, read_manifest
from kp_ray.store.parts import make_variants, sample_evenly
from kp_ray.store.plan import Chunk, Plan
from kp_ray.store.read import read_part

NUM_SAMPLES = 8
"""Number of chunks whose rows `verify_store` compares."""


def verify_store(plan: Plan) -> list[str]:
    """Compare every part with its recorded digest, and a sample of rows with rows remade from the sources.

    Damaged parts are deleted, so that the next `augment` rewrites them. Only if no part is damaged, the rows of one
    source of each of `NUM_SAMPLES` chunks are compared, which are spread evenly.

    Args:
        plan: the contents that the store should have.

    Returns:
        One line per problem; empty if the store is sound.

    Raises:
        StoreError: there is no finished store.
        RunStateError: a part is damaged while another process writes or reads the store, so that it is not deleted.
        StorageError: a part cannot be read.
    """
    manifest = read_manifest(plan.store)
    problems: list[str] = []
    with ThreadPoolExecutor() as pool:
        damages = list(pool.map(lambda part: _find_damage(plan.store, part), manifest.parts))
    damaged_parts = [part for part, damage in zip(manifest.parts, damages, strict=True) if damage]
    if damaged_parts:
        with writer_lock(plan.store):  # without the lock, a part that is being rewritten could be deleted
            manifest = read_manifest(plan.store)  # `augment` may have rewritten or removed parts meanwhile
            damaged_paths = {part.path for part in damaged_parts}
            parts = [part for part in manifest.parts if part.path in damaged_paths]
            damage_by_path = {part.path: _delete_if_damaged(plan.store, part) for part in parts}
            problems = [f"{path}: {damage}" for path, damage in damage_by_path.items() if damage]
    if problems:
        return problems
    # Parts are compared by their current paths, because the plan has no paths of the former layout.
    stored_paths = {current_path(part.path): part.path for part in manifest.parts}
    planned_paths = {part.path for part in plan.parts()}
    if stored_paths.keys() != planned_paths:
        num_different = len(stored_paths.keys() ^ planned_paths)
        return [f"{plan.store}: {num_different} parts are missing, or were made with another config: run augment"]
    if manifest.folds != plan.folds:
        return [f"{plan.store}: its folds were made with another config: run augment, which keeps the parts"]
    unusable_sources = {item.source for item in manifest.quarantined if item.stage in (UNREADABLE, UNAVAILABLE)}
    for chunk in sample_evenly(plan.chunks, NUM_SAMPLES):
        problems += _compare_rows(plan, chunk, stored_paths, unusable_sources)
    return problems


def _find_damage(store: str, part: PartRecord) -> str | None:
    """Describe the damage of a part; return None if its bytes have the recorded digest."""
    path = join(store, part.path)
    if not exists(path):
        return "missing"
    return None if hash_file(path)[1] == part.sha256 else "its bytes have changed"


def _delete_if_damaged(store: str, part: PartRecord) -> str | None:
    """Delete a part that is still damaged; return the problem and the fix, or None if it was rewritten meanwhile."""
    damage = _find_damage(store, part)
    if damage and damage != "missing":
        delete_file(join(store, part.path))
        damage += " (the part is now deleted)"
    return f"{damage}: run augment, which rewrites the part" if damage else None


def _compare_rows(plan: Plan, chunk: Chunk, stored_paths: Mapping[str, str], unusable_sources: set[str]) -> list[str]:
    """Remake the rows of a chunk's middle usable source; return one line per problem.

    Args:
        plan: the store's plan.
        chunk: the chunk to compare.
        stored_paths: path of each part in the store, by its planned path.
        unusable_sources: names of the sources whose images cannot be read.
    """
    usable_sources = [source for source in chunk.sources if source.name not in unusable_sources]
    if not usable_sources:
        return []
    source = usable_sources[len(usable_sources) // 2]
    problems: list[str] = []
    for part in chunk.parts:
        part_rows = read_part(join(plan.store, stored_paths[part.path]))
        stored_rows = part_rows.filter(pc.equal(pc.field("source"), source.name))
        variants, refusals = make_variants(plan, source, [(part.recipe, part.copies)])
        unavailable = next((item for item in refusals if item.stage == UNAVAILABLE), None)
        if unavailable:
            return [*problems, f"{join(plan.images, source.name)}: {unavailable.reason}: run verify again"]
        remade_rows = pa.Table.from_pylist([variant.to_row() for variant in variants], schema=stored_rows.schema)
        if str(stored_rows.to_pylist()) != str(remade_rows.to_pylist()):  # as text, because NaN (unlabelled) != NaN
            problems.append(
                f"{part.path}: the rows of {source.name} differ from rows made from its image and labels now: run "
                "augment into a new run_dir"
            )
    return problems
