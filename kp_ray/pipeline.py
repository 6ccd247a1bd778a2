"""The stages in their order, one stage alone, and `run`: all of them, skipping what is done."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from kp_ray.cluster.session import session
from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError
from kp_ray.stage import Progress, Stage, Summary

if TYPE_CHECKING:
    from kp_ray.prediction.stage import EvaluateSummary, PredictSummary
    from kp_ray.reporting.stage import ReportSummary
    from kp_ray.store.stage import AugmentSummary

STAGES = {
    "check": "kp_ray.checks.stage:CheckStage",
    "augment": "kp_ray.store.stage:AugmentStage",
    "train": "kp_ray.training.stage:TrainStage",
    "tune": "kp_ray.tuning.stage:TuneStage",
    "predict": "kp_ray.prediction.stage:PredictStage",
    "evaluate": "kp_ray.prediction.stage:EvaluateStage",
    "report": "kp_ray.reporting.stage:ReportStage",
}
"""The stages of `run` in their order, imported when they are needed: `augment` runs on machines without torch."""

ShowProgress = Callable[[str], contextlib.AbstractContextManager[Progress]]
"""Opens the progress display of a verb."""
Say = Callable[[str], None]
"""Prints one line."""


@dataclass(frozen=True)
class RunSummary:
    """The results of a whole run.

    Attributes:
        sources_per_s: rate of the last `augment` that wrote parts.
    """

    augment: "AugmentSummary"
    sources_per_s: float
    predict: "PredictSummary"
    evaluate: "EvaluateSummary | None"
    report: "ReportSummary"

    def lines(self) -> list[str]:
        """Lines of text for the terminal; each stage has printed its own when it ended."""
        return [f"submission: {self.predict.submission}", f"report: {self.report.report}"]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        values = {
            "augment": self.augment.to_json(),
            "predict": self.predict.to_json(),
            "report": self.report.report,
            "submission": self.predict.submission,
        }
        return values | ({"evaluation": self.evaluate.to_json()} if self.evaluate else {})


def make_stage(verb: str) -> Stage:
    """Create the stage of a verb.

    Raises:
        ModuleNotFoundError: what the stage needs is not installed.
    """
    module, _, name = STAGES[verb].partition(":")
    return cast(Stage, getattr(import_module(module), name)())


class Runner:
    """Runs stages on one session, which starts when the first of them needs it.

    Use as a context manager; leaving it ends the session.
    """

    def __init__(self, config: Config, show_progress: ShowProgress, say: Say) -> None:
        self.config, self.show_progress, self.say = config, show_progress, say
        self.resources = contextlib.ExitStack()
        self.has_session = False

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.resources.__exit__(*exception)

    def run(self, stage: Stage, *, dashboard: bool) -> Summary:
        """Run a stage that has been checked.

        Args:
            stage: the stage.
            dashboard: whether a session that starts now has Ray's dashboard.

        Raises:
            KpRayError: as the stage.
        """
        if stage.needs_cluster and not stage.is_done(self.config) and not self.has_session:
            start_up_s = self.resources.enter_context(session(self.config, dashboard=dashboard, say=self.say))
            self.has_session = True
            if hasattr(stage, "session_start_up_s"):
                stage.session_start_up_s = start_up_s
        with self.show_progress(stage.name) as progress:
            return stage.run(self.config, progress)


def run_stage(verb: str, config: Config, show_progress: ShowProgress, say: Say) -> Summary:
    """Check and run one stage.

    Raises:
        KpRayError: as the stage.
    """
    stage = make_stage(verb)
    stage.check(config)
    with Runner(config, show_progress, say) as runner:
        return runner.run(stage, dashboard=stage.needs_dashboard)


def forecast_stage(verb: str, config: Config) -> Summary:
    """Check one stage and describe what it would do; start and write nothing.

    Raises:
        KpRayError: as the stage.
    """
    stage = make_stage(verb)
    stage.check(config)
    return stage.forecast(config)


def run_pipeline(
    config: Config, show_progress: ShowProgress, say: Say, on_end: Callable[[str, Summary], None]
) -> RunSummary:
    """Run every stage that applies, in order.

    Before each stage, all those still to come are checked: what a later one would refuse is refused now, not after
    hours of training.

    Args:
        config: the run's configuration.
        show_progress, say: displays.
        on_end: called with the verb and the summary of each stage as it ends.

    Raises:
        KpRayError: as the stages.
    """
    stages = [make_stage(verb) for verb in STAGES]
    dashboard = any(stage.needs_dashboard for stage in stages)
    summaries: dict[str, Any] = {}
    with Runner(config, show_progress, say) as runner:
        for index, stage in enumerate(stages):
            for later in stages[index:]:
                if later.applies(config):
                    later.check(config)
            if stage.name == "check" and stage.is_done(config) and stages[1].is_done(config):
                continue  # a finished store was made of these labels and images
            if stage.applies(config):
                summaries[stage.name] = runner.run(stage, dashboard=dashboard)
                on_end(stage.name, summaries[stage.name])
    return _summarize(config, summaries)


def _summarize(config: Config, summaries: Mapping[str, Any]) -> RunSummary:
    from kp_ray.store.figures import read_store_figures

    figures = read_store_figures(config)
    return RunSummary(
        augment=summaries["augment"],
        sources_per_s=figures.sources_per_s if figures else summaries["augment"].sources_per_s,
        predict=summaries["predict"],
        evaluate=summaries.get("evaluate"),
        report=summaries["report"],
    )


def next_verb(verb: str, config: Config) -> str | None:
    """Return the first later verb that would accept what is in the run folder now; None if none would.

    `tune` is never named: whether to search is the user's decision.
    """
    verbs = list(STAGES)
    for candidate in verbs[verbs.index(verb) + 1 :]:
        with contextlib.suppress(KpRayError, ModuleNotFoundError):
            stage = make_stage(candidate)
            if candidate != "tune" and stage.applies(config):
                stage.check(config)
                stage.is_done(config)
                return candidate
    return None
