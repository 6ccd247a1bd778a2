"""The stages in their order, one stage alone, and `run`: all of them, skipping what is done."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from kp_ray.cluster.session import session
from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError
from kp_ray.stage import Progress, Stage, Summary

ShowProgress = Callable[[str], contextlib.AbstractContextManager[Progress]]
"""Opens the progress display of a verb."""

ORDER = ("check", "augment", "train", "tune", "predict", "evaluate", "report")
"""The stages of `run`, by verb."""


def make_stage(verb: str) -> Stage:
    """Create the stage of a verb; torch is imported only for those that need it.

    Raises:
        ModuleNotFoundError: what the stage needs is not installed.
    """
    # Imports are here so that `augment` runs on machines without torch.
    if verb == "check":
        from kp_ray.checks.stage import CheckStage

        return CheckStage()
    if verb == "augment":
        from kp_ray.store.stage import AugmentStage

        return AugmentStage()
    if verb == "train":
        from kp_ray.training.stage import TrainStage

        return TrainStage()
    if verb == "tune":
        from kp_ray.tuning.stage import TuneStage

        return TuneStage()
    if verb == "predict":
        from kp_ray.prediction.stage import PredictStage

        return PredictStage()
    if verb == "evaluate":
        from kp_ray.prediction.stage import EvaluateStage

        return EvaluateStage()
    if verb == "report":
        from kp_ray.reporting.stage import ReportStage

        return ReportStage()
    raise ValueError(f"{verb!r} is no stage: {', '.join(ORDER)} are")


class Runner:
    """Runs stages on one session, which starts when the first of them needs it.

    Use as a context manager; leaving it ends the session.
    """

    def __init__(self, config: Config, show_progress: ShowProgress, say: Callable[[str], None]) -> None:
        self.config, self.show_progress, self.say = config, show_progress, say
        self.resources = contextlib.ExitStack()
        self.has_session = False

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.resources.__exit__(*exception)

    def run(self, stage: Stage, *, dashboard: bool | None = None) -> Summary:
        """Run a stage that has been checked.

        Args:
            stage: the stage.
            dashboard: whether a session that starts now has Ray's dashboard; None: if this stage needs it.

        Raises:
            KpRayError: as the stage.
        """
        from kp_ray.store.stage import AugmentStage

        if stage.needs_cluster and not stage.is_done(self.config) and not self.has_session:
            needs_dashboard = stage.needs_dashboard if dashboard is None else dashboard
            start_up_s = self.resources.enter_context(session(self.config, dashboard=needs_dashboard, say=self.say))
            self.has_session = True
            if isinstance(stage, AugmentStage):
                stage.session_start_up_s = start_up_s
        with self.show_progress(stage.name) as progress:
            return stage.run(self.config, progress)


def run_stage(verb: str, config: Config, show_progress: ShowProgress, say: Callable[[str], None]) -> Summary:
    """Check and run one stage.

    Raises:
        KpRayError: as the stage.
    """
    stage = make_stage(verb)
    stage.check(config)
    with Runner(config, show_progress, say) as runner:
        return runner.run(stage)


def forecast_stage(verb: str, config: Config) -> Summary:
    """Check one stage and describe what it would do; start and write nothing.

    Raises:
        KpRayError: as the stage.
    """
    stage = make_stage(verb)
    stage.check(config)
    return stage.forecast(config)


def run_pipeline(
    config: Config, show_progress: ShowProgress, say: Callable[[str], None]
) -> Iterator[tuple[str, Summary]]:
    """Run every stage that applies, in order; give the verb and the summary of each as it ends.

    Before each stage, all those still to come are checked: what a later one would refuse is refused now, not after
    hours of training.

    Raises:
        KpRayError: as the stages.
    """
    stages = [stage for stage in map(make_stage, ORDER) if stage.applies(config)]
    dashboard = any(stage.needs_dashboard for stage in stages)
    with Runner(config, show_progress, say) as runner:
        for index, stage in enumerate(stages):
            for later in stages[index:]:
                later.check(config)
            if stage.applies(config):  # what an earlier stage left may have changed that
                yield stage.name, runner.run(stage, dashboard=dashboard)


def next_verb(verb: str, config: Config) -> str | None:
    """Return the first later verb that would accept what is in the run folder now; None if none would.

    `tune` is never named: whether to search is the user's decision.
    """
    for candidate in ORDER[ORDER.index(verb) + 1 :]:
        with contextlib.suppress(KpRayError, ModuleNotFoundError):
            stage = make_stage(candidate)
            if candidate != "tune" and stage.applies(config):
                stage.check(config)
                stage.is_done(config)
                return candidate
    return None
