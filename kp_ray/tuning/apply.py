"""Apply a point of the search space to a config, and read the solver's settings that follow from it."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from detectron2.config import CfgNode

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError
from kp_ray.models.presets import build_cfg, scale_cfg
from kp_ray.store.manifest import read_manifest
from kp_ray.training.rows import usable_rows
from kp_ray.tuning.space import Point, RecipeSets, build_recipe_sets


@dataclass(frozen=True)
class SolverParams:
    """The settings of a trial in Detectron2's solver, scaled by the number of workers.

    Attributes:
        base_lr: the highest learning rate.
        warmup_iters: length of the warm-up, in iterations.
        schedule: "multistep" or "cosine".
        num_steps: number of learning rate steps; 0 for a cosine schedule.
        steps: iterations at which these steps happen, as a JSON list; empty for a cosine schedule.
        gamma: factor of each step; None for a cosine schedule.
        weight_decay: the weight decay.
        flip: True if images are mirrored at random.
        recipes: name of the set of recipes.
    """

    base_lr: float
    warmup_iters: int
    schedule: Literal["multistep", "cosine"]
    num_steps: int
    steps: str
    gamma: float | None
    weight_decay: float
    flip: bool
    recipes: str


def to_steps(point: Point, max_iter: int) -> list[int]:
    """Return the iterations of a point's learning rate steps, sorted; steps outside (0, max_iter) are left out."""
    shares = (point.first_step + index * point.step_spacing for index in range(point.num_steps))
    return sorted({step for share in shares if 0 < (step := round(share * max_iter)) < max_iter})


def apply_point(config: Config, point: Point, recipe_sets: RecipeSets, max_iter: int) -> Config:
    """Return the config of a training run of `max_iter` iterations with the settings of a point."""
    values = _with_recipes(config, point.recipes, recipe_sets).to_dict()
    values["train"] |= {
        "base_lr": point.base_lr,
        "weight_decay": point.weight_decay,
        "schedule": point.schedule,
        "flip": point.flip,
        "max_iter": max_iter,
        "warmup_iters": round(point.warmup * max_iter),
    }
    if point.schedule == "multistep":
        values["train"] |= {"steps": to_steps(point, max_iter), "gamma": point.gamma}
    return build_config(values)


def scale_schedule(config: Config, max_iter: int) -> Config:
    """Scale the config's own schedule to a training run of `max_iter` iterations; return the new config.

    Warm-up and steps keep their shares of the iterations.
    """
    values = config.to_dict()
    train, own_max_iter = values["train"], config.train.max_iter
    if max_iter != own_max_iter:
        steps = {round(step * max_iter / own_max_iter) for step in train["steps"] if step < own_max_iter}
        train["steps"] = sorted(step for step in steps if 0 < step < max_iter)
        train["warmup_iters"] = round(train["warmup_iters"] * max_iter / own_max_iter)
        train["max_iter"] = max_iter
    return build_config(values)


def trial_config(config: Config, point: Point, recipe_sets: RecipeSets, *, is_own_trial: bool = False) -> Config:
    """Return the config of a trial: `tune.max_iter` iterations, with an evaluation every `tune.eval_period` iterations.

    Args:
        config: the search's config.
        point: the trial's point.
        recipe_sets: recipe names by the name of their set, as `build_recipe_sets` returns them.
        is_own_trial: train with exactly the config's own settings, even if the search space has no such point.
    """
    max_iter = config.tune.max_iter or config.train.max_iter
    changed_config = (
        scale_schedule(config, max_iter) if is_own_trial else apply_point(config, point, recipe_sets, max_iter)
    )
    values = changed_config.to_dict()
    values["train"]["eval_period"] = config.tune.eval_period or max(1, max_iter // 8)
    return build_config(values)


def train_fields(config: Config, point: Point) -> dict[str, Any]:
    """Return the fields of the section `train` that a point changes, with their values for a full training run."""
    own_values = config.to_dict()["train"]
    point_values = apply_point(config, point, build_recipe_sets(config), config.train.max_iter).to_dict()["train"]
    changes = {name: value for name, value in point_values.items() if name != "members" and value != own_values[name]}
    # A set of recipes is recorded even if it equals `train.recipes`, because it also replaces `recipes` of each member.
    return changes if point.recipes == "own" else {**changes, "recipes": point_values["recipes"]}


def _with_recipes(config: Config, name: str, recipe_sets: RecipeSets) -> Config:
    """Return a config whose members all train on one set of recipes; the set `own` leaves all recipes as they are."""
    if name == "own":
        return config
    values = config.to_dict()
    values["train"]["recipes"] = list(recipe_sets[name] or ())
    for member in values["train"]["members"]:
        member["recipes"] = None
    return build_config(values)


def check_recipe_sets(config: Config, recipe_sets: RecipeSets) -> None:
    """Refuse a set of recipes that gives the first member fewer training rows than one iteration needs.

    Raises:
        ConfigError: a set has too few rows.
        StoreError: the store lacks a recipe.
    """
    min_rows = config.train.ims_per_batch * config.train.max_workers
    for name in recipe_sets:
        set_config = _with_recipes(config, name, recipe_sets)
        num_rows = len(usable_rows(set_config, set_config.train.members[0]))
        if num_rows < min_rows:
            first_member = set_config.train.members[0]
            own_key = f"train.members[{first_member.name}].recipes" if first_member.recipes else "train.recipes"
            key = own_key if name == "own" else f"tune.recipes.{name}"
            raise ConfigError(
                f"{key}: has too few training rows (got {num_rows}; one iteration needs {min_rows}): name more recipes"
            )


def build_scaled_cfg(config: Config) -> CfgNode:
    """Build a training run's Detectron2 config, scaled by the largest number of workers."""
    skeleton = config.build_skeleton(read_manifest(config.path("store")).skeleton)
    return scale_cfg(build_cfg(config, skeleton, "cpu"), config.train.max_workers)


def solver_params(config: Config, cfg: CfgNode, recipes: str) -> SolverParams:
    """Read a training run's settings from its Detectron2 config.

    Args:
        config: the run's config.
        cfg: the run's Detectron2 config, from `build_scaled_cfg(config)`.
        recipes: name of the run's set of recipes.
    """
    solver: Any = cfg.SOLVER
    is_multistep = config.train.schedule == "multistep"
    steps = list(solver.STEPS) if is_multistep else []
    return SolverParams(
        base_lr=float(solver.BASE_LR),
        warmup_iters=int(solver.WARMUP_ITERS),
        schedule=config.train.schedule,
        num_steps=len(steps),
        steps=json.dumps(steps),
        gamma=float(solver.GAMMA) if is_multistep else None,
        weight_decay=float(solver.WEIGHT_DECAY),
        flip=cfg.INPUT.RANDOM_FLIP != "none",
        recipes=recipes,
    )
