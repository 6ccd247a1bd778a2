"""The Parquet store: plan -> parts -> manifest; resume, verify, read.

A part is one recipe over one run of sources: those of one split among so many rows of the labels' file. A task takes
one run and writes its part of every recipe still missing. Part names carry a fingerprint of everything that decides
their rows, parts appear whole, and the manifest, written last, is all that a reader looks at.
"""

import contextlib
import hashlib
import json
import os
import pickle
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
from pydantic import BaseModel, ConfigDict, ValidationError
from ray.util.annotations import RayDeprecationWarning

from kp_ray import __version__
from kp_ray.annotations import Annotations, load_annotations, to_coco, to_csv
from kp_ray.augment import Row, Source, augment_source, row_schema
from kp_ray.config import (
    AugmentConfig,
    Config,
    InputError,
    exists,
    file_sizes,
    filesystem,
    join,
    one_line,
    read_bytes,
    write_bytes,
)
from kp_ray.recipes import Recipe, choose
from kp_ray.split import check_lineage, split_sources, units_of

SCHEMA_VERSION = 2
ROWS_PER_GROUP = 1
"""A row group a row: training reads single rows in random order, and a part is written without being held."""
PIECE_BYTES = 1 << 20
"""What a part's writer gathers before it hashes and writes, and a reader reads at once."""

_METADATA_KEY = b"kp_ray"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecipeRecord(_Record):
    """A recipe of the store."""

    name: str
    copies: int
    fingerprint: str


READ, OPEN = "read", "open"
"""The stages at which a picture itself is refused, and at which storage gives none; the latter may pass."""


def _stage(recipe: str) -> str:
    """The stage at which a recipe refuses a picture."""
    return f"recipe={recipe}"


class Quarantined(_Record):
    """A source that a recipe, or at the stages `read` and `open` every recipe, could not use."""

    source: str
    stage: str
    reason: str


class PartRecord(_Record):
    """A finished Parquet file; `path` is relative to the store."""

    path: str
    recipe: str
    split: Literal["train", "val"]
    num_rows: int
    num_bytes: int
    sha256: str


class Manifest(_Record):
    """What a finished store holds."""

    schema_version: int = SCHEMA_VERSION
    kp_ray: str
    seed: int
    skeleton: tuple[str, ...]
    settings: dict[str, Any]
    recipes: tuple[RecipeRecord, ...]
    num_sources: int
    num_variants: int
    num_rows_by_split: dict[str, int]
    units: dict[str, tuple[str, ...]]
    parts: tuple[PartRecord, ...]
    quarantined: tuple[Quarantined, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A part to be written: the recipe over one run of sources."""

    path: str
    recipe: Recipe
    copies: int
    split: Literal["train", "val"]


@dataclass(frozen=True, slots=True)
class Run:
    """One task's share: a run of sources and its parts."""

    sources: tuple[Source, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Plan:
    """All that a store will hold, and how its rows are made.

    `absent` are sources without a file, `units` is what the split kept whole, by side.
    """

    store: str
    images: str
    skeleton: tuple[str, ...]
    seed: int
    augment: AugmentConfig
    recipes: tuple[tuple[Recipe, int], ...]
    runs: tuple[Run, ...]
    units: dict[str, tuple[str, ...]]
    absent: frozenset[str]


def plan(config: Config) -> Plan:
    """The plan of a config's store: labels read and corrected, split, and every part decided.

    Raises:
        InputError: labels, images, split or recipes do not do.
    """
    annotations = load_annotations(
        config.input("annotations"),
        corrections=config.data.corrections,
        flip_pairs=config.skeleton.flip_pairs,
        sigmas=config.skeleton.sigmas,
    )
    seed = config.seed if config.split.seed is None else config.split.seed
    by = config.split.by
    splits = split_sources(annotations, by=by, fraction=config.split.fraction, seed=seed)
    check_lineage(units_of(annotations, by), splits, annotations.images)
    images = config.input("images")
    return plan_store(config.path("store"), images, annotations, splits, by, config.augment, config.seed)


def plan_store(
    store: str,
    images: str,
    annotations: Annotations,
    splits: Sequence[str],
    by: Literal["scene", "clip", "frame"],
    augment: AugmentConfig,
    seed: int,
) -> Plan:
    """Decide every part of a store, without touching an image's content.

    Sources in the validation split get only `Original`.

    Raises:
        InputError: a recipe is unknown, the image folder is missing, or nothing is labelled.
    """
    recipes = tuple(choose(augment.recipes, augment.user_recipes))
    if not len(annotations):
        raise InputError("the annotations name no image: nothing to augment")
    sizes = file_sizes(images)
    runs: list[Run] = []
    wanted_by_split: dict[Literal["train", "val"], tuple[tuple[Recipe, int], ...]]
    wanted_by_split = {"train": recipes, "val": tuple(choose(["Original"]))}
    places = annotations.rows or range(len(annotations))
    for split, wanted in wanted_by_split.items():
        chosen = [i for i, of in enumerate(splits) if of == split]
        # By place in the file, so that a dropped or re-split source changes its own run alone.
        for number, rows in groupby(chosen, key=lambda i: places[i] // augment.sources_per_part):
            sources = tuple(
                Source(
                    annotations.images[i],
                    annotations.scenes[i],
                    annotations.cameras[i],
                    annotations.frames[i],
                    split,
                    annotations.keypoints[i],
                )
                for i in rows
            )
            of_sources = _digest(sources, sizes)
            parts = []
            for recipe, copies in wanted:
                decides = [SCHEMA_VERSION, recipe.fingerprint, copies, seed, augment.jpeg_quality, augment.oversize]
                decides += [augment.box_margin_px, annotations.skeleton.names, of_sources]
                fingerprint = hashlib.blake2b(json.dumps(decides).encode(), digest_size=6).hexdigest()
                path = f"recipe={recipe.name}/part-{number:05d}-{fingerprint}.parquet"
                parts.append(Part(path, recipe, copies, split))
            runs.append(Run(sources, tuple(parts)))
    units = {
        split: tuple(sorted({unit for unit, of in zip(units_of(annotations, by), splits, strict=True) if of == split}))
        for split in ("train", "val")
    }
    absent = frozenset(name for name in annotations.images if name not in sizes)
    return Plan(store, images, annotations.skeleton.names, seed, augment, recipes, tuple(runs), units, absent)


def _digest(sources: Sequence[Source], sizes: dict[str, int]) -> str:
    """A digest of all that sources bring to their rows; an image counts by its name and size in bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        key = [source.name, source.scene, source.camera, source.frame, source.split, sizes.get(source.name)]
        digest.update(json.dumps(key).encode())
        digest.update(np.ascontiguousarray(source.keypoints, dtype="<f8").tobytes())
    return digest.hexdigest()


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
        InputError: another process writes this store, the disk is full, no source could be used, a source that the
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
        manifest = _manifest(plan, records, [*kept.quarantined, *(q for one in finished for q in one.quarantined)])
        if not manifest.num_sources:  # the images are elsewhere, say: what an earlier run left stays as it is
            first = manifest.quarantined[0]
            raise InputError(
                f"{plan.store}: none of the {total} sources could be used, e.g. {first.source}: {first.reason}"
            )
        there = file_sizes(plan.store)
        unseen = [part.path for part in manifest.parts if there.get(part.path) != part.num_bytes]
        if unseen:
            raise InputError(
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
        InputError: the manifest is damaged or of a newer kp_ray, or a source that the store holds has lost its image.
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
        stages = [READ, *(_stage(part.recipe) for part in there)] if there else []
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
            held = set(read_parquet(join(plan.store, path), ["source"]).column(0).to_pylist())
        except InputError:
            continue  # damaged: nothing to lose
        if lost & held:
            raise InputError(
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
                _write_run, fn_args=(shared,), num_cpus=1, ray_remote_args_fn=_bounded_retries
            )
        try:
            for row in tasks.iter_rows():
                yield pickle.loads(row["finished"])  # noqa: S301  (made by our own task)
        except ray.exceptions.RayError as error:
            reason = reason_of(error)
            raise InputError(
                f"{plan.store}: writing stopped: {reason}; finished parts are kept, run augment again to go on"
            ) from error


def reason_of(error: Exception) -> str:
    """What ended a Ray task, on one line, from the text of its error: the task's own traceback stands in it, below
    Ray's around it."""
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "low on memory" in str(error):
        return "the nodes lack memory; lower cluster.num_cpus or start Ray with fewer CPUs a node"
    told = re.findall(r"^(?!ray\.)[\w.]*?(\w*(?:Error|Exception)): (.+)$", str(error), re.MULTILINE)
    if told:
        kind, text = told[-1]
        ours = {InputError.__name__, *(one.__name__ for one in InputError.__subclasses__())}
        return str(text) if kind in ours else f"{kind}: {text}"
    if re.search(r"(actor|worker|worker process|node) (has )?died", str(error)):
        return "a process or a node of Ray died: killed, out of memory or crashed, its log may tell"
    return one_line(error)[-300:]


@contextlib.contextmanager
def ray_data_settings() -> Iterator[None]:
    """Ray Data's settings for the datasets made inside: no bars of its own, and no CPU left idle."""
    context = ray.data.DataContext.get_current().copy()
    # By default Ray Data holds tasks back for memory budgets; ours return little (measured while writing a store on 2
    # cores: 12.9-14.2 sources/s with it, 16.2-17.3 without).
    context.op_resource_reservation_enabled = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        yield


def _bounded_retries() -> dict[str, Any]:
    """Ray Data repeats a task whose worker dies without end; a picture that kills its worker would hang the run."""
    return {"max_retries": 3}


def _write_run(item: dict[str, Any], plan: Plan) -> dict[str, bytes]:
    """A Ray task: write one run's missing parts; each source is read and decoded once."""
    started = time.time()
    cv2.setNumThreads(1)  # Ray gives the cores
    run: Run = pickle.loads(item["run"])  # noqa: S301  (made by `_run_tasks`)
    described = {part.path: _describe(plan.store, part) for part in run.parts}
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
        writers = {part.recipe.name: stack.enter_context(_PartWriter(plan.store, part, schema)) for part in parts}
        for source in sources:
            rows, bad = make_rows(plan, source, [(part.recipe, part.copies) for part in parts])
            quarantined += bad
            for row in rows:
                writers[row["recipe"]].add(row)
        records = []
        for part in parts:
            stages = (READ, OPEN, _stage(part.recipe.name))
            note = {
                "kp_ray": __version__,
                "skeleton": list(plan.skeleton),
                "quarantined": [q.model_dump() for q in quarantined if q.stage in stages],
            }
            records.append(writers[part.recipe.name].finish(note))
    return records, quarantined


def make_rows(plan: Plan, source: Source, recipes: Sequence[tuple[Recipe, int]]) -> tuple[list[Row], list[Quarantined]]:
    """All rows of one source, read from the plan's image folder, and why some recipes or all give none."""
    fs, inner = filesystem(join(plan.images, source.name))
    stage = READ
    try:
        with fs.open_input_file(inner) as stream:
            content = bytes(stream.readall())
        rows, refused = augment_source(
            content,
            source,
            recipes,
            seed=plan.seed,
            jpeg_quality=plan.augment.jpeg_quality,
            scale_with_frame=plan.augment.oversize == "scale",
            box_margin_px=plan.augment.box_margin_px,
        )
    except FileNotFoundError:
        reason = "there is no such file"
        if source.name not in plan.absent:  # so the plan's machine sees it
            stage, reason = OPEN, f"{reason} on the worker's node: the images must be where all nodes see them"
    except OSError as error:
        stage, reason = OPEN, f"cannot be opened: {one_line(error)}"
    except InputError as error:
        reason = str(error)
    else:
        return rows, [Quarantined(source=source.name, stage=_stage(name), reason=why) for name, why in refused.items()]
    return [], [Quarantined(source=source.name, stage=stage, reason=reason)]


class _HashingStream:
    """A writable stream that counts and hashes what passes."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.sha256, self.num_bytes = stream, hashlib.sha256(), 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.num_bytes += len(data)
        self.stream.write(data)
        return len(data)

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        self.closed = True
        self.stream.close()


class _PartWriter:
    """Streams rows into a part that appears only when it is finished."""

    def __init__(self, store: str, part: Part, schema: pa.Schema) -> None:
        self.store, self.part, self.schema = store, part, schema
        self.fs, root = filesystem(store)
        self.target = f"{root}/{part.path}"
        self.local = isinstance(self.fs, pafs.LocalFileSystem)
        # Of two nodes with one folder, the second may repeat a part that the first, cut off, still writes. What goes to
        # object storage is gathered on the node's disk: a stream there cannot be broken off without leaving its half.
        folder = self.target if self.local else f"{tempfile.gettempdir()}/kp_ray"
        self.partial = f"{folder}.{uuid4().hex}.partial"
        self.num_rows = 0

    def __enter__(self) -> "_PartWriter":
        if self.local:
            Path(self.partial).parent.mkdir(parents=True, exist_ok=True)
        self.stream = _HashingStream(pafs.LocalFileSystem().open_output_stream(self.partial))
        # Parquet writes in tiny pieces.
        self.sink = pa.BufferedOutputStream(pa.PythonFile(self.stream, mode="w"), PIECE_BYTES)
        self.writer = pq.ParquetWriter(
            self.sink,
            self.schema,
            compression="none",  # nearly all bytes are JPEG already
            use_dictionary=False,
            write_statistics=False,  # of a single row they say nothing
            write_page_checksum=True,
        )
        return self

    def add(self, row: Row) -> None:
        self.writer.write_table(pa.Table.from_pylist([row], schema=self.schema), row_group_size=ROWS_PER_GROUP)
        self.num_rows += 1

    def finish(self, note: dict[str, Any]) -> PartRecord:
        self.writer.add_key_value_metadata({_METADATA_KEY: json.dumps(note)})
        self.writer.close()
        self.sink.close()
        if self.local:
            Path(self.partial).replace(self.target)
        else:
            write_bytes(join(self.store, self.part.path), Path(self.partial).read_bytes())
        return PartRecord(
            path=self.part.path,
            recipe=self.part.recipe.name,
            split=self.part.split,
            num_rows=self.num_rows,
            num_bytes=self.stream.num_bytes,
            sha256=self.stream.sha256.hexdigest(),
        )

    def __exit__(self, *exception: object) -> None:
        Path(self.partial).unlink(missing_ok=True)


def _describe(store: str, part: Part) -> tuple[PartRecord, list[Quarantined]] | None:
    """The record of a part that an earlier, unfinished run left whole; None if there is none."""
    path = join(store, part.path)
    if not exists(path):
        return None
    fs, inner = filesystem(path)
    try:
        with fs.open_input_file(inner) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            num_rows = sum(file.read_row_group(group).num_rows for group in range(file.num_row_groups))
            note = json.loads(file.metadata.metadata[_METADATA_KEY])
        quarantined = [Quarantined(**q) for q in note["quarantined"]]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
    if any(q.stage == OPEN for q in quarantined):
        return None
    num_bytes, sha256 = _hash(path)
    record = PartRecord(
        path=part.path,
        recipe=part.recipe.name,
        split=part.split,
        num_rows=num_rows,
        num_bytes=num_bytes,
        sha256=sha256,
    )
    return record, quarantined


def _hash(path: str) -> tuple[int, str]:
    """A file's size and the hex digits of its SHA-256, read a piece at a time."""
    fs, inner = filesystem(path)
    num_bytes, sha256 = 0, hashlib.sha256()
    with fs.open_input_stream(inner) as stream:
        while piece := stream.read(PIECE_BYTES):
            num_bytes += len(piece)
            sha256.update(piece)
    return num_bytes, sha256.hexdigest()


def _manifest(plan: Plan, records: dict[str, PartRecord], quarantined: Sequence[Quarantined]) -> Manifest:
    parts = tuple(records[part.path] for run in plan.runs for part in run.parts)
    bad: dict[str, dict[str, Quarantined]] = {}
    for q in quarantined:
        bad.setdefault(q.source, {})[q.stage] = q
    ordered: list[Quarantined] = []
    num_sources = 0
    for run in plan.runs:
        stages = [_stage(part.recipe.name) for part in run.parts]
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


def read_manifest(store: str) -> Manifest:
    """The manifest of a finished store.

    Raises:
        InputError: there is none, it is damaged, or a newer kp_ray wrote it.
    """
    path = join(store, "manifest.json")
    if not exists(path):
        raise InputError(f"{store}: no finished store here; run augment first")
    content = read_bytes(path)
    try:
        manifest = Manifest.model_validate_json(content)
        version = manifest.schema_version
    except ValidationError as error:
        newer = re.search(rb'^{\s*"schema_version": *(\d+)', content)
        version = int(newer[1]) if newer else 0
        if 0 < version < SCHEMA_VERSION:
            raise InputError(
                f"{path}: of an older kp_ray (schema {version}); delete this file and run augment, which makes all anew"
            ) from error
        if version <= SCHEMA_VERSION:
            raise InputError(
                f"{path}: damaged; delete this file and run augment again, finished parts are kept"
            ) from error
    if version > SCHEMA_VERSION:
        raise InputError(f"{path}: written by a newer kp_ray (schema {version}); update kp_ray")
    return manifest


def write_manifest(store: str, manifest: Manifest) -> None:
    """Write the manifest and `quarantine.parquet` beside it."""
    schema = pa.schema([("source", pa.string()), ("stage", pa.string()), ("reason", pa.string())])
    table = pa.Table.from_pylist([q.model_dump() for q in manifest.quarantined], schema=schema)
    write_parquet(join(store, "quarantine.parquet"), table)
    write_bytes(join(store, "manifest.json"), (manifest.model_dump_json(indent=1) + "\n").encode())


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


@contextlib.contextmanager
def writer_lock(folder: str) -> Iterator[None]:
    """Refuse a second writer of a local folder; the lock goes with its process, however that ends.

    Raises:
        InputError: another process holds it, or the file system has no locks.
    """
    fs, root = filesystem(folder)
    if not isinstance(fs, pafs.LocalFileSystem):
        yield  # no locks there: see docs/store.md
        return
    import fcntl

    Path(root).mkdir(parents=True, exist_ok=True)
    with open(Path(root) / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{folder}: another process is writing here; wait for it or stop it") from error
        except OSError as error:
            raise InputError(f"{folder}: cannot be locked: {one_line(error)}; choose a run_dir that can be") from error
        yield


def verify_store(plan: Plan, num_samples: int = 8) -> list[str]:
    """Re-hash every part and re-make a sample of rows; damaged parts are removed, so that augment makes them anew.

    Args:
        plan: what the store should hold.
        num_samples: sources, spread over the runs, whose rows are made again and compared byte for byte.

    Returns:
        One line a problem; empty if the store is sound.
    """
    manifest = read_manifest(plan.store)
    problems = []
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda part: _damage(plan.store, part), manifest.parts))
    damaged = [part for part, problem in zip(manifest.parts, found, strict=True) if problem]
    if damaged:
        with writer_lock(plan.store):  # of a part that is being made anew, the new one would be removed
            problems = [f"{part.path}: {told}" for part in damaged if (told := _remove_damaged(plan.store, part))]
    if problems:
        return problems
    listed = {part.path for part in manifest.parts}
    planned = {part.path for run in plan.runs for part in run.parts}
    if listed != planned:
        return [f"{plan.store}: {len(listed ^ planned)} parts differ from what the config asks for; run augment"]
    bad = {q.source for q in manifest.quarantined if q.stage in (READ, OPEN)}
    for index in np.linspace(0, len(plan.runs) - 1, min(num_samples, len(plan.runs)), dtype=int):
        problems += _compare_rows(plan, plan.runs[index], bad)
    return problems


def _damage(store: str, part: PartRecord) -> str | None:
    if not exists(join(store, part.path)):
        return "missing"
    return None if _hash(join(store, part.path))[1] == part.sha256 else "its bytes have changed"


def _remove_damaged(store: str, part: PartRecord) -> str | None:
    problem = _damage(store, part)
    if problem and problem != "missing":
        fs, root = filesystem(store)
        fs.delete_file(f"{root}/{part.path}")
        problem += "; removed"
    return f"{problem}, run augment to make it anew" if problem else None


def _compare_rows(plan: Plan, run: Run, quarantined: set[str]) -> list[str]:
    usable = [source for source in run.sources if source.name not in quarantined]
    if not usable:
        return []
    source = usable[len(usable) // 2]
    problems = []
    for part in run.parts:
        stored = pq.read_table(pa.BufferReader(read_bytes(join(plan.store, part.path)))).filter(
            pa.compute.equal(pa.compute.field("source"), source.name)
        )
        rows, _ = make_rows(plan, source, [(part.recipe, part.copies)])
        made = pa.Table.from_pylist(rows, schema=stored.schema)
        if str(stored.to_pylist()) != str(made.to_pylist()):  # NaN, an unlabelled point, equals nothing
            problems.append(
                f"{part.path}: rows of {source.name} are not what the sources give; run augment on a new store"
            )
    return problems


def select_parts(
    store: str, *, split: str | None = None, recipes: Sequence[str] | None = None
) -> tuple[Manifest, list[str]]:
    """The manifest and the full paths of the parts of a split and some recipes (None: all).

    Raises:
        InputError: a recipe is not in the store, or a scene is on both sides of the split.
    """
    manifest = read_manifest(store)
    both = sorted(set(manifest.units.get("train", ())) & set(manifest.units.get("val", ())))
    if both:
        raise InputError(f"{store}: {both[0]} is both trained on and validated on; augment into a new run_dir")
    stored = {part.recipe for part in manifest.parts}  # validation has Original even where no one asked for it
    for name in recipes or ():
        if name not in stored:
            raise InputError(f"{store}: holds no recipe {name!r}; it has {', '.join(sorted(stored))}")
    wanted = [
        part for part in manifest.parts if split in (None, part.split) and (recipes is None or part.recipe in recipes)
    ]
    return manifest, [join(store, part.path) for part in wanted]


def store_digest(store: str) -> str:
    """A digest of all bytes of a store's parts and their order.

    Raises:
        InputError: no finished store.
    """
    manifest = read_manifest(store)
    parts = [[part.path, part.sha256, part.split] for part in manifest.parts]
    return hashlib.sha256(json.dumps([manifest.seed, manifest.skeleton, parts]).encode()).hexdigest()


def read_table(
    store: str,
    *,
    split: str | None = None,
    recipes: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Rows of a store as one Arrow table; without the `image` column even a large store fits in memory.

    Raises:
        InputError: no finished store, a recipe it does not hold, or a damaged part.
    """
    manifest, paths = select_parts(store, split=split, recipes=recipes)
    if not paths:
        schema = row_schema(len(manifest.skeleton))
        return (schema if columns is None else pa.schema([schema.field(c) for c in columns])).empty_table()
    return pa.concat_tables([read_parquet(path, columns) for path in paths])


@contextlib.contextmanager
def _reading(path: str, mend: str = "run verify, then augment") -> Iterator[None]:
    """What goes wrong in reading a Parquet file, as one line that says how to `mend` it."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{path}: there is no such file; {mend}") from error
        if isinstance(error, OSError) and error.errno:  # the storage's, not the content's
            raise InputError(f"{path}: cannot be read: {one_line(error)}") from error
        raise InputError(f"{path}: damaged: {one_line(error)[:200]}; {mend}") from error


def read_parquet(path: str, columns: Sequence[str] | None = None, mend: str = "run verify, then augment") -> pa.Table:
    """The table of one local or remote Parquet file.

    Args:
        path: a part of a store, or another file that kp_ray wrote.
        columns: None: all.
        mend: what the message tells to do about a damaged file.

    Raises:
        InputError: it is not there, or damaged.
    """
    fs, inner = filesystem(path)
    with _reading(path, mend), fs.open_input_file(inner) as stream:
        table = pq.ParquetFile(stream, page_checksum_verification=True).read(columns=columns)
        table.validate(full=True)
        return table


def write_parquet(path: str, table: pa.Table) -> None:
    """Write a local or remote Parquet file, whole or not at all, whose pages carry checksums."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    write_bytes(path, sink.getvalue().to_pybytes())


class RowReader:
    """Reads single rows of parts, keeping the parts last used open; not for several threads at once."""

    def __init__(self, columns: Sequence[str], keep_open: int = 256) -> None:
        self.columns = list(columns)
        self.open = lru_cache(maxsize=keep_open)(self._open)

    @staticmethod
    def _open(path: str) -> pq.ParquetFile:
        fs, inner = filesystem(path)
        return pq.ParquetFile(fs.open_input_file(inner), page_checksum_verification=True)

    def read(self, path: str, row: int) -> Row:
        """Row `row` of the part at `path`.

        Raises:
            InputError: the part is not there, or damaged.
        """
        with _reading(path):
            group = self.open(path).read_row_group(row // ROWS_PER_GROUP, self.columns)
            return dict(group.slice(row % ROWS_PER_GROUP, 1).to_pylist()[0])


def iter_rows(
    store: str, *, split: str | None, shard: tuple[int, int] = (0, 1), recipes: Sequence[str] | None = None
) -> Iterator[Row]:
    """Rows of a split one by one, holding one row group at a time.

    Args:
        shard: (i, n) gives every n-th row from the i-th.
        recipes: None gives all.

    Raises:
        InputError: no finished store, a recipe it does not hold, or a damaged part.
    """
    _, paths = select_parts(store, split=split, recipes=recipes)
    index, of = shard
    number = 0
    for path in paths:
        fs, inner = filesystem(path)
        with _reading(path), fs.open_input_file(inner) as stream:
            for batch in pq.ParquetFile(stream, page_checksum_verification=True).iter_batches(ROWS_PER_GROUP):
                for row in batch.to_pylist():
                    if number % of == index:
                        yield row
                    number += 1


def _export_name(row: Row) -> str:
    return f"{row['recipe']}-{row['copy']}/{os.path.splitext(row['source'])[0]}.jpg"


def export_store(
    config: Config, folder: str, *, split: str | None = None, recipes: Sequence[str] | None = None
) -> dict[str, Any]:
    """Write a store, or a part of it, as pictures with a COCO keypoints JSON and the wide CSV.

    Args:
        folder: gets `images/<recipe>-<copy>/<source>.jpg`, `annotations.json` and `annotations.csv`.
        split, recipes: which rows; None: all.

    Returns:
        `images` and `folder`.

    Raises:
        InputError: no finished store, or a recipe it does not hold; an export is in `folder` already, or two sources
            differ in their suffix alone.
    """
    store = config.path("store")
    manifest = read_manifest(store)
    skeleton = config.skeleton_of(manifest.skeleton)
    names, keypoints, sizes, scenes, cameras, frames = [], [], [], [], [], []
    for name in ("images", "annotations.json", "annotations.csv"):
        if exists(join(folder, name)):
            raise InputError(f"{folder}: holds {name} already, of an export or your own: name a new folder")
    source_of: dict[str, str] = {}
    planned = read_table(store, split=split, recipes=recipes, columns=["source", "recipe", "copy"])
    for row in planned.to_pylist():  # before anything is written
        name = _export_name(row)
        if name in source_of:
            raise InputError(f"{store}: {row['source']} and {source_of[name]} would both be {name}: rename one of them")
        source_of[name] = row["source"]
    try:
        for row in iter_rows(store, split=split, recipes=recipes):
            name = _export_name(row)
            write_bytes(join(folder, "images", name), row["image"])
            names.append(name)
            keypoints.append(np.array(row["keypoints"], dtype=np.float64).reshape(-1, 3))
            sizes.append((row["width"], row["height"]))
            scenes.append(row["scene"])
            cameras.append(row["camera"])
            frames.append(row["frame"])
        if not names:
            raise InputError(f"{store}: holds no rows of this selection: nothing to export")
        rows = Annotations(skeleton, tuple(names), np.stack(keypoints), tuple(scenes), tuple(cameras), tuple(frames))
        coco = json.dumps(to_coco(rows, sizes), ensure_ascii=False)
        write_bytes(join(folder, "annotations.json"), coco.encode())
        write_bytes(join(folder, "annotations.csv"), to_csv(rows))
    except BaseException:  # also Ctrl-C: half an export would pass for a whole one
        if exists(join(folder, "images")):
            fs, inner = filesystem(join(folder, "images"))
            fs.delete_dir(inner)
        raise
    return {"images": len(names), "folder": folder}
