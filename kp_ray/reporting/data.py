"""Section "Data": the findings of `check`, the sources and the split."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from kp_ray.checks.findings import FINDINGS_FILE, Finding, read_findings
from kp_ray.config.inputs import SplitConfig
from kp_ray.config.schema import Config
from kp_ray.reporting.run_files import RunFiles
from kp_ray.storage import exists

MAX_EXAMPLES = 3
"""Maximum number of findings shown per kind, and of frame sizes shown."""


@dataclass(frozen=True)
class FindingKind:
    """The findings of one kind.

    Attributes:
        level: "error" or "warning".
        kind: name of the kind, as in check.csv.
        count: number of findings of this kind.
        examples: the first MAX_EXAMPLES of these findings.
    """

    level: str
    kind: str
    count: int
    examples: tuple[Finding, ...]


@dataclass(frozen=True)
class SplitSide:
    """One side of the split.

    Attributes:
        name: "train" or "val".
        num_variants: number of variants in the store.
        num_units: number of units of `split.by` (e.g. scenes) on this side; 0 if unknown.
    """

    name: str
    num_variants: int
    num_units: int


@dataclass(frozen=True)
class DataSection:
    """The labelled data.

    Attributes:
        num_findings: number of findings of `check`; None if it did not run.
        kinds: the findings by kind: errors before warnings, then the kinds with more findings first.
        num_sources: number of sources in the store; None without a store.
        num_keypoints: number of keypoints of the skeleton; 0 without a store.
        sides: the sides of the split; empty without a store.
        cameras: sorted names of the cameras.
        frame_sizes: the MAX_EXAMPLES smallest sizes of the sources, e.g. "1920x1080", and "..." if there are more.
        split: the config's `split` section.
    """

    num_findings: int | None
    kinds: tuple[FindingKind, ...]
    num_sources: int | None
    num_keypoints: int
    sides: tuple[SplitSide, ...]
    cameras: tuple[str, ...]
    frame_sizes: tuple[str, ...]
    split: SplitConfig


def data_section(config: Config, files: RunFiles) -> DataSection | None:
    """Build the section; None if there is neither a store nor check.csv."""
    path, manifest = config.path(FINDINGS_FILE), files.manifest
    findings = read_findings(path) if exists(path) else None
    if findings is None and manifest is None:
        return None
    num_rows_by_side: Mapping[str, int] = manifest.num_rows_by_split if manifest else {}
    units: Mapping[str, tuple[str, ...]] = manifest.units if manifest else {}
    return DataSection(
        num_findings=None if findings is None else len(findings),
        kinds=_group_findings(findings or []),
        num_sources=manifest.num_sources if manifest else None,
        num_keypoints=len(manifest.skeleton) if manifest else 0,
        sides=tuple(SplitSide(name, count, len(units.get(name, ()))) for name, count in num_rows_by_side.items()),
        cameras=tuple(sorted({camera for sample in files.samples.values() for camera in sample.cameras if camera})),
        frame_sizes=_frame_sizes(files),
        split=config.split,
    )


def _group_findings(findings: list[Finding]) -> tuple[FindingKind, ...]:
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.level, finding.kind].append(finding)
    kinds = [
        FindingKind(level, kind, count=len(group), examples=tuple(group[:MAX_EXAMPLES]))
        for (level, kind), group in groups.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: (kind.level != "error", -kind.count)))


def _frame_sizes(files: RunFiles) -> tuple[str, ...]:
    sample = files.samples.get("Original")
    sizes = sorted({(int(width), int(height)) for width, height in sample.sizes}) if sample else []
    texts = [f"{width}x{height}" for width, height in sizes[:MAX_EXAMPLES]]
    return (*texts, "...") if len(sizes) > MAX_EXAMPLES else tuple(texts)
