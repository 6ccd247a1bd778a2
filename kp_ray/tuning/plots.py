"""Plots of a search."""

import warnings
from collections.abc import Sequence
from typing import Any

from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from kp_ray.config.schema import Config
from kp_ray.storage import write_bytes
from kp_ray.tuning.space import PARAMETERS, Point, add_result, build_recipe_sets, build_space, build_study
from kp_ray.tuning.trials import Trial, choose_trial
from kp_ray.visualization.plots import plot_bars, plot_curves, plot_parallel_coordinates, plot_scatter

MIN_RESULTS = 5
"""Minimum number of results to estimate the importance of parameters."""
GOOD_SHARE = 0.5
"""Share of the trials that count as good. With Optuna's default of 0.1, only one or two trials of a typical
search would count, too few for an estimate."""


def varied_parameters(points: Sequence[Point]) -> list[str]:
    """Return the names of the parameters that differ between points, in the order of the search space."""
    return [name for name in PARAMETERS if len({getattr(point, name) for point in points}) > 1]


def parameter_importance(config: Config, points: Sequence[Point], values: Sequence[float]) -> dict[str, float]:
    """Estimate each parameter's influence on whether a trial is among the better half, with PED-ANOVA.

    Args:
        config: the search's config.
        points: one point per result.
        values: the results, which are values of the tuned metric.

    Returns:
        Parameter -> its share of the influence, largest first, for the parameters that differ between the points. The
        shares sum to 1. Empty if there are fewer than `MIN_RESULTS` results, if all points or all results are equal, or
        if all results count as good.
    """
    names = varied_parameters(points)
    if len(values) < MIN_RESULTS or len(set(values)) < 2 or not names:
        return {}
    study = build_study(config.tune.mode)
    space = build_space(config, build_recipe_sets(config))
    for point, value in zip(points, values, strict=True):
        add_result(study, space, point, value)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=GOOD_SHARE)
    with warnings.catch_warnings():  # if all trials count as good, Optuna warns, and all shares are 0
        warnings.simplefilter("ignore")
        shares = get_param_importances(study, evaluator=evaluator, params=names, normalize=False)
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()} if total > 0 else {}


def write_plots(config: Config, trials: Sequence[Trial]) -> list[str]:
    """Write `tune/{learning_rate,curves,parallel,importance}.svg`; return their paths."""
    metric = config.tune.metric
    results = [(trial, trial.value) for trial in trials if trial.value is not None]
    points, values = [trial.start.params for trial, _ in results], [value for _, value in results]
    chosen = choose_trial(trials, config.tune)
    shares = parameter_importance(config, points, values)
    axes = list(shares) or varied_parameters(points)
    plots = {
        "learning_rate": plot_scatter(
            [trial.start.solver.base_lr for trial, _ in results], values, "base learning rate", metric,
            "Learning rate, the chosen trial circled", log_x=True,
            best_index=next((index for index, (trial, _) in enumerate(results) if trial is chosen), None),
        ),
        "curves": plot_curves(
            {trial.name: _curve(trial, metric) for trial in trials}, "iteration", metric,
            "Trials; a cross marks a trial that did not finish",
            stopped_names={trial.name for trial in trials if trial.status != "finished"},
        ),
        "parallel": plot_parallel_coordinates(
            {name: [_to_axis(getattr(point, name)) for point in points] for name in axes}, values, metric,
            "One line per trial, the best trial in green", more_is_better=config.tune.mode == "max",
        ),
        "importance": plot_bars(
            list(shares), list(shares.values()), f"share of the importance for {metric}",
            "Importance of each parameter" if shares else "Importance unknown: too few trials, or equal results",
        ),
    }  # fmt: skip
    for name, content in plots.items():
        write_bytes(config.path("tune", f"{name}.svg"), content)
    return [config.path("tune", f"{name}.svg") for name in plots]


def _curve(trial: Trial, metric: str) -> tuple[list[float], list[float]]:
    """Return the iterations and the finite values of a trial's evaluations."""
    values = [(float(evaluation.iteration), evaluation.value(metric)) for evaluation in trial.evaluations]
    pairs = [(iteration, value) for iteration, value in values if value is not None]
    return [iteration for iteration, _ in pairs], [value for _, value in pairs]


def _to_axis(value: Any) -> float | str:
    """Convert a parameter's value for its axis: a number to a float, a choice to text."""
    return str(value) if isinstance(value, bool | str) else float(value)
