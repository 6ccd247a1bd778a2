"""Section of the configuration that describes the search for a schedule."""

from typing import Literal

from pydantic import model_validator

from kp_ray.config.training import Metric, metric_mode
from kp_ray.config.types import Fraction, NotNegative, Positive, Section


class TuneConfig(Section):
    """Search for a schedule: each trial is a training run of the first member with sampled settings.

    The first trial has the config's own settings and is never stopped early; `train` uses other settings only if they
    score clearly better (`min_gain`) after the same number of iterations. A range is [lowest, highest]; equal ends fix
    the parameter. Warm-up and steps are shares of a trial's iterations, so that the result of short trials applies to a
    long run.
    """

    num_trials: NotNegative = 16
    """Number of trials; with 0, `run` does not search, and `train` uses the config's own settings."""
    max_iter: Positive | None = None
    """Iterations of a trial that is not stopped; null: `train.max_iter`. A learning rate found in much shorter trials
    need not be the best for a long run."""
    eval_period: Positive | None = None
    """Iterations between two evaluations; a trial is stopped only at an evaluation. null: an eighth of `max_iter`."""
    metric: Metric = "rmse"
    """Metric on the validation scenes that the search optimizes."""
    min_gain: Fraction = 0.05
    """Share by which a trial's error must be lower than that of the config's own settings for `train` to use the
    trial's settings, because smaller differences can be chance. The error of AP and PCK is 1 - value."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Sampling of a trial's settings: `tpe` learns from earlier trials, `random` does not; `grid` tries every
    combination of the ends and the middle of each range."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """Early stopping of trials: `asha` stops about half of them at each rung, `median` the trials that are worse than
    the median, `none` no trial."""
    max_concurrent: Positive | None = None
    """Trials at the same time; null: as many as the cluster holds. With fewer trials at a time, each trial is sampled
    with the results of more earlier trials."""
    points: tuple[dict[str, bool | int | float | str], ...] = ()
    """Settings to try after the config's own settings and the published schedule, e.g. [{base_lr: 0.002}]. A setting
    that a point leaves out has the config's value, or the nearest value in its range."""
    base_lr: tuple[float, float] = (1e-4, 1e-2)
    """Range of `train.base_lr`, sampled on a logarithmic scale."""
    weight_decay: tuple[float, float] = (1e-5, 1e-2)
    """Range of `train.weight_decay`, sampled on a logarithmic scale."""
    warmup: tuple[Fraction, Fraction] = (0.0, 0.2)
    """Range of the warm-up, as a share of the iterations."""
    schedules: tuple[Literal["multistep", "cosine"], ...] = ("multistep", "cosine")
    """Values of `train.schedule` to choose from."""
    num_steps: tuple[NotNegative, NotNegative] = (1, 6)
    """Smallest and largest number of steps in a multi-step schedule."""
    first_step: tuple[Fraction, Fraction] = (0.2, 0.6)
    """Range of the position of the first step, as a share of the iterations."""
    step_spacing: tuple[Fraction, Fraction] = (0.05, 0.2)
    """Range of the distance between two steps, as a share of the iterations."""
    gamma: tuple[float, float] = (0.1, 0.9)
    """Range of `train.gamma`."""
    flips: tuple[bool, ...] = (True, False)
    """Values of `train.flip` to choose from."""
    recipes: dict[str, tuple[str, ...]] | None = None
    """Sets of recipes to choose from, by name. The set `own`, the recipes of the first member, always takes part. null:
    `own` and `upright`, which leaves out the built-in recipes of `own` that rotate; {}: `own` alone. If another set
    than `own` is found to be the best, it replaces the recipes of every member."""

    @property
    def mode(self) -> Literal["min", "max"]:
        """The direction in which `metric` improves."""
        return metric_mode(self.metric)

    @model_validator(mode="after")
    def _check_ranges(self) -> "TuneConfig":
        for name in ("base_lr", "weight_decay", "gamma", "warmup", "num_steps", "first_step", "step_spacing"):
            low, high = getattr(self, name)
            above_0 = "0 < " if name in ("base_lr", "weight_decay", "gamma") else ""
            if low > high or (above_0 and low <= 0):
                raise ValueError(
                    f"{name}: not a range (got [{low}, {high}]): set [low, high] with {above_0}low <= high"
                )
        if self.gamma[1] > 1:
            raise ValueError(f"gamma: is more than 1 (got {self.gamma[1]}): set at most 1")
        for name in ("schedules", "flips"):
            if not getattr(self, name):
                raise ValueError(f"{name}: the list is empty: name at least one value")
        if "own" in (self.recipes or {}):
            raise ValueError("recipes: the name `own` stands for the first member's recipes: rename this set")
        return self
