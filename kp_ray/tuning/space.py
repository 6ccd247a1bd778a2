"""The search space: distributions, first points, and a point applied to a config."""

import itertools
import json
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import optuna

from kp_ray.augmentation.recipes import RECIPES
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config, TrainConfig, TuneConfig
from kp_ray.errors import RunStateError
from kp_ray.keypoints import Skeleton
from kp_ray.models.presets import build_cfg, scale_cfg
from kp_ray.store.manifest import read_manifest
from kp_ray.training.dataloader import usable_rows

METRICS: tuple[str, ...] = get_args(TuneConfig.model_fields["metric"].annotation)
"""What an evaluation reports of a model, by its name."""
APPLIED = ("base_lr", "warmup_iters", "schedule", "num_steps", "steps", "gamma", "weight_decay", "flip", "recipes")
"""The columns of a trial's parameters, as Detectron2's solver had them."""
LOGARITHMIC = ("base_lr", "weight_decay")
GRID_VALUES = 3
"""How many values a grid takes of a range."""


# The search space: shares of the iterations, so that it serves a trial and a full run.


def recipe_sets(config: Config) -> dict[str, tuple[str, ...] | None]:
    """The named sets of recipes to choose from; `own` is the config's, None: all of the store."""
    own = config.train.recipes
    if config.tune.recipes is not None:
        return {"own": own, **config.tune.recipes}
    stored = [recipe.name for recipe in read_manifest(config.path("store")).recipes]
    known = [name for name in stored if own is None or name in own]
    upright = tuple(name for name in known if name not in RECIPES or not RECIPES[name].rotate_deg)
    return {"own": own, "upright": upright} if 0 < len(upright) < len(known) else {"own": own}


def check_sets(config: Config, sets: Mapping[str, Any]) -> None:
    needed = config.train.ims_per_batch * config.train.worker_range[1]
    for name in sets:
        chosen = _with_recipes(config, name, sets)
        found = len(usable_rows(chosen, chosen.train.members[0]))
        if found < needed:
            raise RunStateError(f"tune.recipes.{name}: {found} training rows, a step needs {needed}: name more recipes")


def space(config: Config, sets: Mapping[str, Any]) -> dict[str, optuna.distributions.BaseDistribution]:
    """Each parameter's distribution, by its name."""
    section, of = config.tune, optuna.distributions
    return {
        "base_lr": of.FloatDistribution(*section.base_lr, log=True),
        "weight_decay": of.FloatDistribution(*section.weight_decay, log=True),
        "warmup": of.FloatDistribution(*section.warmup),
        "schedule": of.CategoricalDistribution(section.schedules),
        "num_steps": of.IntDistribution(*section.num_steps),
        "first_step": of.FloatDistribution(*section.first_step),
        "step_spacing": of.FloatDistribution(*section.step_spacing),
        "gamma": of.FloatDistribution(*section.gamma),
        "flip": of.CategoricalDistribution(section.flips),
        "recipes": of.CategoricalDistribution(list(sets)),
    }


def point_of(train: TrainConfig, config: Config) -> dict[str, Any]:
    """A training section's setting as a point of the config's search space, moved into its ranges.

    Steps are taken as evenly spaced between their first and last.
    """
    section = config.tune
    steps = [step / train.max_iter for step in train.steps if step < train.max_iter]
    wanted = {
        "base_lr": train.base_lr,
        "weight_decay": train.weight_decay,
        "warmup": train.warmup_iters / train.max_iter,
        "num_steps": len(steps),
        "first_step": steps[0] if steps else 0.0,
        "step_spacing": (steps[-1] - steps[0]) / (len(steps) - 1) if len(steps) > 1 else 0.0,
        "gamma": train.gamma,
    }
    ends = {name: getattr(section, name) for name in wanted}
    return {
        **{name: min(max(value, ends[name][0]), ends[name][1]) for name, value in wanted.items()},
        "schedule": train.schedule if train.schedule in section.schedules else section.schedules[0],
        "flip": config.train.flip if config.train.flip in section.flips else section.flips[0],
        "recipes": "own",
    }


def first_points(config: Config, sets: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is tried before anything is drawn: the config's own setting, the published schedule, `tune.points`; with
    `sampler: grid` then the whole grid.

    Raises:
        RunStateError: a point names what is not searched or lies outside its range, or the grid is larger than
            num_trials.
    """
    distributions = space(config, sets)
    own, published = point_of(config.train, config), point_of(TrainConfig(), config)
    points = [own, published]
    for number, given in enumerate(config.tune.points):
        for name, value in given.items():
            if name not in distributions:
                known = ", ".join(distributions)
                raise RunStateError(f"tune.points.{number}: {name} is not searched; what is: {known}")
            if not _contains(distributions[name], value):
                raise RunStateError(f"tune.points.{number}: {name} {value} is not in its range: {distributions[name]}")
        points.append({**own, **given})
    if config.tune.sampler == "grid":
        points += _grid(distributions)
    by_effect: dict[str, dict[str, Any]] = {}
    for point in points:
        by_effect.setdefault(json.dumps(_effective(point), sort_keys=True), point)
    different = list(by_effect.values())
    if config.tune.sampler == "grid" and len(different) > config.tune.num_trials:
        raise RunStateError(
            f"the grid has {len(different)} points, tune.num_trials is {config.tune.num_trials}: fix parameters, e.g. "
            "tune.base_lr=[0.001, 0.001], or raise tune.num_trials"
        )
    return different


def _contains(distribution: optuna.distributions.BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return value in distribution.choices
    whole = isinstance(distribution, optuna.distributions.FloatDistribution) or isinstance(value, int)
    return whole and not isinstance(value, bool | str) and bool(distribution.low <= value <= distribution.high)


def _grid(distributions: Mapping[str, Any]) -> list[dict[str, Any]]:
    axes = {}
    for name, one in distributions.items():
        if isinstance(one, optuna.distributions.CategoricalDistribution):
            axes[name] = list(one.choices)
        else:
            spread = np.geomspace if name in LOGARITHMIC else np.linspace
            between = spread(one.low, one.high, GRID_VALUES)[1:-1].tolist()
            if isinstance(one, optuna.distributions.IntDistribution):
                between = [round(value) for value in between]
            axes[name] = list(dict.fromkeys([one.low, *between, one.high]))
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _effective(point: Mapping[str, Any]) -> dict[str, Any]:
    """The point without what its schedule does not use."""
    unused = {"num_steps", "first_step", "step_spacing", "gamma"} if point["schedule"] == "cosine" else set()
    return {name: value for name, value in point.items() if name not in unused}


def steps_of(params: Mapping[str, Any], max_iter: int) -> list[int]:
    """The iterations at which a multi-step schedule of a run of `max_iter` steps; none is at or past its end."""
    places = (params["first_step"] + index * params["step_spacing"] for index in range(params["num_steps"]))
    return sorted({step for place in places if 0 < (step := round(place * max_iter)) < max_iter})


def apply_params(
    config: Config, params: Mapping[str, Any], sets: Mapping[str, Any], max_iter: int | None = None
) -> Config:
    """The config of a trial, or with `max_iter` of a full run with the trial's setting."""
    total = max_iter or config.tune.max_iter or config.train.max_iter
    values = _with_recipes(config, params["recipes"], sets).to_dict()
    values["train"] |= {
        "base_lr": params["base_lr"],
        "weight_decay": params["weight_decay"],
        "schedule": params["schedule"],
        "steps": steps_of(params, total),
        "gamma": params["gamma"],
        "flip": params["flip"],
        "max_iter": total,
        "warmup_iters": round(params["warmup"] * total),
    }
    if max_iter is None:
        values["train"]["eval_period"] = config.tune.eval_period or max(1, total // 8)
    return build_config(values)


def _with_recipes(config: Config, name: str, sets: Mapping[str, Any]) -> Config:
    """`own` leaves all as it is; another set is that of every member."""
    values = config.to_dict()
    if name != "own":
        values["train"]["recipes"] = list(sets[name])
        for member in values["train"]["members"]:
            member["recipes"] = None
    return build_config(values)


def best_config(config: Config, best: Mapping[str, Any]) -> Config:
    """The config that trains the best trial's setting in full, its members named beside those trained before."""
    sets = recipe_sets(config)
    values = apply_params(config, json.loads(best["params"]), sets, max_iter=config.train.max_iter).to_dict()
    for member in values["train"]["members"]:
        member["name"] = f"{member['name']}-tuned"
    if isinstance(values["predict"]["weights"], dict):
        values["predict"]["weights"] = {f"{name}-tuned": one for name, one in values["predict"]["weights"].items()}
    values["tune"]["num_trials"] = 0  # `run` takes it as it is
    return build_config(values)


# A trial: what runs in it, and what it leaves.


def _skeleton(config: Config) -> Skeleton:
    manifest = read_manifest(config.path("store"))
    return config.build_skeleton(manifest.skeleton)


def applied_cfg(config: Config) -> Any:
    return scale_cfg(build_cfg(config, _skeleton(config), "cpu"), config.train.worker_range[1])


def applied(config: Config, recipes: str) -> dict[str, Any]:
    """A training run's parameters as Detectron2's solver has them: after scaling by the number of workers.

    Returns:
        `APPLIED` and `max_iter`. `steps` is a JSON list; `gamma` is None and there are no steps in a cosine schedule.
    """
    cfg = applied_cfg(config)
    solver = cfg.SOLVER
    multistep = config.train.schedule == "multistep"
    steps = list(solver.STEPS) if multistep else []
    return {
        "base_lr": float(solver.BASE_LR),
        "warmup_iters": int(solver.WARMUP_ITERS),
        "schedule": config.train.schedule,
        "num_steps": len(steps),
        "steps": json.dumps(steps),
        "gamma": float(solver.GAMMA) if multistep else None,
        "weight_decay": float(solver.WEIGHT_DECAY),
        "flip": cfg.INPUT.RANDOM_FLIP != "none",
        "recipes": recipes,
        "max_iter": int(solver.MAX_ITER),
    }
