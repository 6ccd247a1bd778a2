"""Read and write the JSON files of predictions and scores: `predict.json`, `evaluation.json` and `crossval.json`."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from kp_ray.config.schema import Config
from kp_ray.errors import StorageError
from kp_ray.fingerprint import digest
from kp_ray.json_files import parse_record, read_json, write_json
from kp_ray.metrics import Evaluation, Interval
from kp_ray.prediction.images import is_store_split
from kp_ray.prediction.predictions import PersonChoices
from kp_ray.prediction.settings import detections_per_image
from kp_ray.storage import delete_file, exists, hash_file
from kp_ray.store.layout import has_store
from kp_ray.store.manifest import store_digest


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class FilledImage(_Record):
    """An image whose keypoints come from a fallback.

    Attributes:
        image: name of the image.
        how: text that names the fallback, as in `ensemble.fusion.Fusion.fallback_names`.
    """

    image: str
    how: str


class UnusableImage(_Record):
    """An image that cannot be read or decoded, and the reason."""

    image: str
    reason: str


class MemberCounts(_Record):
    """Counts of one member of the ensemble.

    Attributes:
        found: number of images in which the member's chosen detection reaches `predict.score_threshold`.
        rejected_points: number of the member's points that were dropped as outliers.
    """

    found: int
    rejected_points: int


class WeightsSource(_Record):
    """Source of the weights by which the members are fused.

    Attributes:
        chosen: "equal", or "given" if `predict.weights` sets the weights.
    """

    chosen: str


class PredictionCost(_Record):
    """Cost of predicting images.

    Attributes:
        predicted: number of images that the members predicted.
        seconds: seconds from the start of the first batch to the end of the last batch.
        start_up_s: seconds before the start of the first batch.
        gpus_per_actor: GPUs of each actor.
        compute: device and precision that the actors used, e.g. "cuda, bf16"; "" if no image was predicted.
    """

    predicted: int
    seconds: float
    start_up_s: float
    gpus_per_actor: float = 0.0
    compute: str = ""


class PredictionDetails(_Record):
    """Content of `predict.json`.

    Attributes:
        images: number of images.
        members: names of the members.
        by_member: counts of each member, by name.
        people: the rule that chooses one person if a member detects several in an image, and counts of its choices.
        weights: source of the members' fusion weights.
        fallbacks: number of filled images per kind of fallback.
        filled: every image filled by a fallback.
        unusable: every image that could not be used.
        took: cost of the latest run that predicted usable images.
        settings: digest of the settings of the fusion, see `digest_fusion_settings`; "" in files of earlier versions.
    """

    images: int
    members: tuple[str, ...]
    by_member: dict[str, MemberCounts]
    people: PersonChoices
    weights: WeightsSource
    fallbacks: dict[str, int]
    filled: tuple[FilledImage, ...]
    unusable: tuple[UnusableImage, ...]
    took: PredictionCost
    settings: str = ""


class ImageRmse(_Record):
    """RMSE of one image in pixels."""

    image: str
    rmse: float


class SubmissionEvaluation(Evaluation):
    """Metrics of a submission.

    Attributes:
        worst: the images with the largest RMSE, largest first.
    """

    worst: tuple[ImageRmse, ...]


class FusionEvaluation(SubmissionEvaluation):
    """Metrics of the ensemble or of one member; images without a person are filled by fallbacks.

    Attributes:
        filled: every image filled by a fallback.
    """

    filled: tuple[FilledImage, ...]


class RunEvaluation(FusionEvaluation):
    """Content of `evaluation.json`: metrics of the ensemble.

    Attributes:
        members: metrics of each member alone, by name.
        inputs: digest of the images and settings, see `digest_evaluation_inputs`; "" in files of earlier versions.
        truth: digest of the ground truth, see `digest_truth`; "" in files of earlier versions.
    """

    members: dict[str, FusionEvaluation]
    inputs: str = ""
    truth: str = ""

    def is_current(self, config: Config, images: Sequence[str]) -> bool:
        """Return whether the metrics are of these images, settings and ground truth, as far as they are known."""
        has_same_truth = not self.truth or digest_truth(config) in ("", self.truth)
        return has_same_truth and self.inputs == digest_evaluation_inputs(config, images)


class FoldScore(_Record):
    """Metrics of one fold of a cross-validation.

    Attributes:
        members: names of the members that hold out the fold; a fold without members is not scored.
        num_images: number of images in the fold.
        rmse: RMSE in pixels; None if the fold is not scored.
    """

    members: tuple[str, ...]
    num_images: int
    rmse: float | None


class CrossValidation(Evaluation):
    """Content of `crossval.json`: metrics of the labelled images, each predicted by members that never saw its scene.

    Attributes:
        pck_interval, ap_interval: 95 % confidence intervals (low, high) of PCK@0.05 and of OKS-AP, from resampling
            whole scenes; None for a single scene.
        by_fold: metrics of each fold, from fold 0.
        store: digest of the store, see `store_digest`.
        settings: digest of the settings on which the metrics depend, see `digest_scored_settings`.
    """

    pck_interval: Interval | None
    ap_interval: Interval | None
    by_fold: tuple[FoldScore, ...]
    store: str
    settings: str

    @property
    def num_not_scored(self) -> int:
        """Number of labelled images whose fold no member holds out."""
        return sum(fold.num_images for fold in self.by_fold if not fold.members)

    def lines(self) -> list[str]:
        """Return the lines for the terminal: the metrics with their intervals, and the folds that are not scored."""
        metrics = [
            ("RMSE px", self.rmse, self.rmse_interval, 2),
            ("PCK@0.05", self.pck["0.05"], self.pck_interval, 3),
            ("OKS-AP", self.ap, self.ap_interval, 3),
        ]
        texts = []
        for name, value, interval, digits in metrics:
            if value is not None:
                ends = f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})" if interval else ""
                texts.append(f"{name} {value:.{digits}f}{ends}")
        lines = [
            f"out of fold, {self.num_images} labelled images, 95 % intervals from resampled scenes: {', '.join(texts)}"
        ]
        if self.num_not_scored:
            folds = ", ".join(str(number) for number, fold in enumerate(self.by_fold) if not fold.members)
            lines.append(f"{self.num_not_scored} labelled images are not scored: no member holds out fold {folds}")
        return lines


def read_details(path: str) -> PredictionDetails:
    """Read `predict.json`.

    Raises:
        StorageError: the file does not exist, or is damaged.
    """
    fix = "delete this file and run predict again"
    return parse_record(PredictionDetails, read_json(path, fix), path, fix)


def write_details(path: str, details: PredictionDetails) -> None:
    """Write `predict.json`, whole or not at all."""
    write_json(path, details.model_dump(mode="json"))


def read_evaluation(path: str) -> RunEvaluation:
    """Read `evaluation.json`.

    Raises:
        StorageError: the file does not exist, or is damaged.
    """
    fix = "run evaluate again"
    return parse_record(RunEvaluation, read_json(path, fix), path, fix)


def write_evaluation(path: str, evaluation: RunEvaluation) -> None:
    """Write `evaluation.json`, whole or not at all."""
    write_json(path, evaluation.to_json())


def read_cross_validation(config: Config) -> CrossValidation | None:
    """Read a run's `crossval.json`; None without a file, or if it belongs to another store, folds or settings.

    Raises:
        StorageError: the file is damaged.
    """
    path, store = config.path("crossval.json"), config.path("store")
    if config.split.folds is None or not exists(path) or not has_store(store):
        return None
    fix = "run crossval again"
    crossval = parse_record(CrossValidation, read_json(path, fix), path, fix)
    fold_by_member = {member.name: config.held_out_fold(member.name) for member in config.train.members}
    has_same_folds = all(
        fold_by_member.get(name) == number for number, fold in enumerate(crossval.by_fold) for name in fold.members
    )
    is_current = crossval.store == store_digest(store) and crossval.settings == digest_scored_settings(config)
    return crossval if has_same_folds and is_current else None


def delete_outdated_evaluation(config: Config, images: Sequence[str]) -> None:
    """Delete `evaluation.json` if it is of other images, settings or another ground truth, or is damaged.

    Args:
        config: the run's configuration.
        images: names of the predicted images, in order.
    """
    path = config.path("evaluation.json")
    if not exists(path):
        return
    try:
        is_current = read_evaluation(path).is_current(config, images)
    except StorageError:
        is_current = False
    if not is_current:
        delete_file(path)


def digest_evaluation_inputs(config: Config, images: Sequence[str]) -> str:
    """Digest the predicted images and the settings on which their metrics depend."""
    return digest({"images": list(images), "settings": digest_scored_settings(config)})


def digest_truth(config: Config) -> str:
    """Digest the file `data.truth`, or the store if `predict.images` is a split of it; "" if this does not exist."""
    if is_store_split(config):
        return store_digest(config.path("store")) if has_store(config.path("store")) else ""
    return hash_file(config.data.truth)[1] if config.data.truth and exists(config.data.truth) else ""


def digest_scored_settings(config: Config) -> str:
    """Digest the settings on which the metrics of predictions by the same members depend."""
    return digest({**_fusion_fields(config), "skeleton": config.skeleton.model_dump(mode="json")})


def digest_fusion_settings(config: Config) -> str:
    """Digest the settings on which the fused predictions of the same members depend."""
    return digest(_fusion_fields(config))


def _fusion_fields(config: Config) -> dict[str, Any]:
    names = {"images", "actors", "cpus_per_actor", "gpus_per_actor", "batch_size"}
    return {
        "predict": config.predict.model_dump(mode="json", exclude=names),
        "detections_per_image": detections_per_image(config),
    }


def write_cross_validation(path: str, crossval: CrossValidation) -> None:
    """Write `crossval.json`, whole or not at all."""
    write_json(path, crossval.to_json())
