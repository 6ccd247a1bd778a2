"""`suspects`: rank the labelled images whose labels are probably wrong, and propose corrections."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from kp_ray.config.schema import Config
from kp_ray.crossval.groups import group_members
from kp_ray.crossval.score import read_out_of_fold
from kp_ray.crossval.stage import CrossvalStage
from kp_ray.data.load import load_labels
from kp_ray.keypoints import FloatArray, Skeleton
from kp_ray.member_files import is_trained
from kp_ray.stage import Progress, Summary, check_inputs
from kp_ray.suspects.evidence import SUSPICIOUS_SCORE
from kp_ray.suspects.files import CORRECTIONS_FILE, SUSPECTS_FILE, write_corrections, write_suspects
from kp_ray.suspects.rank import Suspect, rank_suspects
from kp_ray.suspects.residuals import body_sizes


@dataclass(frozen=True)
class LabelsForecast:
    """Forecast of a ranking by the labels alone.

    Attributes:
        num_images: number of labelled images.
        missing_predictions_reason: why predictions would not be used.
    """

    num_images: int
    missing_predictions_reason: str

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        return [
            f"{self.num_images} labelled images, ranked by motion and repetition of the labels alone: "
            f"{self.missing_predictions_reason}"
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        return {"images": self.num_images, "without_predictions": self.missing_predictions_reason}


@dataclass(frozen=True)
class SuspectsSummary:
    """The result of `suspects`.

    Attributes:
        num_images: number of labelled images.
        num_predicted: number of labelled images with an out-of-fold prediction.
        suspects: the ranked images.
        num_proposed: number of images for which a correction is proposed.
        missing_predictions_reason: why predictions were not used; "" if they were.
        path: path of `suspects.csv`.
        corrections: path of `corrections.csv`.
    """

    num_images: int
    num_predicted: int
    suspects: tuple[Suspect, ...]
    num_proposed: int
    missing_predictions_reason: str
    path: str
    corrections: str

    @property
    def kinds(self) -> dict[str, int]:
        """The number of images per kind among those with a score of `SUSPICIOUS_SCORE` or more."""
        kinds = Counter(suspect.kind for suspect in self.suspects if suspect.score >= SUSPICIOUS_SCORE and suspect.kind)
        return dict(sorted(kinds.items()))

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items()) or "none"
        lines = [f"suspects among {self.num_images} labelled images: {kinds}; listed in {self.path}"]
        if self.missing_predictions_reason:
            lines.append(f"ranked by motion and repetition of the labels alone: {self.missing_predictions_reason}")
        elif self.num_predicted < self.num_images:
            num_missing = self.num_images - self.num_predicted
            lines.append(
                f"{num_missing} images have no out-of-fold prediction: they are ranked by motion and repetition"
            )
        if self.num_proposed:
            lines.append(f"corrections of {self.num_proposed} images, each commented out, in {self.corrections}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        return {
            "images": self.num_images,
            "predicted": self.num_predicted,
            "kinds": self.kinds,
            "proposed": self.num_proposed,
            "without_predictions": self.missing_predictions_reason,
            "suspects": self.path,
            "corrections": self.corrections,
        }


class SuspectsStage:
    """Rank labels by their distance from out-of-fold predictions, and by the motion and repetition of the labels.

    `crossval` makes missing predictions first. Without folds, trained members or images, motion and repetition alone
    decide the ranks.
    """

    name = "suspects"
    needs_cluster = True
    needs_dashboard = False

    def applies(self, config: Config) -> bool:
        """Return False: `kp-ray run` does not look for suspects, because a person must decide about each of them."""
        return False

    def check(self, config: Config) -> None:
        """Refuse inputs that do not exist.

        Raises:
            ConfigError: data.annotations is not set, a path under `data` does not exist, or see `CrossvalStage.check`.
        """
        check_inputs(config, ["annotations"], ["images", "corrections"])
        if not explain_missing_predictions(config):
            CrossvalStage().check(config)

    def is_done(self, config: Config) -> bool:
        """Return whether all predictions exist or cannot be made, so that no cluster is needed.

        Raises:
            KpRayError: a member was trained on another store or fold.
        """
        return bool(explain_missing_predictions(config)) or CrossvalStage().is_done(config)

    def run(self, config: Config, progress: Progress) -> SuspectsSummary:
        """Predict the labelled images that are not predicted yet, rank all images, and write both files.

        Raises:
            KpRayError: the labels cannot be used, or see `CrossvalStage.run`.
        """
        labels = load_labels(config)
        missing_predictions_reason = explain_missing_predictions(config)
        predicted: dict[str, FloatArray] = {}
        disagreement: dict[str, FloatArray] = {}
        if missing_predictions_reason:
            config.save()
        else:
            CrossvalStage().run(config, progress)
            predicted, disagreement = read_predicted_points(config, labels.skeleton)
        suspects = rank_suspects(labels, predicted, disagreement)
        path, corrections = config.path(SUSPECTS_FILE), config.path(CORRECTIONS_FILE)
        write_suspects(path, suspects)
        num_proposed = write_corrections(corrections, suspects, config.data.corrections)
        return SuspectsSummary(
            num_images=len(labels),
            num_predicted=len(set(predicted).intersection(labels.images)),
            suspects=tuple(suspects),
            num_proposed=num_proposed,
            missing_predictions_reason=missing_predictions_reason,
            path=path,
            corrections=corrections,
        )

    def forecast(self, config: Config) -> Summary:
        """Forecast the predictions that `crossval` would make, or say that the labels alone would be read."""
        if reason := explain_missing_predictions(config):
            return LabelsForecast(len(load_labels(config)), reason)
        return CrossvalStage().forecast(config)


def explain_missing_predictions(config: Config) -> str:
    """Return why the labels cannot be compared with out-of-fold predictions, and what to do; "" if they can."""
    if config.split.folds is None:
        return "split.folds is not set: set it, and train the members on folds, to use predictions as well"
    if config.data.images is None:
        return "data.images is not set: set it to use predictions as well"
    members = [name for group in group_members(config) for name in group.members]
    if not members:
        return "predict.members lists no member of this run: list one to use predictions as well"
    untrained = [name for name in members if not is_trained(config.member_dir(name))]
    if untrained:
        return f"member {untrained[0]} is not trained: run train to use predictions as well"
    return ""


def read_predicted_points(config: Config, skeleton: Skeleton) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Read the points and the members' disagreement of the out-of-fold predictions, by image.

    Returns:
        Points (K, 2) in pixels, and disagreements (K,) from 0 to 1: the rank of the members' spread, in body sizes,
        among all spreads; for a point that a single member found, the rank of 1 - score among all such points.
        Images in which no member found a person are left out.

    Raises:
        StorageError, RunStateError, StoreError: see `read_out_of_fold`.
    """
    predictions = read_out_of_fold(config, skeleton)
    xy = predictions.keypoints[..., :2]
    # The spread of several members and the score of a single member have different scales, but ranks are comparable.
    has_spread = np.isfinite(predictions.spreads)
    disagreements = np.empty(predictions.spreads.shape)
    for is_selected, values in (
        (has_spread, predictions.spreads / body_sizes(xy)[:, None]),
        (~has_spread, 1 - predictions.keypoints[..., 2]),
    ):
        ranks = np.argsort(np.argsort(np.nan_to_num(values[is_selected], nan=1.0), kind="stable"))
        disagreements[is_selected] = ranks / max(1, ranks.size)
    rows = np.flatnonzero(predictions.scores > 0)
    points = {predictions.images[row]: xy[row] for row in rows}
    return points, {predictions.images[row]: disagreements[row] for row in rows}
