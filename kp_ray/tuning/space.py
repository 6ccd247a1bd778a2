"""The search space: its parameters, their distributions, and the points that are tried before any point is sampled.

The lengths in a schedule are shares of the iterations, so that a point applies to a short trial and to a full run.
"""

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from kp_ray.augmentation.recipes import RECIPES
from kp_ray.config.schema import Config
from kp_ray.config.training import TrainConfig
from kp_ray.errors import ConfigError
from kp_ray.store.manifest import read_manifest

LOGARITHMIC_PARAMETERS = ("base_lr", "weight_decay")
"""Parameters that are sampled on a logarithmic scale."""
NUM_GRID_VALUES = 3
"""Number of values that a grid takes from a range."""

RecipeSets = Mapping[str, tuple[str, ...] | None]
"""Names of the recipes to train on, by the name of the set; None stands for every recipe of the store."""


@dataclass(frozen=True)
class Point:
    """A point of the search space.

    Attributes:
        base_lr, weight_decay: values for one worker, before Detectron2 scales them by the number of workers.
        warmup: length of the warm-up, as a share of the iterations.
        schedule: "multistep" or "cosine"; a cosine schedule ignores the next four parameters.
        num_steps: number of learning rate steps.
        first_step: share of the iterations before the first step.
        step_spacing: share of the iterations between two steps.
        gamma: factor by which each step multiplies the learning rate.
        flip: True if images are mirrored at random.
        recipes: name of a set of recipes.
    """

    base_lr: float
    weight_decay: float
    warmup: float
    schedule: Literal["multistep", "cosine"]
    num_steps: int
    first_step: float
    step_spacing: float
    gamma: float
    flip: bool
    recipes: str


PARAMETERS = tuple(field.name for field in fields(Point))
"""Names of the parameters, in the order in which they are sampled."""


def build_recipe_sets(config: Config) -> dict[str, tuple[str, ...] | None]:
    """Return the sets of recipes to choose from: `own`, on which the first member trains, and those of `tune.recipes`.

    If `tune.recipes` is null, the set `upright` has the recipes of `own` that do not rotate, unless all or none rotate.
    Recipes that are not built in count as recipes that do not rotate.

    Raises:
        StoreError: `tune.recipes` is null and there is no finished store.
    """
    own_set = config.train.members[0].recipes or config.train.recipes
    if config.tune.recipes is not None:
        return {"own": own_set, **config.tune.recipes}
    store_names = [recipe.name for recipe in read_manifest(config.path("store")).recipes]
    own_names = [name for name in store_names if own_set is None or name in own_set]
    upright_set = tuple(name for name in own_names if name not in RECIPES or not RECIPES[name].rotate_deg)
    return {"own": own_set, "upright": upright_set} if 0 < len(upright_set) < len(own_names) else {"own": own_set}


def build_space(config: Config, recipe_sets: RecipeSets) -> dict[str, BaseDistribution]:
    """Return the distribution of each parameter, by name, in the order of `PARAMETERS`."""
    section = config.tune
    return {
        "base_lr": FloatDistribution(*section.base_lr, log=True),
        "weight_decay": FloatDistribution(*section.weight_decay, log=True),
        "warmup": FloatDistribution(*section.warmup),
        "schedule": CategoricalDistribution(section.schedules),
        "num_steps": IntDistribution(*section.num_steps),
        "first_step": FloatDistribution(*section.first_step),
        "step_spacing": FloatDistribution(*section.step_spacing),
        "gamma": FloatDistribution(*section.gamma),
        "flip": CategoricalDistribution(section.flips),
        "recipes": CategoricalDistribution(list(recipe_sets)),
    }


def to_point(train: TrainConfig, config: Config) -> Point:
    """Convert the settings of a training section to a point of the config's search space.

    A value outside its range becomes the nearest end of the range. The steps of the point are evenly spaced between
    the first and the last step of `train`. `flip` comes from `config`, not from `train`; `recipes` is always `own`.
    """
    section = config.tune

    def clamp(name: str, value: float) -> Any:
        low, high = getattr(section, name)
        return min(max(value, low), high)

    steps = [step / train.max_iter for step in sorted(train.steps) if step < train.max_iter]
    return Point(
        base_lr=clamp("base_lr", train.base_lr),
        weight_decay=clamp("weight_decay", train.weight_decay),
        warmup=clamp("warmup", train.warmup_iters / train.max_iter),
        schedule=train.schedule if train.schedule in section.schedules else section.schedules[0],
        num_steps=clamp("num_steps", len(steps)),
        first_step=clamp("first_step", steps[0] if steps else 0.0),
        step_spacing=clamp("step_spacing", (steps[-1] - steps[0]) / (len(steps) - 1) if len(steps) > 1 else 0.0),
        gamma=clamp("gamma", train.gamma),
        flip=config.train.flip if config.train.flip in section.flips else section.flips[0],
        recipes="own",
    )


def first_points(config: Config, recipe_sets: RecipeSets) -> list[Point]:
    """Return the points that are tried before any point is sampled, in order.

    They are the config's own settings, the schedule of the published solution (the defaults of `train`), `tune.points`
    and, with `sampler: grid`, the whole grid.
    If several points lead to the same training run, only the first of them is kept.

    Raises:
        ConfigError: a point of `tune.points` names an unknown parameter or lies outside its range, or the points or the
            grid are more than `tune.num_trials`.
    """
    space = build_space(config, recipe_sets)
    own_point = to_point(config.train, config)
    published_point = to_point(TrainConfig(), config)
    points = [own_point, published_point]
    for number, values in enumerate(config.tune.points):
        point_values: dict[str, Any] = {}
        for name, config_value in values.items():
            if name not in space:
                raise ConfigError(f"tune.points.{number}: {name} is not searched: choose from {', '.join(space)}")
            value = point_values[name] = _to_number(space[name], config_value)
            if not _contains(space[name], value):
                raise ConfigError(
                    f"tune.points.{number}: {name} is outside its range {space[name]} (got {value}): change the value "
                    "or widen the range"
                )
        points.append(replace(own_point, **point_values))
    if config.tune.sampler == "grid":
        points += _grid(space)
    # The first trial has the config's own settings, even outside the space: it then replaces no point inside.
    outside_points = [] if _is_in_space(config, own_point) else [points.pop(0)]
    point_by_effect: dict[Point, Point] = {}
    for point in points:
        point_by_effect.setdefault(_reset_ignored_parameters(point), point)
    distinct_points = [*outside_points, *point_by_effect.values()]
    if config.tune.sampler == "grid" and len(distinct_points) > config.tune.num_trials:
        raise ConfigError(
            f"tune.num_trials: is less than the {len(distinct_points)} points of the grid (got "
            f"{config.tune.num_trials}): raise it, or give ranges a single value, e.g. tune.base_lr=[0.001, 0.001]"
        )
    num_left_out = len(distinct_points) - config.tune.num_trials
    if config.tune.points and num_left_out > 0:
        raise ConfigError(
            f"tune.num_trials: leaves out {num_left_out} of tune.points, before which the config's own and the "
            f"published settings are tried (got {config.tune.num_trials}): raise it to {len(distinct_points)}, or "
            "remove points"
        )
    return distinct_points


def _is_in_space(config: Config, own_point: Point) -> bool:
    """Return whether the config's own settings, except its steps, are those of a point of the search space."""
    train = config.train
    return own_point == replace(
        own_point,
        base_lr=train.base_lr,
        weight_decay=train.weight_decay,
        warmup=train.warmup_iters / train.max_iter,
        schedule=train.schedule,
        gamma=train.gamma if train.schedule == "multistep" else own_point.gamma,
        flip=train.flip,
    )


def _to_number(distribution: BaseDistribution, value: Any) -> Any:
    """Convert text such as 2e-3, which YAML does not read as a number, if the parameter is a real number."""
    if isinstance(distribution, FloatDistribution) and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    """Return whether a value of the config is one of the choices, or a number of the right type inside the range."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    if isinstance(value, bool | str) or (isinstance(distribution, IntDistribution) and not isinstance(value, int)):
        return False
    return bool(distribution.low <= value <= distribution.high)


def _grid(space: Mapping[str, BaseDistribution]) -> list[Point]:
    """Return every combination of the choices, and of the ends and the middle of each range."""
    axes: list[list[Any]] = []
    for name in PARAMETERS:
        distribution = space[name]
        if isinstance(distribution, CategoricalDistribution):
            axes.append(list(distribution.choices))
        else:
            make_sequence = np.geomspace if name in LOGARITHMIC_PARAMETERS else np.linspace
            inner_values = make_sequence(distribution.low, distribution.high, NUM_GRID_VALUES)[1:-1].tolist()
            if isinstance(distribution, IntDistribution):
                inner_values = [round(value) for value in inner_values]
            axes.append(list(dict.fromkeys([distribution.low, *inner_values, distribution.high])))
    return [Point(*values) for values in itertools.product(*axes)]


def _reset_ignored_parameters(point: Point) -> Point:
    """Return the point with constants for the parameters that its schedule ignores."""
    if point.schedule == "multistep":
        return point
    return replace(point, num_steps=0, first_step=0.0, step_spacing=0.0, gamma=1.0)


def build_study(mode: Literal["min", "max"], storage: optuna.storages.BaseStorage | None = None) -> optuna.Study:
    """Return an empty Optuna study.

    Args:
        mode: "min" to minimize the values, "max" to maximize them.
        storage: holds the study; None: the study is kept in memory.
    """
    return optuna.create_study(storage=storage, direction="minimize" if mode == "min" else "maximize")


def add_result(study: optuna.Study, space: Mapping[str, BaseDistribution], point: Point, value: float) -> None:
    """Add a completed trial to a study.

    Args:
        study: receives the trial.
        space: distribution of each parameter, as `build_space` returns it.
        point: the trial's point, inside the space.
        value: the trial's value of the tuned metric.
    """
    study.add_trial(optuna.trial.create_trial(params=asdict(point), distributions=dict(space), value=value))
