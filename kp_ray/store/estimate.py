"""Estimate a store's size and duration from a few of its sources."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.cpus import usable_cpus
from kp_ray.storage import exists, file_sizes
from kp_ray.store.layout import current_path
from kp_ray.store.parts import make_variants, sample_evenly
from kp_ray.store.plan import Chunk, Plan

MAX_PROBES = 3
"""Maximum number of sources per split whose rows are made for an estimate."""
ROW_BYTES = 3000
"""Bytes that a row takes in a part besides its image, measured on stores of 320x180 and 1920x1080 frames."""
START_UP_S = 9
"""Seconds until a local cluster has started and its workers have imported their modules: 7 to 14 on two cores."""


@dataclass(frozen=True)
class StoreEstimate:
    """The estimated contents and cost of a whole store.

    Attributes:
        sources, variants, parts: number of sources, variants and parts in the whole store.
        bytes: total size of the parts.
        seconds: duration on `cpus` CPUs, start-up included.
        cpus: number of CPUs that `seconds` assumes.
        cpu_s_per_source: CPU seconds per source.
        probed: number of sources whose rows were made for the estimate.
    """

    sources: int
    variants: int
    parts: int
    bytes: int
    seconds: float
    cpus: float
    cpu_s_per_source: float
    probed: int


@dataclass(frozen=True)
class AugmentForecast(StoreEstimate):
    """The estimate that `augment --dry-run` prints.

    Attributes:
        parts_kept: number of parts that exist already and are kept.
        recipes: number of recipes.
        store: local path or URL of the store.
    """

    parts_kept: int
    recipes: int
    store: str

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        return [
            f"{self.sources} sources, {self.variants} variants of {self.recipes} recipes, "
            f"{self.parts} parts ({self.parts_kept} exist already) in {self.store}",
            f"about {format_size(self.bytes)} and {format_time(self.seconds)} on {self.cpus:g} CPUs for the whole "
            f"store ({self.cpu_s_per_source:.2f} CPU seconds per source, measured on {self.probed} sources)",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        names = [*(field.name for field in fields(StoreEstimate)), "parts_kept"]
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _Probe:
    """The size in bytes of one source's rows, and the CPU seconds needed to make them."""

    num_bytes: int
    cpu_s: float


def forecast_augment(plan: Plan, config: Config) -> AugmentForecast:
    """Estimate what `augment` would write, and how long it takes on `cluster.num_cpus` CPUs (default: this machine's).

    Raises:
        StoreError: the manifest is damaged, or another version of kp_ray wrote it.
    """
    estimate = estimate_store(plan, config.cluster.num_cpus or usable_cpus())
    # Files, not the manifest: parts of an interrupted run are kept too, and deleted parts are written again.
    existing_parts = {current_path(path) for path in file_sizes(plan.store)} if exists(plan.store) else set()
    return AugmentForecast(
        **vars(estimate),
        parts_kept=sum(part.path in existing_parts for part in plan.parts()),
        recipes=len(plan.recipes),
        store=plan.store,
    )


def estimate_store(plan: Plan, num_cpus: float) -> StoreEstimate:
    """Estimate a store's size and duration by making the rows of up to MAX_PROBES sources per split on this machine."""
    num_sources = num_variants = num_probed = 0
    num_bytes = cpu_s = 0.0
    for split in ("train", "val"):
        chunks = [chunk for chunk in plan.chunks if chunk.sources[0].split == split]
        num_split_sources = sum(len(chunk.sources) for chunk in chunks)
        probes = _probe_chunks(plan, chunks)
        num_sources += num_split_sources
        num_variants += sum(len(chunk.sources) * sum(part.copies for part in chunk.parts) for chunk in chunks)
        num_probed += len(probes)
        num_bytes += sum(probe.num_bytes for probe in probes) / max(len(probes), 1) * num_split_sources
        cpu_s += sum(probe.cpu_s for probe in probes) / max(len(probes), 1) * num_split_sources
    return StoreEstimate(
        sources=num_sources,
        variants=num_variants,
        parts=sum(1 for _ in plan.parts()),
        bytes=round(num_bytes),
        seconds=round(cpu_s / num_cpus + START_UP_S, 3),
        cpus=num_cpus,
        cpu_s_per_source=round(cpu_s / max(num_sources, 1), 4),
        probed=num_probed,
    )


def _probe_chunks(plan: Plan, chunks: Sequence[Chunk]) -> list[_Probe]:
    """Measure the first source of each of up to MAX_PROBES evenly spread chunks; skip unusable sources."""
    probes: list[_Probe] = []
    is_warm = False
    for chunk in sample_evenly(chunks, MAX_PROBES):
        recipes = [(part.recipe, part.copies) for part in chunk.parts]
        if not is_warm:  # load the libraries before the measurement
            is_warm = bool(make_variants(plan, chunk.sources[0], recipes)[0])
        began = time.process_time()
        variants, _ = make_variants(plan, chunk.sources[0], recipes)
        if variants:
            cpu_s = time.process_time() - began
            probes.append(_Probe(sum(len(variant.image) + ROW_BYTES for variant in variants), cpu_s))
    return probes


def format_size(num_bytes: float) -> str:
    """Format a number of bytes with at most three digits and a decimal unit, e.g. "12.3 MB"."""
    rounded = float(f"{num_bytes:.3g}")  # first, so that 999,600 bytes are 1 MB, not 1e+03 kB
    power = min(int(np.log10(max(rounded, 1)) // 3), 4)
    return f"{rounded / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def format_time(seconds: float) -> str:
    """Format seconds as "90 s", "12 min" or "3.4 h"."""
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
