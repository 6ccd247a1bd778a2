"""The stage `report`."""

from dataclasses import asdict, dataclass
from typing import Any

from kp_ray.config.schema import Config
from kp_ray.reporting.page import write_report
from kp_ray.stage import Progress


@dataclass(frozen=True)
class ReportSummary:
    """Path of the report."""

    report: str

    def lines(self) -> list[str]:
        """Lines of text for the terminal."""
        return [f"report: {self.report}"]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self)


class ReportStage:
    """Write `report.html` about whatever the run folder holds."""

    name = "report"
    needs_cluster = False
    needs_dashboard = False

    def applies(self, config: Config) -> bool:
        """Return true: every run has a report."""
        return True

    def check(self, config: Config) -> None:
        """Refuse nothing: the report is made of whatever earlier stages leave."""

    def is_done(self, config: Config) -> bool:
        """Return false: the report is written again every time."""
        return False

    def run(self, config: Config, progress: Progress) -> ReportSummary:
        """Write the report.

        Raises:
            RunStateError: there is no run folder.
            KpRayError: a file of the run folder is damaged.
        """
        return ReportSummary(write_report(config))

    def forecast(self, config: Config) -> ReportSummary:
        """Return the path that `run` would write."""
        return ReportSummary(config.path("report.html"))
