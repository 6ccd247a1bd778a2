"""Forecast a store's size and time from a few of its sources."""

import os
import time
from typing import Any

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.storage import exists, join
from kp_ray.store.manifest import read_manifest
from kp_ray.store.parts import make_rows
from kp_ray.store.plan import Plan

PROBES = 3
"""Sources of each split that a forecast makes the rows of."""
ROW_BYTES = 3000
"""What a row takes in a part beside its picture: measured on stores of 320x180 and 1920x1080 frames."""
START_UP_S = 9
"""Of a local cluster and its workers' imports, measured on two cores."""


def _num_cpus() -> int:
    # Not everywhere can a process ask which CPUs it may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forecast_augment(planned: Plan, config: Config) -> dict[str, Any]:
    result = estimate(planned, config.cluster.num_cpus or _num_cpus())
    there: set[str] = set()
    if exists(join(planned.store, "manifest.json")):
        there = {part.path for part in read_manifest(planned.store).parts}
    result["parts_kept"] = sum(part.path in there for run in planned.runs for part in run.parts)
    lines = [
        f"{result['sources']} sources, {result['variants']} variants of {len(planned.recipes)} recipes, "
        f"{result['parts']} parts ({result['parts_kept']} there already) in {planned.store}",
        f"about {format_size(result['bytes'])} and {format_time(result['seconds'])} on {result['cpus']:g} CPUs for all "
        f"of it ({result['cpu_s_per_source']:.2f} CPU seconds a source, from {result['probed']} probed)",
    ]
    return {**result, "lines": lines}


def estimate(planned: Plan, num_cpus: float) -> dict[str, Any]:
    """A store's size and time, from making the rows of a few of its sources here and now.

    Returns:
        `sources`, `variants`, `parts`, `bytes`, `seconds` on `num_cpus` with the start-up, `cpus`,
        `cpu_s_per_source`, `probed`.
    """
    sources = {"train": 0, "val": 0}
    total = {"variants": 0, "bytes": 0.0, "seconds": 0.0}
    probed = 0
    for split in sources:
        runs = [run for run in planned.runs if run.sources[0].split == split]
        sources[split] = sum(len(run.sources) for run in runs)
        size, seconds, usable, warm = 0, 0.0, 0, False
        for index in np.unique(np.linspace(0, len(runs) - 1, PROBES, dtype=int)) if runs else ():
            run = runs[index]
            recipes = [(part.recipe, part.copies) for part in run.parts]
            if not warm:  # the first picture pays for what is loaded once
                warm = bool(make_rows(planned, run.sources[0], recipes)[0])
            began = time.process_time()
            rows, _ = make_rows(planned, run.sources[0], recipes)
            if not rows:  # goes to quarantine
                continue
            seconds += time.process_time() - began
            size += sum(len(row.image) + ROW_BYTES for row in rows)
            usable += 1
        probed += usable
        total["variants"] += sum(len(run.sources) * sum(part.copies for part in run.parts) for run in runs)
        total["bytes"] += size / max(usable, 1) * sources[split]
        total["seconds"] += seconds / max(usable, 1) * sources[split]
    count = sum(sources.values())
    return {
        "sources": count,
        "variants": total["variants"],
        "parts": sum(len(run.parts) for run in planned.runs),
        "bytes": round(total["bytes"]),
        "seconds": round(total["seconds"] / num_cpus + START_UP_S, 3),
        "cpus": num_cpus,
        "cpu_s_per_source": round(total["seconds"] / max(count, 1), 4),
        "probed": probed,
    }


def format_size(num_bytes: float) -> str:
    power = min(int(np.log10(max(num_bytes, 1)) // 3), 4)
    return f"{num_bytes / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def format_time(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
