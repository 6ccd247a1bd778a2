"""The stages `predict` and `evaluate`.

Modules that import torch are imported inside functions, because `evaluate` works without torch.
"""

import contextlib
from dataclasses import asdict, dataclass
from typing import Any

from kp_ray.config.schema import Config
from kp_ray.data.annotations import reorder_keypoints
from kp_ray.data.load import load_truth
from kp_ray.data.sides import check_flips
from kp_ray.data.submission import check_same_keypoints
from kp_ray.errors import ConfigError, StorageError
from kp_ray.json_files import read_json, require_keys
from kp_ray.member_files import is_trained
from kp_ray.metrics import Evaluation
from kp_ray.prediction.evaluate import evaluate_run, evaluate_submission
from kp_ray.prediction.images import STORE_PREFIX, is_store_split, list_image_refs, refuse_split_of_store_with_folds
from kp_ray.prediction.inputs import read_run_sample, resolve_skeleton, resolve_weights
from kp_ray.prediction.members import check_members_of_other_runs, list_members
from kp_ray.prediction.records import (
    CrossValidation,
    PredictionCost,
    PredictionDetails,
    RunEvaluation,
    SubmissionEvaluation,
    digest_fusion_settings,
    read_cross_validation,
    read_details,
)
from kp_ray.prediction.settings import describe_actors, detections_per_image
from kp_ray.stage import Progress, check_inputs
from kp_ray.storage import exists, reader_lock
from kp_ray.store.layout import has_store
from kp_ray.store.skeleton import find_skeleton, run_skeleton


@dataclass(frozen=True)
class PredictSummary:
    """The result of `predict`.

    Attributes:
        details: content of `predict.json`.
        cost: cost of this run.
        submission: path of `submission.csv`.
        details_path: path of `predict.json`.
    """

    details: PredictionDetails
    cost: PredictionCost
    submission: str
    details_path: str

    def lines(self) -> list[str]:
        """Return the lines for the terminal."""
        details = self.details
        lines = [f"{details.images} images by {len(details.members)} members: {self.submission}"]
        if self.cost.predicted:
            lines.append(f"predicted by {describe_actors(self.cost.gpus_per_actor)}: {self.cost.compute}")
        if details.filled or details.unusable:
            fallbacks = ", ".join(f"{count} by {how}" for how, count in details.fallbacks.items()) or "none"
            lines.append(
                f"filled images: {fallbacks}; unusable images: {len(details.unusable)}; listed in {self.details_path}"
            )
        people = details.people
        if people.several:
            lines.append(
                f"a member found several people in an image {people.several} times; predict.person: {people.rule} did "
                f"not choose the best score {people.other_than_best_score} times"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        details = self.details
        return {
            "images": details.images,
            "members": list(details.members),
            "fallbacks": details.fallbacks,
            "filled": len(details.filled),
            "unusable": len(details.unusable),
            "people": asdict(details.people),
            "weights": details.weights.chosen,
            "submission": self.submission,
            **self.cost.model_dump(),
        }


@dataclass(frozen=True)
class PredictForecast:
    """Forecast of what `predict` does.

    Attributes:
        images: number of images to predict.
        members: number of members.
        trained: number of trained members.
        actors: smallest and largest size of the actor pool.
        cpus_per_actor: CPUs of each actor.
        gpus_per_actor: GPUs of each actor; None means 1 if the cluster has GPUs, else 0.
    """

    images: int
    members: int
    trained: int
    actors: tuple[int, int]
    cpus_per_actor: float
    gpus_per_actor: float | None

    def lines(self) -> list[str]:
        """Return the lines for the terminal."""
        min_actors, max_actors = self.actors
        gpus = "a GPU if the cluster has GPUs" if self.gpus_per_actor is None else f"{self.gpus_per_actor:g} GPUs"
        return [
            f"{self.images} images by {self.members} members ({self.trained} trained), {min_actors} to {max_actors} "
            f"actors, each with {self.cpus_per_actor:g} CPUs and {gpus}"
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        return {"images": self.images, "members": self.members, "trained": self.trained}


class PredictStage:
    """Predict images with every member, fuse the predictions, and write the submission."""

    name = "predict"
    needs_cluster = True
    needs_dashboard = False

    def applies(self, config: Config) -> bool:
        """Return True: `run` always predicts."""
        return True

    def check(self, config: Config) -> None:
        """Refuse an invalid list of images or sample submission, unknown members, and members of another skeleton.

        Raises:
            ConfigError: an input is not set or does not exist, `predict.members` or `predict.weights` names an unknown
                member, `predict.tta` has `flip` and the skeleton's flip pairs are incomplete, or
                TEST.DETECTIONS_PER_IMAGE is no whole number of 1 or more.
            DataError: the sample submission or the list of images is invalid, or the sample submission or a member of
                another run has other keypoints.
            ModelError: a member of another run is not trained.
        """
        check_inputs(config, optional=["test_images", "sample_submission"])
        members, sample, section = list_members(config), read_run_sample(config), config.predict
        _check_untrained_members(config)
        detections_per_image(config)
        if sample is not None and (labelled_skeleton := find_skeleton(config)):
            check_same_keypoints(sample, labelled_skeleton)
        if "flip" in section.tta or section.members or not isinstance(section.weights, str):
            has_skeleton = sample is not None or has_store(config.path("store"))
            skeleton = resolve_skeleton(config, sample) if has_skeleton else run_skeleton(config)
            resolve_weights(config, list(members), skeleton)
            check_members_of_other_runs(config, skeleton)
            check_flips(config, skeleton, "predict")
        if is_store_split(config):
            _check_store_split(config)
        else:
            list_image_refs(config, sample)

    def is_done(self, config: Config) -> bool:
        """Return whether every image is predicted, so that no cluster is needed.

        Raises:
            KpRayError: see `PredictionTask`; for example, a member is not trained.
        """
        from kp_ray.prediction.task import PredictionTask

        return not PredictionTask(config).find_missing_images()

    def run(self, config: Config, progress: Progress) -> PredictSummary:
        """Predict the missing images, then fuse.

        Raises:
            KpRayError: see `predict`.
        """
        from kp_ray.prediction.run import predict

        details, cost = predict(config, progress)
        return PredictSummary(details, cost, config.path("submission.csv"), config.path("predict.json"))

    def forecast(self, config: Config) -> PredictForecast:
        """Describe what `run` would do.

        Raises:
            KpRayError: the images or the sample submission are missing or invalid.
        """
        images = list_image_refs(config, read_run_sample(config))
        members = list_members(config)
        section = config.predict
        return PredictForecast(
            images=len(images),
            members=len(members),
            trained=sum(is_trained(folder) for folder in members.values()),
            actors=section.actors,
            cpus_per_actor=section.cpus_per_actor,
            gpus_per_actor=section.gpus_per_actor,
        )


@dataclass(frozen=True)
class EvaluateSummary:
    """The result of `evaluate`.

    Attributes:
        evaluation: metrics of the run's predictions, or of a submission.
        crossval: content of `crossval.json`; None if there is no such file, or a submission was scored.
        matches_submission: False if `submission.csv` was fused with other settings or from other members.
    """

    evaluation: RunEvaluation | SubmissionEvaluation
    crossval: CrossValidation | None = None
    matches_submission: bool = True

    def rows(self) -> dict[str, Evaluation]:
        """Return each row of the printed table by name: members, ensemble and out of fold, or the submission."""
        if not isinstance(self.evaluation, RunEvaluation):
            return {"submission": self.evaluation}
        members = {f"member {name}": evaluation for name, evaluation in self.evaluation.members.items()}
        out_of_fold = {"out of fold": self.crossval} if self.crossval else {}
        return {**members, "ensemble": self.evaluation, **out_of_fold}

    def lines(self) -> list[str]:
        """Return the lines for the terminal; the command line prints the other metrics as a table."""
        interval = self.evaluation.rmse_interval
        lines = self.crossval.lines() if self.crossval else []
        if interval is not None:
            low, high = interval
            lines.insert(0, f"RMSE in 95 % of bootstrap samples of the scenes: {low:.2f} to {high:.2f} px")
        if not self.matches_submission:
            lines.append(
                "submission.csv was fused with other settings or from other members, so these are not its scores: run "
                "predict again to replace it"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        notes = {} if self.matches_submission else {"matches_submission": False}
        return self.evaluation.to_json() | notes | ({"crossval": self.crossval.to_json()} if self.crossval else {})


class EvaluateStage:
    """Score the run's predictions, or a submission, against the ground truth."""

    name = "evaluate"
    needs_cluster = False
    needs_dashboard = False

    def __init__(self, submission: str | None = None) -> None:
        """Choose the predictions to score.

        Args:
            submission: path of a CSV file to score; None scores the run's predictions.
        """
        self.submission = submission

    def applies(self, config: Config) -> bool:
        """Return whether the predicted images have a ground truth: `data.truth`, or a split of the store."""
        return config.data.truth is not None or is_store_split(config)

    def check(self, config: Config) -> None:
        """Refuse a run without a ground truth, and one with other keypoints.

        Raises:
            ConfigError: no split of the store is predicted, and `data.truth` is not set or does not exist.
            DataError: `data.truth` is invalid, or its keypoints differ from those of the store or the labels.
        """
        if is_store_split(config):
            return
        check_inputs(config, required=["truth"])
        truth, skeleton = load_truth(config), find_skeleton(config)
        if skeleton is not None:
            reorder_keypoints(truth, skeleton, config.require_input("truth"))

    def is_done(self, config: Config) -> bool:
        """Return whether `evaluation.json` exists.

        Raises:
            StorageError: `predictions.parquet` does not exist.
        """
        path = config.path("predictions.parquet")
        if not exists(path):
            raise StorageError(f"{path}: there is no such file: run predict first")
        return exists(config.path("evaluation.json"))

    def run(self, config: Config, progress: Progress) -> EvaluateSummary:
        """Score the run's predictions and write `evaluation.json`, or score a submission and write nothing.

        Raises:
            KpRayError: see `evaluate_run` and `evaluate_submission`.
        """
        if self.submission is not None:
            return EvaluateSummary(evaluate_submission(config, self.submission))
        with reader_lock(config.path("predictions")):  # `predict` must not replace the predictions in between
            evaluation = evaluate_run(config)
        return EvaluateSummary(evaluation, read_cross_validation(config), _matches_submission(config))


def _matches_submission(config: Config) -> bool:
    """Return False if there is a `submission.csv` that was fused with other settings or from other members."""
    details_path = config.path("predict.json")
    if not exists(details_path):  # `train` deletes it before it trains members
        return not exists(config.path("submission.csv"))
    with contextlib.suppress(StorageError):  # it may be damaged
        return read_details(details_path).settings in ("", digest_fusion_settings(config))
    return True


def _check_untrained_members(config: Config) -> None:
    """Refuse mirrored views of members that are not trained yet and may be trained without flips."""
    section, own_folders = config.train, [config.member_dir(member.name) for member in config.train.members]
    has_validation_rows = config.split.folds is not None or config.split.fraction > 0
    is_searched = section.tuned and config.tune.num_trials > 0 and has_validation_rows
    # The first trial has the config's own `train.flip`, and can win.
    has_flips = section.flip and not (is_searched and False in config.tune.flips)
    result_path = config.path("tune", "result.json")
    if is_searched and exists(result_path):
        fix = "delete this file and run tune again"
        result = require_keys(read_json(result_path, fix), result_path, ("train",), fix)
        has_flips = require_keys(result["train"], result_path, (), fix).get("flip", section.flip)
    folders = [folder for folder in list_members(config).values() if folder in own_folders]
    if "flip" in config.predict.tta and not has_flips and not all(is_trained(folder) for folder in folders):
        fix = "train.flip=true and tune.flips=[true]" if is_searched else "train.flip=true"
        raise ConfigError(f"predict.tta: flip needs members that are trained with flips: remove flip, or set {fix}")


def _check_store_split(config: Config) -> None:
    """Refuse a split of the store that cannot be predicted; without a store its images cannot be listed yet."""
    if config.split.folds is not None:
        refuse_split_of_store_with_folds(str(config.predict.images))
    if has_store(config.path("store")):
        list_image_refs(config, None)
    elif config.split.fraction == 0 and config.predict.images == f"{STORE_PREFIX}val":
        raise ConfigError(
            f"predict.images: split.fraction=0 leaves {STORE_PREFIX}val empty: raise it, or name other images"
        )
