"""The stage `crossval`: predict and score every labelled image by the members that never saw its scene.

Modules that import torch are imported inside functions: `kp-ray run` imports this module on machines without torch too.
"""

from dataclasses import dataclass
from typing import Any

from kp_ray.config.schema import Config
from kp_ray.crossval.groups import group_members
from kp_ray.crossval.score import score_folds
from kp_ray.data.sides import check_flips
from kp_ray.errors import ConfigError
from kp_ray.metrics import Evaluation
from kp_ray.prediction.inputs import resolve_weights
from kp_ray.prediction.members import list_members
from kp_ray.prediction.records import CrossValidation
from kp_ray.prediction.settings import detections_per_image
from kp_ray.stage import Progress
from kp_ray.storage import reader_lock
from kp_ray.store.manifest import read_manifest
from kp_ray.store.skeleton import run_skeleton


@dataclass(frozen=True)
class CrossvalSummary:
    """The result of `crossval`.

    Attributes:
        scores: content of `crossval.json`.
        num_predicted: number of images that this run predicted.
        path: path of `crossval.json`.
    """

    scores: CrossValidation
    num_predicted: int
    path: str

    def rows(self) -> dict[str, Evaluation]:
        """Return each row of the printed table by name."""
        return {"out of fold": self.scores}

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        return [f"{self.num_predicted} images predicted in this run; scores: {self.path}", *self.scores.lines()]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        return {**self.scores.to_json(), "predicted": self.num_predicted}


@dataclass(frozen=True)
class CrossvalForecast:
    """Forecast of what `crossval` does.

    Attributes:
        folds: number of folds.
        members: names of the members by fold, without folds that no member holds out.
        images: number of labelled images in the store.
    """

    folds: int
    members: dict[int, tuple[str, ...]]
    images: int

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        members = "; ".join(f"fold {fold} by {', '.join(names)}" for fold, names in self.members.items())
        return [f"{self.images} labelled images in {self.folds} folds: {members}"]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        return {"folds": self.folds, "images": self.images, "members": self.members}


class CrossvalStage:
    """Predict every labelled image by the members that hold out its fold, and score the predictions."""

    name = "crossval"
    needs_cluster = True
    needs_dashboard = False

    def applies(self, config: Config) -> bool:
        """Return whether the config has `split.folds`."""
        return config.split.folds is not None

    def check(self, config: Config) -> None:
        """Refuse a config without folds, or whose `predict` section does not fit this run.

        Raises:
            ConfigError: `split.folds` is not set, `predict.members` lists no member of this run, or `predict.tta` has
                `flip` and the skeleton's flip pairs are incomplete, or `predict.weights` or TEST.DETECTIONS_PER_IMAGE
                is wrong.
        """
        if config.split.folds is None:
            raise ConfigError(
                "split.folds: is not set, so every member trains on all training scenes: set the number of folds, e.g. "
                "--set split.folds=5, and augment and train again"
            )
        if not group_members(config):
            raise ConfigError(
                "predict.members: lists no member of this run, and the folds of other runs' members are unknown: list "
                "a member of this run, or set split.folds=null"
            )
        skeleton = run_skeleton(config)
        check_flips(config, skeleton, "predict")
        resolve_weights(config, list(list_members(config)), skeleton)
        detections_per_image(config)

    def is_done(self, config: Config) -> bool:
        """Return whether every labelled image that a member holds out is predicted.

        Raises:
            KpRayError: a member is not trained, or was trained on another store or fold.
        """
        from kp_ray.crossval.run import are_folds_predicted

        return are_folds_predicted(config)

    def run(self, config: Config, progress: Progress) -> CrossvalSummary:
        """Predict the images without a prediction, score all images, and write `crossval.json`.

        Raises:
            KpRayError: see `predict_folds` and `score_folds`.
        """
        from kp_ray.crossval.run import predict_folds

        with reader_lock(config.path("store")):  # the scores must be of the store with which the folds were predicted
            num_predicted = predict_folds(config, progress)
            return CrossvalSummary(score_folds(config), num_predicted, config.path("crossval.json"))

    def forecast(self, config: Config) -> CrossvalForecast:
        """Count the images and name the members of each fold.

        Raises:
            StoreError: there is no finished store.
        """
        members = {group.fold: group.members for group in group_members(config)}
        num_sources = read_manifest(config.path("store")).num_sources
        return CrossvalForecast(config.split.folds or 0, members, num_sources)
