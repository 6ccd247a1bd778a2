"""Write a store's missing parts on the Ray cluster, then its manifest.

One task writes the missing parts of one chunk. A part appears under its name only when it is complete. Readers use only
the parts that the manifest lists, and the manifest is written last.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kp_ray import __version__
from kp_ray.errors import StorageError, StoreError
from kp_ray.storage import delete_file, file_sizes, filesystem, hash_file, is_local, join, writer_lock
from kp_ray.store.augment_record import AugmentRecord
from kp_ray.store.convert import convert_layout
from kp_ray.store.layout import current_path, has_store, is_in_recipe_folder
from kp_ray.store.manifest import (
    UNAVAILABLE,
    UNREADABLE,
    Manifest,
    PartRecord,
    Quarantined,
    RecipeRecord,
    read_manifest,
    recipe_stage,
    write_manifest,
)
from kp_ray.store.plan import Chunk, Plan
from kp_ray.store.read import read_part
from kp_ray.store.tasks import ChunkResult, run_tasks


@dataclass(frozen=True)
class _ReusedParts:
    """Existing parts that the manifest lists, and the quarantined sources of these parts."""

    parts: tuple[PartRecord, ...]
    quarantined: tuple[Quarantined, ...]


def write_store(
    plan: Plan,
    progress: Callable[[int, int], None] | None = None,
    on_locked: Callable[[], None] | None = None,
) -> AugmentRecord:
    """Write a store's missing parts, then its manifest.

    Args:
        plan: the store's plan. Ray must be running, unless `is_finished(plan)`.
        progress: called with the numbers of finished and of all sources when writing begins and after each chunk.
        on_locked: called while the writer lock is held, before any part is written.

    Raises:
        RunStateError: another process writes or reads this store.
        StorageError: the disk is full, or the nodes do not share the store's folder.
        StoreError: the manifest is damaged, another version of kp_ray wrote it, no source could be used, or a part that
            would be replaced holds variants of a source whose image file is missing.
        StoppedError: a task's worker died in the first attempt and in every retry.
    """
    began = time.time()
    with writer_lock(plan.store):
        convert_layout(plan.store)
        reused, incomplete_chunks = _find_missing_parts(plan)
        if incomplete_chunks:
            _delete_partial_files(plan.store)
        if on_locked:
            on_locked()
        writing_began = time.time()
        results = _write_chunks(plan, incomplete_chunks, progress)
        manifest = _finish_manifest(plan, reused, results)
    seconds = time.time() - began
    first_task_began = min((result.started for result in results), default=writing_began)
    start_up_s = max(0.0, first_task_began - began)  # the difference can be negative, because clocks of nodes differ
    num_written_sources = sum(result.num_sources for result in results if len(result.parts) > result.num_recovered)
    num_recovered = sum(result.num_recovered for result in results)
    return AugmentRecord(
        sources=manifest.num_sources,
        variants=manifest.num_variants,
        seconds=round(seconds, 3),
        start_up_s=round(start_up_s, 3),
        sources_per_s=round(num_written_sources / max(seconds - start_up_s, 1e-9), 3),
        parts_written=sum(len(result.parts) for result in results) - num_recovered,
        parts_kept=len(reused.parts) + num_recovered,
        quarantined=len({item.source for item in manifest.quarantined}),
    )


def is_finished(plan: Plan) -> bool:
    """Return whether the store is complete, so that `write_store` needs no cluster.

    Raises:
        StoreError: the manifest is damaged, another version of kp_ray wrote it, or a part that would be replaced holds
            variants of a source whose image file is missing.
    """
    # Later stages read the folds from the manifest, so a manifest with other folds must be rewritten.
    if not has_store(plan.store) or read_manifest(plan.store).folds != plan.folds:
        return False
    _, incomplete_chunks = _find_missing_parts(plan)
    return not incomplete_chunks


def replaces_store(plan: Plan) -> bool:
    """Return whether there is a finished store of other parts or folds than the plan's, which `write_store` replaces.

    Raises:
        StoreError: the manifest is damaged, or another version of kp_ray wrote it.
    """
    if not has_store(plan.store):
        return False
    manifest = read_manifest(plan.store)
    stored_paths = {current_path(record.path) for record in manifest.parts}
    return manifest.folds != plan.folds or stored_paths != {part.path for part in plan.parts()}


def _find_missing_parts(plan: Plan) -> tuple[_ReusedParts, list[Chunk]]:
    """Find the parts that can be reused, and the incomplete chunks, each reduced to its missing parts.

    A part that an interrupted run has written counts as missing, because the manifest does not list it; the
    module `tasks` recovers it. All parts of a chunk with an UNAVAILABLE source count as missing, so every run retries
    that source.
    """
    existing_records: dict[str, PartRecord] = {}
    quarantined: tuple[Quarantined, ...] = ()
    if has_store(plan.store):
        manifest = read_manifest(plan.store)
        sizes = file_sizes(plan.store)
        # `is_finished` may read a store of the former layout, in which parts have other paths.
        existing_records = {
            current_path(record.path): record for record in manifest.parts if sizes.get(record.path) == record.num_bytes
        }
        quarantined = manifest.quarantined
        _refuse_missing_images(plan, existing_records.values())
    quarantined_by_source: dict[str, list[Quarantined]] = {}
    for item in quarantined:
        quarantined_by_source.setdefault(item.source, []).append(item)
    reused_records: list[PartRecord] = []
    reused_quarantined: list[Quarantined] = []
    incomplete_chunks: list[Chunk] = []
    for chunk in plan.chunks:
        chunk_quarantined = [item for source in chunk.sources for item in quarantined_by_source.get(source.name, ())]
        if any(item.stage == UNAVAILABLE for item in chunk_quarantined):
            incomplete_chunks.append(chunk)
            continue
        chunk_records = [existing_records[part.path] for part in chunk.parts if part.path in existing_records]
        missing_parts = tuple(part for part in chunk.parts if part.path not in existing_records)
        if chunk_records:
            reused_records += chunk_records
            stages = {UNREADABLE, *(recipe_stage(record.recipe) for record in chunk_records)}
            reused_quarantined += [item for item in chunk_quarantined if item.stage in stages]
        if missing_parts:
            incomplete_chunks.append(replace(chunk, parts=missing_parts))
    return _ReusedParts(tuple(reused_records), tuple(reused_quarantined)), incomplete_chunks


def _refuse_missing_images(plan: Plan, existing_records: Iterable[PartRecord]) -> None:
    """Refuse to replace finished parts that hold variants of a source whose image file is missing.

    Raises:
        StoreError: such a part would be replaced; the message names the image.
        StorageError: such a part may be replaced, but cannot be read.
    """
    if not plan.sources_without_image:
        return
    planned_paths = {part.path for part in plan.parts()}
    for record in existing_records:
        if current_path(record.path) in planned_paths:
            continue
        try:
            stored_sources = set(read_part(join(plan.store, record.path), ["source"])["source"].to_pylist())
        except StorageError:
            if hash_file(join(plan.store, record.path))[1] == record.sha256:
                raise
            continue  # the part is damaged, so there are no variants to protect
        affected_sources = plan.sources_without_image & stored_sources
        if affected_sources:
            raise StoreError(
                f"{join(plan.images, min(affected_sources))}: this image is missing, and the store holds its variants "
                f"({len(plan.sources_without_image)} labelled images are missing in total): put it back, or drop its "
                "row from the labels"
            )


def _write_chunks(
    plan: Plan, incomplete_chunks: Sequence[Chunk], progress: Callable[[int, int], None] | None
) -> list[ChunkResult]:
    """Write the missing parts of incomplete chunks, and report the progress in sources."""
    if not incomplete_chunks:
        return []
    total = sum(len(chunk.sources) for chunk in plan.chunks)
    done = total - sum(len(chunk.sources) for chunk in incomplete_chunks)
    if progress:
        progress(done, total)
    results = []
    for result in run_tasks(plan, incomplete_chunks):
        results.append(result)
        done += result.num_sources
        if progress:
            progress(done, total)
    return results


def _finish_manifest(plan: Plan, reused: _ReusedParts, results: Sequence[ChunkResult]) -> Manifest:
    """Write the manifest if a task ran or the manifest changes, then delete the parts that it does not list.

    Raises:
        StoreError: no source could be used.
        StorageError: this machine does not see a part that a worker wrote.
    """
    written_records = (record for result in results for record in result.parts)
    records = {record.path: record for record in (*reused.parts, *written_records)}
    quarantined = [*reused.quarantined, *(item for result in results for item in result.quarantined)]
    manifest = build_manifest(plan, records, quarantined)
    if not manifest.num_sources:  # data.images may be the wrong folder: delete no part
        first_quarantined = manifest.quarantined[0]
        total = sum(len(chunk.sources) for chunk in plan.chunks)
        raise StoreError(
            f"{plan.images}: none of the {total} sources could be used ({first_quarantined.source}: "
            f"{first_quarantined.reason}): check data.images"
        )
    sizes = file_sizes(plan.store)
    invisible_parts = [part.path for part in manifest.parts if sizes.get(part.path) != part.num_bytes]
    if invisible_parts:
        raise StorageError(
            f"{join(plan.store, invisible_parts[0])}: a worker wrote this part, but this machine does not see it "
            f"({len(invisible_parts)} of {len(manifest.parts)} parts): run_dir must be a folder that all nodes share, "
            "or an s3:// path"
        )
    if results or not has_store(plan.store) or read_manifest(plan.store) != manifest:
        write_manifest(plan.store, manifest)
    manifest_paths = {part.path for part in manifest.parts}
    for path in sizes:
        if is_in_recipe_folder(path) and path not in manifest_paths:
            delete_file(join(plan.store, path))
    return manifest


def build_manifest(plan: Plan, records: Mapping[str, PartRecord], quarantined: Sequence[Quarantined]) -> Manifest:
    """Build the manifest of a plan whose parts are written.

    Args:
        plan: the store's plan, which decides the order of the parts.
        records: the record of every part of the plan, by path.
        quarantined: quarantined sources in any order; one record is kept per source and stage.
    """
    parts = tuple(records[part.path] for part in plan.parts())
    quarantined_by_source: dict[str, dict[str, Quarantined]] = {}
    for item in quarantined:
        quarantined_by_source.setdefault(item.source, {})[item.stage] = item
    ordered_quarantined: list[Quarantined] = []
    num_sources = 0
    for chunk in plan.chunks:
        stages = [recipe_stage(part.recipe.name) for part in chunk.parts]
        for source in chunk.sources:
            by_stage = quarantined_by_source.get(source.name, {})
            ordered_quarantined += [
                by_stage[stage] for stage in (UNREADABLE, UNAVAILABLE, *stages) if stage in by_stage
            ]
            is_usable = UNREADABLE not in by_stage and UNAVAILABLE not in by_stage
            if is_usable and any(stage not in by_stage for stage in stages):  # the source has at least one variant
                num_sources += 1
    return Manifest(
        kp_ray=__version__,
        seed=plan.seed,
        skeleton=plan.skeleton,
        recipes=tuple(
            RecipeRecord(name=recipe.name, copies=copies, fingerprint=recipe.fingerprint)
            for recipe, copies in plan.recipes
        ),
        num_sources=num_sources,
        num_variants=sum(part.num_rows for part in parts),
        num_rows_by_split={
            split: sum(part.num_rows for part in parts if part.split == split) for split in ("train", "val")
        },
        units=plan.units,
        folds=plan.folds,
        parts=parts,
        quarantined=tuple(ordered_quarantined),
    )


def _delete_partial_files(store: str) -> None:
    """Delete the *.partial files that killed writers left. The caller must hold the writer lock."""
    if is_local(store):
        for path in Path(filesystem(store)[1]).rglob("*.partial"):
            path.unlink(missing_ok=True)
