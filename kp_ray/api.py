"""The stages as functions for a notebook or script, e.g. `kp_ray.augment`.

Each function checks its inputs and returns the summary that the command line prints. Call it inside
`with kp_ray.session(config):`. If a call is interrupted, the same call resumes it.
"""

from typing import TYPE_CHECKING, Any

from kp_ray.cluster.session import has_session
from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError
from kp_ray.stage import Progress, Stage, no_progress

if TYPE_CHECKING:
    from kp_ray.crossval.stage import CrossvalSummary
    from kp_ray.prediction.stage import EvaluateSummary, PredictSummary
    from kp_ray.store.stage import AugmentSummary
    from kp_ray.suspects.stage import SuspectsSummary
    from kp_ray.training.run import TrainSummary
    from kp_ray.tuning.search import TuneSummary


def augment(config: Config, progress: Progress = no_progress) -> "AugmentSummary":
    """Apply every recipe to every labelled image and write the variants to the Parquet store `<run_dir>/store`.

    Args:
        config: from `kp_ray.load_config`.
        progress: called as progress("", sources done, all sources).

    Raises:
        KpRayError: labels, images or settings cannot be used, or the work was stopped.
    """
    from kp_ray.store.stage import AugmentStage

    summary: AugmentSummary = _run(AugmentStage(), config, progress)
    return summary


def train(config: Config, progress: Progress = no_progress) -> "TrainSummary":
    """Train every unfinished member of the ensemble on the store; write the members to `<run_dir>/members`.

    The settings that the run folder's search found replace the config's own, unless `train.tuned` is false.

    Args:
        config: from `kp_ray.load_config`.
        progress: called as progress(member, iterations done, all iterations, latest loss as text).

    Raises:
        KpRayError: there is no store, a search is not finished, the cluster is too small, a loss diverged, or the work
            was stopped.
    """
    from kp_ray.training.stage import TrainStage

    summary: TrainSummary = _run(TrainStage(), config, progress)
    return summary


def tune(config: Config, progress: Progress = no_progress) -> "TuneSummary":
    """Search learning rate, schedule and recipes, which `train` then uses; write `<run_dir>/tune/best.yaml`.

    Args:
        config: from `kp_ray.load_config`.
        progress: called as progress(trial, iterations done, all iterations, the trial's state and settings as text).

    Raises:
        KpRayError: there is no store or no validation scene, every trial failed, or the work was stopped.
    """
    from kp_ray.tuning.stage import TuneStage

    summary: TuneSummary = _run(TuneStage(), config, progress)
    return summary


def predict(config: Config, progress: Progress = no_progress) -> "PredictSummary":
    """Predict the test images with every member, fuse the predictions, and write `<run_dir>/submission.csv`.

    Args:
        config: from `kp_ray.load_config`.
        progress: called as progress("", images done, all images).

    Raises:
        KpRayError: a member is not trained, no image can be used, or the work was stopped.
    """
    from kp_ray.prediction.stage import PredictStage

    summary: PredictSummary = _run(PredictStage(), config, progress)
    return summary


def cross_validate(config: Config, progress: Progress = no_progress) -> "CrossvalSummary":
    """Predict and score each labelled image with the members that never saw its scene; write `<run_dir>/crossval.json`.

    Args:
        config: from `kp_ray.load_config`, with `split.folds`.
        progress: called as progress("fold <number>", images done, all images).

    Raises:
        KpRayError: there are no folds, a member is not trained or was trained on other folds, or the work was stopped.
    """
    from kp_ray.crossval.stage import CrossvalStage

    summary: CrossvalSummary = _run(CrossvalStage(), config, progress)
    return summary


def find_suspects(config: Config, progress: Progress = no_progress) -> "SuspectsSummary":
    """Rank the labels that are probably wrong; write `suspects.csv` and `corrections.csv` to the run folder.

    Without folds or trained members, labels are ranked by motion and repetition alone, and no session is needed.

    Args:
        config: from `kp_ray.load_config`.
        progress: called as `cross_validate` calls it.

    Raises:
        KpRayError: the labels cannot be used, or a fold cannot be predicted, as in `cross_validate`.
    """
    from kp_ray.suspects.stage import SuspectsStage

    summary: SuspectsSummary = _run(SuspectsStage(), config, progress)
    return summary


def evaluate(config: Config, submission: str | None = None) -> "EvaluateSummary":
    """Score the run's predictions, or a submission CSV, against `data.truth`; no session is needed.

    Args:
        config: from `kp_ray.load_config`.
        submission: path of a CSV to score; None scores the run's predictions.

    Raises:
        KpRayError: there is no ground truth or no prediction, or the submission is invalid.
    """
    from kp_ray.prediction.stage import EvaluateStage

    summary: EvaluateSummary = _run(EvaluateStage(submission), config, no_progress)
    return summary


def _run(stage: Stage, config: Config, progress: Progress) -> Any:
    stage.check(config)
    if stage.needs_cluster and not has_session() and not stage.is_done(config):
        raise ClusterError(f"{stage.name}: no session is open: call it inside `with kp_ray.session(config):`")
    return stage.run(config, progress)
