"""Re-hash a store's parts and re-make a sample of its rows."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kp_ray.storage import exists, filesystem, join, read_bytes, writer_lock
from kp_ray.store.manifest import OPEN, READ, PartRecord, read_manifest
from kp_ray.store.parts import hash_file, make_rows
from kp_ray.store.plan import Plan, Run


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
    return None if hash_file(join(store, part.path))[1] == part.sha256 else "its bytes have changed"


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
        made = pa.Table.from_pylist([row.to_row() for row in rows], schema=stored.schema)
        if str(stored.to_pylist()) != str(made.to_pylist()):  # NaN, an unlabelled point, equals nothing
            problems.append(
                f"{part.path}: rows of {source.name} are not what the sources give; run augment on a new store"
            )
    return problems
