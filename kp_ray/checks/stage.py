"""`check`: look for mistakes in the labels and images, before augmenting and training take hours."""

import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from kp_ray.checks.coco import check_stated_facts
from kp_ray.checks.findings import FINDINGS_FILE, Finding, Sizes, write_findings
from kp_ray.checks.images import check_images
from kp_ray.checks.labels import check_labels
from kp_ray.config.schema import Config
from kp_ray.data.load import load_labels
from kp_ray.errors import StorageError
from kp_ray.json_files import read_json, write_json
from kp_ray.stage import Progress, check_inputs
from kp_ray.storage import exists, hash_file

RECORD_FILE = "check.json"
"""Name of the file in the run folder that says which labels the findings are about."""


@dataclass(frozen=True)
class CheckSummary:
    """Result of `check`.

    Attributes:
        num_images: number of labelled images.
        findings: all findings; findings about image files come before findings about labels.
        label_notes: notes about how the labels were read, and changes made by the corrections file, one line each.
        path: CSV file that holds the findings.
        images_checked: False if data.images is not set, so that only the labels were checked.
    """

    num_images: int
    findings: tuple[Finding, ...]
    label_notes: tuple[str, ...]
    path: str
    images_checked: bool

    @property
    def num_errors(self) -> int:
        """Number of findings of level "error"."""
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def ok(self) -> bool:
        """True if there are no errors; warnings are allowed."""
        return self.num_errors == 0

    def lines(self) -> list[str]:
        """Return the lines for the terminal: the label notes, the total, and one line per kind with its first example.

        Errors come first. Within a level, findings about all images come first, because they cause other findings.
        """
        lines = [*self.label_notes, f"{self.num_images} labelled images, {len(self.findings)} findings in {self.path}"]
        if not self.images_checked:
            lines.append("data.images is not set: only the labels were checked")
        by_kind: dict[tuple[str, bool, str], list[Finding]] = {}
        for finding in self.findings:
            by_kind.setdefault((finding.level, finding.image != "", finding.kind), []).append(finding)
        for (level, is_about_image, kind), group in sorted(by_kind.items()):
            example = group[0]
            text = f"e.g. {example.image}: {example.message}" if is_about_image else example.message
            lines.append(f"  {level} {kind}: {len(group)}, {text}; {example.fix}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`; `findings` holds the number of findings per kind."""
        kinds = Counter(finding.kind for finding in self.findings)
        return {"images": self.num_images, "errors": self.num_errors, "findings": dict(sorted(kinds.items()))}


class CheckStage:
    """The stage `check`."""

    name = "check"
    needs_cluster = False
    needs_dashboard = False

    def applies(self, config: Config) -> bool:
        """Return True: every run checks its inputs."""
        return True

    def check(self, config: Config) -> None:
        """Refuse inputs that do not exist.

        Raises:
            ConfigError: data.annotations is not set, or a path under `data` does not exist.
        """
        check_inputs(config, ["annotations"], ["images", "corrections"])

    def is_done(self, config: Config) -> bool:
        """Return whether the run folder holds the findings about these labels."""
        if not exists(config.path(FINDINGS_FILE)):
            return False
        with contextlib.suppress(StorageError):  # a missing or damaged record is written again
            return read_json(config.path(RECORD_FILE), "run check again") == _describe_inputs(config)
        return False

    def run(self, config: Config, progress: Progress) -> CheckSummary:
        """Check labels and images, and write the findings and the config to the run folder.

        Raises:
            DataError: the labels or corrections cannot be used.
            StorageError: a file cannot be read or written.
        """
        annotations = load_labels(config)
        findings: list[Finding] = []
        sizes: Sizes = None
        if config.data.images is not None:
            findings, sizes = check_images(
                annotations, config.data.images, progress=lambda done: progress("", done, len(annotations))
            )
        findings += check_labels(annotations, sizes)
        findings += check_stated_facts(annotations, sizes)
        config.save()
        path = config.path(FINDINGS_FILE)
        write_findings(path, findings)
        write_json(config.path(RECORD_FILE), _describe_inputs(config))
        return CheckSummary(
            len(annotations),
            tuple(findings),
            (*annotations.notes, *annotations.corrected),
            path,
            config.data.images is not None,
        )


def _describe_inputs(config: Config) -> dict[str, Any]:
    """Return the settings and the SHA-256 of the files on which the findings about labels depend, as JSON values."""
    data = config.data
    paths = [path for path in (data.annotations, data.corrections) if path]
    return {
        "images": data.images,
        "people": data.people,
        "missing_values": [list(place) for place in data.missing_values],
        "skeleton": config.skeleton.model_dump(mode="json"),
        "sha256": [hash_file(path)[1] for path in paths],
    }
