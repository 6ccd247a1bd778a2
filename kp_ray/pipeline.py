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
from kp_ray.storage import exists

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

_FOLLOWERS = {"check": ("augment",), "train": ("predict",), "predict": ("evaluate", "report")}
"""The verbs that may be named after a stage: those for which it makes what they need."""

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
        if stage.needs_cluster and not self.has_session and not stage.is_done(self.config):
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

    All stages are checked before the first, and the later ones again once the store is written: what a later stage
    would refuse is refused before hours of training.

    Args:
        config: the run's configuration.
        show_progress, say: displays.
        on_end: called with the verb and the summary of each stage as it ends.

    Raises:
        KpRayError: as the stages.
    """
    stages = {verb: make_stage(verb) for verb in STAGES}
    dashboard = any(stage.needs_dashboard for stage in stages.values())
    summaries: dict[str, Any] = {}
    has_current_store = _check_stages(config, stages)
    with Runner(config, show_progress, say) as runner:
        for verb, stage in stages.items():
            if verb == "check" and has_current_store and stage.is_done(config):
                continue  # the store was made of these labels and images
            if stage.applies(config):
                summaries[verb] = runner.run(stage, dashboard=dashboard)
                on_end(verb, summaries[verb])
            if verb == "augment" and not has_current_store:
                _check_stages(config, stages)
    return _summarize(config, summaries)


def _check_stages(config: Config, stages: Mapping[str, Stage]) -> bool:
    """Check the stages that apply; `train` and `tune` not against a store that `augment` is about to replace.

    Returns:
        Whether the store holds everything that the config plans.
    """
    augment = stages["augment"]
    augment.check(config)
    has_current_store = augment.is_done(config)
    is_stale = not has_current_store and exists(config.path("store", "manifest.json"))
    for verb, stage in stages.items():
        if not (is_stale and verb in ("train", "tune")) and stage.applies(config):
            stage.check(config)
    return has_current_store


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


def next_step(verb: str, config: Config, config_path: str) -> str | None:
    """Return the command that can follow a verb that ended well, without `kp-ray`; None if none would be accepted.

    Args:
        verb: of the stage that ended.
        config: its configuration.
        config_path: the file that it was read from.
    """
    if verb == "tune":
        return f"train {config.path('tune', 'best.yaml')}"
    if verb == "augment":  # `train` accepts a finished store; checking its options would import torch for a hint
        return f"train {config_path}"
    for candidate in _FOLLOWERS.get(verb, ()):
        with contextlib.suppress(KpRayError):
            stage = make_stage(candidate)
            if stage.applies(config):
                stage.check(config)
                return f"{candidate} {config_path}"
    return None
