"""Section "Tuning": the plots, the table of the trials and the best configuration of a search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kp_ray.config.schema import Config
from kp_ray.config.tuning import TuneConfig
from kp_ray.reporting.formatting import MAX_ROWS, Figure, format_number, hide_credentials, svg_figure
from kp_ray.reporting.run_files import RunFiles
from kp_ray.storage import exists, read_bytes, read_text

_PLOTS = {  # file of tune/ -> alternative text
    "learning_rate": "The metric of each trial over its base learning rate",
    "curves": "The metric of each trial over its iterations",
    "importance": "How much each parameter explains",
}
_PARALLEL = "Every trial's parameters and result"


@dataclass(frozen=True)
class TuningSection:
    """The search.

    Attributes:
        columns: headings of the table.
        rows: cells of the MAX_ROWS best trials, the best trial first.
        num_trials: number of all trials.
        metric: name of the tuned metric; None if the table has no such column.
        figures: plots of the search.
        parallel: the wide plot of all parameters.
        best_yaml: content of tune/best.yaml without credentials.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_trials: int
    metric: str | None
    figures: tuple[Figure, ...]
    parallel: Figure | None
    best_yaml: str | None


def tuning_section(config: Config, files: RunFiles) -> TuningSection | None:
    """Build the section; None if there are neither trials nor tune/best.yaml."""
    best_yaml = read_text(config.path("tune", "best.yaml"))
    if files.trials is None and best_yaml is None:
        return None
    trials = files.trials.to_pylist() if files.trials is not None else []
    columns = tuple(files.trials.column_names) if files.trials is not None else ()
    metric = config.tune.metric if config.tune.metric in columns else None
    figures = [_read_figure(config, name, alt) for name, alt in _PLOTS.items()]
    best_trials = _rank(trials, metric, config.tune)[:MAX_ROWS]
    return TuningSection(
        columns=columns,
        rows=tuple(tuple(_format_cell(cell) for cell in trial.values()) for trial in best_trials),
        num_trials=len(trials),
        metric=metric,
        figures=tuple(figure for figure in figures if figure is not None),
        parallel=_read_figure(config, "parallel", _PARALLEL),
        best_yaml=best_yaml and hide_credentials(best_yaml),
    )


def _read_figure(config: Config, name: str, alt: str) -> Figure | None:
    path = config.path("tune", f"{name}.svg")
    return svg_figure(read_bytes(path), alt) if exists(path) else None


def _rank(trials: Sequence[Mapping[str, Any]], metric: str | None, section: TuneConfig) -> list[Mapping[str, Any]]:
    """Sort trials, the best one first.

    A trial with a value precedes a trial without one. More iterations precede fewer, because values after different
    numbers of iterations do not compare. With equal iterations the better value comes first.
    """
    sign = 1 if section.mode == "min" else -1

    def key(trial: Mapping[str, Any]) -> tuple[bool, int, float]:
        value = trial[metric] if metric else None
        return value is None, -(trial["iterations"] or 0), sign * (value or 0.0)

    return sorted(trials, key=key)


def _format_cell(value: float | int | str | None) -> str:
    """Format a cell as in trials.csv, but floats with four significant digits."""
    if value is None:
        return ""
    return format_number(value) if isinstance(value, float) else str(value)
