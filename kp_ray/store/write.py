"""The Parquet store: plan -> parts -> manifest; resume, verify, read.

A part is one recipe over one run of sources: those of one split among so many rows of the labels' file. A task takes
one run and writes its part of every recipe still missing. Part names carry a fingerprint of everything that decides
their rows, parts appear whole, and the manifest, written last, is all that a reader looks at.
"""

import contextlib
import pickle
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import pyarrow.fs as pafs
import ray
from ray.util.annotations import RayDeprecationWarning

from kp_ray import __version__
from kp_ray.augmentation.variants import Source
from kp_ray.cluster.errors import describe_ray_error
from kp_ray.cluster.tasks import bounded_retries, ray_data_settings
from kp_ray.errors import KpRayError, StoreError
from kp_ray.storage import exists, file_sizes, filesystem, join, writer_lock
from kp_ray.store.manifest import (
    OPEN,
    READ,
    Manifest,
    PartRecord,
    Quarantined,
    RecipeRecord,
    read_manifest,
    row_schema,
    stage_of,
    write_manifest,
)
from kp_ray.store.parts import PartWriter, describe_part, make_rows
from kp_ray.store.plan import Part, Plan, Run
from kp_ray.store.read import read_part


@dataclass(frozen=True)
class _Finished:
    """What a task says of its run; `num_found` of its parts an earlier run had left whole."""

    parts: tuple[PartRecord, ...]
    num_found: int
    quarantined: tuple[Quarantined, ...]
    num_sources: int
    started: float


def write_store(plan: Plan, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Write what is missing of a store, then its manifest.

    Args:
        plan: from `plan_store`; a Ray cluster must be running, unless `is_finished(plan)`.
        progress: called with (sources done, sources in all), first when writing begins.

    Returns:
        `sources`, `variants`, `seconds`, `start_up_s`, `sources_per_s` (without the start-up), `parts_written`,
        `parts_kept`, `quarantined`.

    Raises:
        StoreError: another process writes this store, the disk is full, no source could be used, a source that the
            store holds has lost its image, or workers wrote where this machine does not see it.
    """
    began = time.time()
    with writer_lock(plan.store):
        kept, todo = _missing(plan)
        if todo:
            _drop_half_written(plan.store)
        total = sum(len(run.sources) for run in plan.runs)
        done = total - sum(len(run.sources) for run in todo)
        finished: list[_Finished] = []
        first_start = time.time()
        if progress and todo:
            progress(done, total)
        for result in _run_tasks(plan, todo):
            if not finished:
                first_start = result.started
            first_start = min(first_start, result.started)
            finished.append(result)
            done += result.num_sources
            if progress:
                progress(done, total)
        records = {part.path: part for part in (*kept.parts, *(part for one in finished for part in one.parts))}
        manifest = build_manifest(plan, records, [*kept.quarantined, *(q for one in finished for q in one.quarantined)])
        if not manifest.num_sources:  # the images are elsewhere, say: what an earlier run left stays as it is
            first = manifest.quarantined[0]
            raise StoreError(
                f"{plan.store}: none of the {total} sources could be used, e.g. {first.source}: {first.reason}"
            )
        there = file_sizes(plan.store)
        unseen = [part.path for part in manifest.parts if there.get(part.path) != part.num_bytes]
        if unseen:
            raise StoreError(
                f"{join(plan.store, unseen[0])}: written by a worker, but not to be seen here, like {len(unseen)} of "
                f"{len(manifest.parts)} parts: run_dir must be a folder that all nodes share, or an s3:// path"
            )
        if finished or not exists(join(plan.store, "manifest.json")) or read_manifest(plan.store) != manifest:
            write_manifest(plan.store, manifest)
        _drop_unlisted(plan.store, there, manifest)
    seconds, start_up = time.time() - began, max(0.0, first_start - began)
    made = sum(one.num_sources for one in finished if len(one.parts) > one.num_found)
    found = sum(one.num_found for one in finished)
    return {
        "sources": manifest.num_sources,
        "variants": manifest.num_variants,
        "seconds": round(seconds, 3),
        "start_up_s": round(start_up, 3),
        "sources_per_s": round(made / max(seconds - start_up, 1e-9), 3),
        "parts_written": sum(len(one.parts) for one in finished) - found,
        "parts_kept": len(kept.parts) + found,
        "quarantined": len({q.source for q in manifest.quarantined}),
    }


def is_finished(plan: Plan) -> bool:
    """Whether the store holds all that is planned, so that `write_store` would need no cluster.

    Raises:
        StoreError: the manifest is damaged or of a newer kp_ray, or a source that the store holds has lost its image.
    """
    return exists(join(plan.store, "manifest.json")) and not _missing(plan)[1]


@dataclass(frozen=True)
class _Kept:
    parts: tuple[PartRecord, ...]
    quarantined: tuple[Quarantined, ...]


def _missing(plan: Plan) -> tuple[_Kept, list[Run]]:
    """What the manifest vouches for and is still there, and the runs with the parts that are not.

    Parts that lack a source which could not be opened are not kept: each run tries it again.
    """
    listed: dict[str, PartRecord] = {}
    quarantined: tuple[Quarantined, ...] = ()
    if exists(join(plan.store, "manifest.json")):
        manifest = read_manifest(plan.store)
        sizes = file_sizes(plan.store)
        listed = {part.path: part for part in manifest.parts if sizes.get(part.path) == part.num_bytes}
        quarantined = manifest.quarantined
        _refuse_lost_images(plan, listed, quarantined)
    kept, todo = [], []
    bad = {q.source for q in quarantined}
    settled: set[tuple[str, str]] = set()
    passing = {q.source for q in quarantined if q.stage == OPEN}
    for run in plan.runs:
        if passing and any(source.name in passing for source in run.sources):
            todo.append(run)
            continue
        there = [listed[part.path] for part in run.parts if part.path in listed]
        kept += there
        stages = [READ, *(stage_of(part.recipe) for part in there)] if there else []
        settled |= {(source.name, stage) for source in run.sources if source.name in bad for stage in stages}
        parts = tuple(part for part in run.parts if part.path not in listed)
        if parts:
            todo.append(replace(run, parts=parts))
    return _Kept(tuple(kept), tuple(q for q in quarantined if (q.source, q.stage) in settled)), todo


def _refuse_lost_images(plan: Plan, listed: Iterable[str], quarantined: Sequence[Quarantined]) -> None:
    """Parts made anew without an image that has gone would replace the finished ones that hold its variants."""
    lost = plan.absent - {q.source for q in quarantined if q.stage in (READ, OPEN)}
    if not lost:
        return
    planned = {part.path for run in plan.runs for part in run.parts}
    for path in listed:
        if path in planned:
            continue
        try:
            held = set(read_part(join(plan.store, path), ["source"]).column(0).to_pylist())
        except KpRayError:
            continue  # damaged: nothing to lose
        if lost & held:
            raise StoreError(
                f"{join(plan.images, min(lost & held))}: not there any more, and the store holds its variants: put it "
                f"back, or take its row out of the labels ({len(lost)} labelled images are missing in all)"
            )


def _run_tasks(plan: Plan, todo: Sequence[Run]) -> Iterator[_Finished]:
    if not todo:
        return
    shared = replace(plan, runs=())
    with ray_data_settings():
        items = [{"run": pickle.dumps(run)} for run in todo]
        # No other way to bound the retries of a task is left in Ray 2.60.
        with warnings.catch_warnings(action="ignore", category=RayDeprecationWarning):
            tasks = ray.data.from_items(items, override_num_blocks=len(items)).map(
                _write_run, fn_args=(shared,), num_cpus=1, ray_remote_args_fn=bounded_retries
            )
        try:
            for row in tasks.iter_rows():
                yield pickle.loads(row["finished"])  # noqa: S301  (made by our own task)
        except ray.exceptions.RayError as error:
            reason = describe_ray_error(error)
            raise StoreError(
                f"{plan.store}: writing stopped: {reason}; finished parts are kept, run augment again to go on"
            ) from error


def _write_run(item: dict[str, Any], plan: Plan) -> dict[str, bytes]:
    """A Ray task: write one run's missing parts; each source is read and decoded once."""
    started = time.time()
    cv2.setNumThreads(1)  # Ray gives the cores
    run: Run = pickle.loads(item["run"])  # noqa: S301  (made by `_run_tasks`)
    described = {part.path: describe_part(plan.store, part) for part in run.parts}
    records = [found[0] for found in described.values() if found]
    quarantined = [q for found in described.values() if found for q in found[1]]
    missing = [part for part in run.parts if not described[part.path]]
    num_found = len(records)
    if missing:
        made, bad = _make_parts(plan, run.sources, missing)
        records += made
        quarantined += bad
    done = _Finished(tuple(records), num_found, tuple(quarantined), len(run.sources), started)
    return {"finished": pickle.dumps(done)}


def _make_parts(
    plan: Plan, sources: Sequence[Source], parts: Sequence[Part]
) -> tuple[list[PartRecord], list[Quarantined]]:
    schema = row_schema(len(plan.skeleton))
    quarantined: list[Quarantined] = []
    with contextlib.ExitStack() as stack:
        writers = {part.recipe.name: stack.enter_context(PartWriter(plan.store, part, schema)) for part in parts}
        for source in sources:
            variants, bad = make_rows(plan, source, [(part.recipe, part.copies) for part in parts])
            quarantined += bad
            for variant in variants:
                writers[variant.recipe].add(variant)
        records = []
        for part in parts:
            stages = (READ, OPEN, stage_of(part.recipe.name))
            note = {
                "kp_ray": __version__,
                "skeleton": list(plan.skeleton),
                "quarantined": [q.model_dump() for q in quarantined if q.stage in stages],
            }
            records.append(writers[part.recipe.name].finish(note))
    return records, quarantined


def build_manifest(plan: Plan, records: dict[str, PartRecord], quarantined: Sequence[Quarantined]) -> Manifest:
    parts = tuple(records[part.path] for run in plan.runs for part in run.parts)
    bad: dict[str, dict[str, Quarantined]] = {}
    for q in quarantined:
        bad.setdefault(q.source, {})[q.stage] = q
    ordered: list[Quarantined] = []
    num_sources = 0
    for run in plan.runs:
        stages = [stage_of(part.recipe.name) for part in run.parts]
        for source in run.sources:
            of = bad.get(source.name, {})
            ordered += [of[stage] for stage in (READ, OPEN, *stages) if stage in of]
            num_sources += not {READ, OPEN} & set(of) and not all(stage in of for stage in stages)
    return Manifest(
        kp_ray=__version__,
        seed=plan.seed,
        skeleton=plan.skeleton,
        settings=plan.augment.model_dump(mode="json", exclude={"recipes", "user_recipes"}),
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
        parts=parts,
        quarantined=tuple(ordered),
    )


def _drop_half_written(store: str) -> None:
    """Remove what killed writers left, before it fills a disk; who holds the lock knows that they are gone."""
    fs, root = filesystem(store)
    if isinstance(fs, pafs.LocalFileSystem):
        for path in Path(root).rglob("*.partial"):
            path.unlink(missing_ok=True)


def _drop_unlisted(store: str, there: Iterable[str], manifest: Manifest) -> None:
    fs, root = filesystem(store)
    listed = {part.path for part in manifest.parts}
    for path in there:
        if path.startswith("recipe=") and path not in listed:
            fs.delete_file(f"{root}/{path}")
