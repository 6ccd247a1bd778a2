"""Group a run's members by the fold that they hold out."""

from dataclasses import dataclass
from typing import Literal

from kp_ray.config.schema import Config


@dataclass(frozen=True)
class FoldGroup:
    """The members that hold out one fold, so that they never saw its scenes.

    Attributes:
        fold: number of the fold.
        members: names of the members, at least one.
        config: the run's config with the group's `predict.members`, equal weights, and without a sample submission.
        weights: `predict.weights` of the group's members. They are not in `config`, because a prediction task refuses
            members that all have weight 0 for a keypoint, and a group may hold only such members.
        path: path of the group's predictions, in the format of `predictions.parquet`.
    """

    fold: int
    members: tuple[str, ...]
    config: Config
    weights: Literal["equal"] | dict[str, float | dict[str, float]]
    path: str


def group_members(config: Config) -> list[FoldGroup]:
    """Return a group per fold that a member of this run holds out, in the order of the folds.

    Members of other runs in `predict.members` are left out, because their folds are unknown.
    """
    selected_members = config.predict.members
    names_by_fold: dict[int, list[str]] = {}
    for member in config.train.members:
        fold = config.held_out_fold(member.name)
        if fold is not None and (
            selected_members is None or {member.name, config.member_dir(member.name)} & set(selected_members)
        ):
            names_by_fold.setdefault(fold, []).append(member.name)
    return [_make_group(config, fold, tuple(names)) for fold, names in sorted(names_by_fold.items())]


def _make_group(config: Config, fold: int, members: tuple[str, ...]) -> FoldGroup:
    weights = config.predict.weights
    if not isinstance(weights, str):
        weights = {name: value for name, value in weights.items() if name in members}
    predict = config.predict.model_copy(update={"members": members, "weights": "equal", "images": None})
    data = config.data.model_copy(update={"sample_submission": None})
    group_config = config.model_copy(update={"predict": predict, "data": data})
    return FoldGroup(fold, members, group_config, weights, config.path("crossval", f"fold-{fold}.parquet"))
