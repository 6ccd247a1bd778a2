"""Section "Tuning": the plots, the table of the trials and the best configuration of a search."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from kp_ray.config.schema import Config
from kp_ray.config.tuning import TuneConfig
from kp_ray.reporting.formatting import MAX_ROWS, Figure, format_number, hide_credentials, svg_figure
from kp_ray.reporting.run_files import RunFiles
from kp_ray.storage import exists, read_bytes, read_text
from kp_ray.training.search_result import SearchResult

MIN_RESULTS = 5
"""Minimum number of trials with a result for the plot of importances: a copy of `kp_ray.tuning.plots.MIN_RESULTS`,
because importing that module would import torch."""
_PLOTS = {  # file of tune/ -> alternative text
    "learning_rate": "The metric of each trial over its base learning rate",
    "curves": "The metric of each trial over its iterations",
    "importance": "Importance of each parameter",
}
_PARALLEL_ALT = "Every trial's parameters and result"
"""Alternative text of the plot `parallel`, which is wider than the other plots."""
_ALWAYS_SHOWN = ("trial", "status", "iterations")
"""Columns of the table that are shown even if all trials have the same value."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SettingChange:
    """A setting that the search changes.

    Attributes:
        name: dotted name, e.g. "train.base_lr".
        before: formatted value in the run's config.
        after: formatted value that the search found.
    """

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class TuningSection:
    """The search.

    Attributes:
        columns: headings of the table: `_ALWAYS_SHOWN`, the metric, and the columns in which trials differ.
        rows: cells of the MAX_ROWS best trials, the best trial first.
        constants: (name, value) of each column in which all trials have the same value.
        num_trials: number of all trials.
        metric: name of the tuned metric; None if the table has no column for it.
        figures: plots of the search; a plot for which there are too few trials is left out.
        parallel: the wide plot of all parameters; None if there are too few trials for it.
        result: the search's changes, and the scores before and after, on one line; None until the search has finished.
        changes: settings under `train` that the search changes.
        best_yaml: content of tune/best.yaml without credentials.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    constants: tuple[tuple[str, str], ...]
    num_trials: int
    metric: str | None
    figures: tuple[Figure, ...]
    parallel: Figure | None
    result: str | None
    changes: tuple[SettingChange, ...]
    best_yaml: str | None


def tuning_section(config: Config, files: RunFiles) -> TuningSection | None:
    """Build the section; None if there are neither trials nor tune/best.yaml."""
    best_yaml = read_text(config.path("tune", "best.yaml"))
    if files.trials is None and best_yaml is None:
        return None
    trials: list[Row] = files.trials.to_pylist() if files.trials is not None else []
    names = tuple(files.trials.column_names) if files.trials is not None else ()
    metric = config.tune.metric if config.tune.metric in names else None
    columns = tuple(name for name in names if _is_shown(name, metric, trials))
    figures = [_read_figure(config, name, alt) for name, alt in _PLOTS.items() if _has_content(name, metric, trials)]
    best_trials = _rank(trials, metric, config.tune)[:MAX_ROWS]
    return TuningSection(
        columns=columns,
        rows=tuple(tuple(_format_cell(trial[name]) for name in columns) for trial in best_trials),
        constants=tuple((name, _format_cell(trials[0][name])) for name in names if trials and name not in columns),
        num_trials=len(trials),
        metric=metric,
        figures=tuple(figure for figure in figures if figure is not None),
        parallel=_read_figure(config, "parallel", _PARALLEL_ALT) if _has_content("parallel", metric, trials) else None,
        result=_describe_result(config, files.search),
        changes=tuple(_changes(config, files.search)) if files.search else (),
        best_yaml=None if best_yaml is None else hide_credentials(best_yaml),
    )


def _is_shown(name: str, metric: str | None, trials: Sequence[Row]) -> bool:
    return name in (*_ALWAYS_SHOWN, metric) or len({trial[name] for trial in trials}) > 1


def _has_content(plot: str, metric: str | None, trials: Sequence[Row]) -> bool:
    """Return whether there are enough trials with a result for a plot of tune/ to show something."""
    results = [trial for trial in trials if metric and trial[metric] is not None]
    if plot == "learning_rate":
        return len({trial["base_lr"] for trial in results}) > 1
    if plot == "parallel":
        return len(results) > 1
    if plot == "importance":
        return len(results) >= MIN_RESULTS and len({trial[metric] for trial in results if metric}) > 1
    return bool(results)


def _changes(config: Config, search: SearchResult) -> Iterator[SettingChange]:
    config_values = config.to_dict()["train"]
    for name, value in search.train.items():
        yield SettingChange(f"train.{name}", _format_setting(config_values.get(name)), _format_setting(value))


def _format_setting(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    return format_number(value) if isinstance(value, float) else text


def _read_figure(config: Config, name: str, alt: str) -> Figure | None:
    path = config.path("tune", f"{name}.svg")
    return svg_figure(read_bytes(path), alt) if exists(path) else None


def _rank(trials: Sequence[Row], metric: str | None, tune_config: TuneConfig) -> list[Row]:
    """Sort trials, the best trial first.

    A trial with a value precedes a trial without a value. More iterations precede fewer, because values after different
    numbers of iterations cannot be compared. With equal iterations the better value comes first.
    """
    sign = 1 if tune_config.mode == "min" else -1

    def key(trial: Row) -> tuple[bool, int, float]:
        value = trial[metric] if metric else None
        return value is None, -(trial["iterations"] or 0), sign * (value or 0.0)

    return sorted(trials, key=key)


def _format_cell(value: float | int | str | None) -> str:
    """Format a cell as in trials.csv, but floats with four significant digits."""
    if value is None:
        return ""
    return format_number(value) if isinstance(value, float) else str(value)


def _describe_result(config: Config, search: SearchResult | None) -> str | None:
    if search is None:
        return None
    not_used = "" if config.train.tuned else "; not used, because train.tuned is false"
    return f"{search.describe()}{not_used}"
