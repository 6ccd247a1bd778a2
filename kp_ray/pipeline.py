"""Run one stage, or all stages in order."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from kp_ray.cluster.session import session
from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError
from kp_ray.stage import ForecastStage, Progress, Stage, Summary, check_inputs

if TYPE_CHECKING:
    from kp_ray.prediction.stage import EvaluateSummary, PredictSummary
    from kp_ray.reporting.stage import ReportSummary
    from kp_ray.store.stage import AugmentStage, AugmentSummary
    from kp_ray.training.run import TrainSummary

STAGES = {
    "check": "kp_ray.checks.stage:CheckStage",
    "augment": "kp_ray.store.stage:AugmentStage",
    "tune": "kp_ray.tuning.stage:TuneStage",
    "train": "kp_ray.training.stage:TrainStage",
    "crossval": "kp_ray.crossval.stage:CrossvalStage",
    "predict": "kp_ray.prediction.stage:PredictStage",
    "evaluate": "kp_ray.prediction.stage:EvaluateStage",
    "report": "kp_ray.reporting.stage:ReportStage",
    "suspects": "kp_ray.suspects.stage:SuspectsStage",
}
"""Verb -> location of the stage's class, in the order of `kp-ray run`, which leaves out `suspects`. Classes are
imported on first use, because `augment` must run without torch."""

_NEXT_VERBS = {"check": ("augment",), "tune": ("train",), "train": ("predict",), "predict": ("evaluate", "report")}
"""Verb -> the verbs that can follow it, most useful first."""

ShowProgress = Callable[[str], contextlib.AbstractContextManager[Progress]]
"""Type of a function that opens the progress display of a verb."""
Say = Callable[[str], None]
"""Type of a function that prints one line."""


@dataclass(frozen=True)
class RunSummary:
    """The results of a whole run.

    Attributes:
        augment, train, predict, report: summaries of these stages.
        sources_per_s: sources per second of the latest `augment` that wrote parts, in this run or an earlier one.
        evaluate: summary of this stage; None if the predicted images have no ground truth.
    """

    augment: "AugmentSummary"
    sources_per_s: float
    train: "TrainSummary"
    predict: "PredictSummary"
    evaluate: "EvaluateSummary | None"
    report: "ReportSummary"

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal; every other stage has printed its own summary when it ended."""
        return [
            *(self.evaluate.lines() if self.evaluate else []),
            *([self.train.search.describe()] if self.train.search else []),
            f"submission: {self.predict.submission}",
            f"report: {self.report.report}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        values = {
            "search": asdict(self.train.search) if self.train.search else None,
            "augment": self.augment.to_json(),
            "predict": self.predict.to_json(),
            "report": self.report.report,
            "submission": self.predict.submission,
        }
        return values | ({"evaluation": self.evaluate.to_json()} if self.evaluate else {})


def make_stage(verb: str) -> Stage:
    """Create the stage of a verb.

    Raises:
        ModuleNotFoundError: a package that the stage needs is not installed.
    """
    module, _, name = STAGES[verb].partition(":")
    return cast(Stage, getattr(import_module(module), name)())


class Runner:
    """Runs stages in one Ray session, which starts before the first stage that needs it.

    A `Runner` is a context manager; leaving the context ends the session.
    """

    def __init__(self, config: Config, show_progress: ShowProgress, say: Say) -> None:
        self.config, self.show_progress, self.say = config, show_progress, say
        self.exit_stack = contextlib.ExitStack()
        self.has_session = False

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.exit_stack.__exit__(*exception)

    def run(self, stage: Stage, *, dashboard: bool) -> Summary:
        """Run a stage whose `check` has passed.

        Args:
            stage: the stage.
            dashboard: whether to start Ray's dashboard too, if this call starts a local cluster.

        Raises:
            KpRayError: the stage failed or was stopped.
        """
        if stage.needs_cluster and not self.has_session and not stage.is_done(self.config):
            start_up_s = self.exit_stack.enter_context(session(self.config, dashboard=dashboard, say=self.say))
            self.has_session = True
            if hasattr(stage, "session_start_up_s"):
                stage.session_start_up_s = start_up_s
        if hasattr(stage, "describe_settings") and (line := stage.describe_settings(self.config)):
            self.say(line)
        with self.show_progress(stage.name) as progress:
            return stage.run(self.config, progress)


def run_stage(verb: str, config: Config, show_progress: ShowProgress, say: Say) -> Summary:
    """Check and run one stage.

    Raises:
        KpRayError: the stage refuses the config, failed or was stopped.
    """
    stage = make_stage(verb)
    stage.check(config)
    with Runner(config, show_progress, say) as runner:
        return runner.run(stage, dashboard=stage.needs_dashboard)


def forecast_stage(verb: str, config: Config) -> Summary:
    """Check one stage and estimate its work; start and write nothing.

    Raises:
        KpRayError: the stage refuses the config.
    """
    stage = cast(ForecastStage, make_stage(verb))
    stage.check(config)
    return stage.forecast(config)


def run_pipeline(
    config: Config, show_progress: ShowProgress, say: Say, on_end: Callable[[str, Summary], None]
) -> RunSummary:
    """Run every stage that applies, in order.

    All stages are checked before the first one runs, and again once the store is written, so that no config is refused
    after hours of training.

    Args:
        config: the run's configuration.
        show_progress: opens the progress display of a verb.
        say: prints one line.
        on_end: called with the verb and the summary of each stage when the stage ends.

    Raises:
        KpRayError: a stage refuses the config, failed or was stopped.
    """
    stages = {verb: make_stage(verb) for verb in STAGES}
    dashboard = any(stage.needs_dashboard for stage in stages.values())
    summaries: dict[str, Any] = {}
    has_current_store = _check_stages(config, stages)
    with Runner(config, show_progress, say) as runner:
        for verb, stage in stages.items():
            if verb == "check" and has_current_store and stage.is_done(config):
                continue  # an earlier run checked these labels and the images of this store
            if stage.applies(config):
                summaries[verb] = runner.run(stage, dashboard=dashboard)
                on_end(verb, summaries[verb])
            elif verb == "tune" and config.tune.num_trials:
                reason = "the store has no validation rows" if config.train.tuned else "train.tuned is false"
                say(f"tune: skipped, because {reason}")
            if verb == "augment" and not has_current_store:
                _check_stages(config, stages)
    return _summarize(config, summaries)


def _check_stages(config: Config, stages: Mapping[str, Stage]) -> bool:
    """Check the stages that apply.

    Stages that read the store are not checked against a store that `augment` is about to replace.

    Returns:
        Whether the store holds exactly the variants that the config plans.
    """
    from kp_ray.store.layout import has_store
    from kp_ray.training.settings import refuse_late_search, refuse_new_store

    augment = cast("AugmentStage", stages["augment"])
    augment.check(config)
    has_current_store = augment.is_done(config)
    if augment.replaces_store(config):  # a store that holds every part, and others too, is also replaced
        has_current_store = False
        refuse_new_store(config)
    has_stale_store = not has_current_store and has_store(config.path("store"))
    if has_stale_store:  # a missing file is refused now all the same
        check_inputs(config, optional=["test_images", "sample_submission", "truth"])
    unchecked_verbs = ("train", "tune", "crossval", "predict", "evaluate") if has_stale_store else ()
    for verb, stage in stages.items():
        if verb not in unchecked_verbs and stage.applies(config):
            stage.check(config)
    if has_current_store and stages["tune"].applies(config) and not stages["tune"].is_done(config):
        refuse_late_search(config)
    return has_current_store


def _summarize(config: Config, summaries: Mapping[str, Any]) -> RunSummary:
    from kp_ray.store.augment_record import read_augment_record

    record = read_augment_record(config)
    return RunSummary(
        augment=summaries["augment"],
        sources_per_s=record.sources_per_s if record else summaries["augment"].sources_per_s,
        train=summaries["train"],
        predict=summaries["predict"],
        evaluate=summaries.get("evaluate"),
        report=summaries["report"],
    )


def find_next_verb(verb: str, config: Config) -> str | None:
    """Return the verb that can follow a finished verb; None if no such verb accepts the config.

    Args:
        verb: the finished verb.
        config: the configuration that it ran with.
    """
    if verb == "augment":  # the next stage is neither made nor checked, because this would import torch
        from kp_ray.training.search_result import uses_search

        return "tune" if uses_search(config) else "train"
    for next_verb in _NEXT_VERBS.get(verb, ()):
        with contextlib.suppress(KpRayError):
            stage = make_stage(next_verb)
            if stage.applies(config):
                stage.check(config)
                return next_verb
    return None
