"""The stage `report`."""

from dataclasses import asdict, dataclass
from typing import Any

from kp_ray.config.schema import Config
from kp_ray.reporting.page import write_report
from kp_ray.stage import Progress


@dataclass(frozen=True)
class ReportSummary:
    """The result of `report`.

    Attributes:
        report: path of the page.
    """

    report: str

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        return [f"report: {self.report}"]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        return asdict(self)


class ReportStage:
    """Writes `report.html` about the stages that have run."""

    name = "report"
    needs_cluster = False
    needs_dashboard = False

    def applies(self, config: Config) -> bool:
        """Return True: every run has a report."""
        return True

    def check(self, config: Config) -> None:
        """Accept every config: the report leaves out the sections of stages that have not run."""

    def is_done(self, config: Config) -> bool:
        """Return False: the report is written again every time."""
        return False

    def run(self, config: Config, progress: Progress) -> ReportSummary:
        """Write the report.

        Raises:
            RunStateError: the run folder does not exist.
            KpRayError: a file in the run folder is damaged.
        """
        return ReportSummary(write_report(config))
