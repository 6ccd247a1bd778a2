"""Print tables of metrics and counts to stdout."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kp_ray.cli.progress import console
from kp_ray.metrics import PCK_THRESHOLDS

if TYPE_CHECKING:
    from kp_ray.metrics import Evaluation
    from kp_ray.pipeline import RunSummary

_stdout = Console(highlight=False)


def print_evaluation(rows: "Mapping[str, Evaluation]") -> None:
    """Print one row of metrics per name: for the ensemble and each member, or for a submission."""
    headers = ["RMSE px", "median px", *(f"PCK@{threshold}" for threshold in PCK_THRESHOLDS), "OKS-AP", "missing"]
    table = Table("", *headers, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)  # fits 80 columns
    table.columns[0].no_wrap = True
    for name, metrics in rows.items():
        errors_px = [metrics.rmse, metrics.median_px]
        fractions = [*(metrics.pck.get(str(threshold)) for threshold in PCK_THRESHOLDS), metrics.ap]
        cells = [*(_cell(value, 2) for value in errors_px), *(_cell(value, 3) for value in fractions)]
        table.add_row(escape(name), *cells, f"{metrics.num_missing} of {metrics.num_images}")
    _print(table)


def print_run(summary: "RunSummary") -> None:
    """Print the counts, the metrics and the result paths of a whole run."""
    table = Table("images", "variants", "sources/s", "filled in")
    augment, num_filled = summary.augment, len(summary.predict.details.filled)
    table.add_row(str(augment.sources), str(augment.variants), f"{summary.sources_per_s:.1f}", str(num_filled))
    _print(table)
    if summary.evaluate:
        print_evaluation(summary.evaluate.rows())
    _print("\n".join(summary.lines()))


def _print(content: Table | str) -> None:
    """Print a table or lines of text, unless `--quiet` is given."""
    if not console.quiet:
        is_text = isinstance(content, str)
        _stdout.print(content, markup=not is_text, soft_wrap=is_text)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
