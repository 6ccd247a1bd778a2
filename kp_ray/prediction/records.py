"""The JSON files of a prediction, `predict.json` and `evaluation.json`: models, readers and writers."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kp_ray.errors import StorageError
from kp_ray.metrics import Evaluation
from kp_ray.prediction.predictions import PersonChoices
from kp_ray.storage import read_json, write_json

_Model = TypeVar("_Model", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class FilledImage(_Record):
    """An image whose keypoints come from a fallback.

    Attributes:
        image: its name.
        how: the fallback, as in `ensemble.fusion.Fusion.how`.
    """

    image: str
    how: str


class UnusableImage(_Record):
    """An image that cannot be read or decoded."""

    image: str
    reason: str


class MemberCounts(_Record):
    """Counts of one member.

    Attributes:
        found: images with a person above `predict.score_threshold`.
        rejected_points: points dropped as outliers.
    """

    found: int
    rejected_points: int


class WeightsSource(_Record):
    """Source of the members' weights: "equal", or "given" by the config."""

    chosen: str


class PredictionTime(_Record):
    """Cost of a prediction.

    Attributes:
        predicted: images that members were run on.
        seconds: since the first of them was begun.
        start_up_s: before that.
    """

    predicted: int
    seconds: float
    start_up_s: float


class PredictionDetails(_Record):
    """Content of `predict.json`.

    Attributes:
        images: number of images.
        members: names.
        by_member: counts per member.
        people: how one person was chosen of several.
        weights: where the members' weights come from.
        fallbacks: number of filled images per kind of fallback.
        filled: every image filled by a fallback.
        unusable: every image that could not be used.
        took: cost of the last run that predicted images.
    """

    images: int
    members: tuple[str, ...]
    by_member: dict[str, MemberCounts]
    people: PersonChoices
    weights: WeightsSource
    fallbacks: dict[str, int]
    filled: tuple[FilledImage, ...]
    unusable: tuple[UnusableImage, ...]
    took: PredictionTime


class ImageError(_Record):
    """RMSE of one image in pixels."""

    image: str
    rmse: float


class SubmissionEvaluation(Evaluation):
    """Metrics of a submission.

    Attributes:
        worst: the images with the largest RMSE, largest first.
    """

    worst: tuple[ImageError, ...]


class FusionEvaluation(SubmissionEvaluation):
    """Metrics of fused predictions.

    Attributes:
        filled: every image filled by a fallback.
    """

    filled: tuple[FilledImage, ...]


class RunEvaluation(FusionEvaluation):
    """Content of `evaluation.json`: metrics of the ensemble.

    Attributes:
        members: metrics of each member alone, by name.
    """

    members: dict[str, FusionEvaluation]


def read_details(path: str) -> PredictionDetails:
    """Read `predict.json`.

    Raises:
        StorageError: it is not there, or is damaged.
    """
    return _read(path, PredictionDetails, "delete this file and run predict again")


def write_details(path: str, details: PredictionDetails) -> None:
    """Write `predict.json`, whole or not at all."""
    write_json(path, details.model_dump(mode="json"))


def read_evaluation(path: str) -> RunEvaluation:
    """Read `evaluation.json`.

    Raises:
        StorageError: it is not there, or is damaged.
    """
    return _read(path, RunEvaluation, "run evaluate again")


def write_evaluation(path: str, evaluation: RunEvaluation) -> None:
    """Write `evaluation.json`, whole or not at all."""
    write_json(path, evaluation.to_json())


def _read(path: str, model: type[_Model], fix: str) -> _Model:
    values = read_json(path, fix)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StorageError(f"{path}: damaged ({where}: {first['msg']}): {fix}") from error
