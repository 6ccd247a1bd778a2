"""Section "Result": the metrics of the ensemble and of each member."""

from collections.abc import Callable
from dataclasses import dataclass

from kp_ray.metrics import Evaluation
from kp_ray.reporting.run_files import RunFiles


@dataclass(frozen=True)
class MetricCell:
    """A cell of the table.

    Attributes:
        text: the formatted value; "-" if there is none.
        is_best: True if the value is the best of its column; False in all cells of a column whose values are equal.
        interval: the 95 % confidence interval as "LOW to HIGH"; "" if there is none.
    """

    text: str
    is_best: bool
    interval: str


@dataclass(frozen=True)
class ResultSection:
    """The table of metrics.

    Attributes:
        labels: the headings of the columns.
        rows: (name, cells) of the ensemble, then of each member.
        num_images: number of evaluated images.
        has_intervals: True if a cell has an interval.
    """

    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MetricCell, ...]], ...]
    num_images: int
    has_intervals: bool


@dataclass(frozen=True)
class _MetricColumn:
    """A column of the table: its heading, its number format, and functions that read its value and interval."""

    label: str
    format_spec: str
    more_is_better: bool
    value: Callable[[Evaluation], float | None]
    interval: Callable[[Evaluation], tuple[float, float] | None] = lambda evaluation: None


_METRIC_COLUMNS = (
    _MetricColumn("RMSE (px)", ".2f", False, lambda row: row.rmse, lambda row: row.rmse_interval),
    _MetricColumn("median (px)", ".2f", False, lambda row: row.median_px),
    _MetricColumn("p95 (px)", ".2f", False, lambda row: row.p95_px),
    _MetricColumn("PCK@0.02", ".3f", True, lambda row: row.pck.get("0.02")),
    _MetricColumn("PCK@0.05", ".3f", True, lambda row: row.pck.get("0.05")),
    _MetricColumn("PCK@0.1", ".3f", True, lambda row: row.pck.get("0.1")),
    _MetricColumn("AP", ".3f", True, lambda row: row.ap),
    _MetricColumn("missing", ",.0f", False, lambda row: row.num_missing),
)


def result_section(files: RunFiles) -> ResultSection | None:
    """Build the section, without columns that have no value; None without an evaluation."""
    if files.evaluation is None:
        return None
    evaluations: dict[str, Evaluation] = {"ensemble": files.evaluation, **files.evaluation.members}
    columns = [
        column for column in _METRIC_COLUMNS if any(column.value(row) is not None for row in evaluations.values())
    ]
    cells = [_column_cells(column, list(evaluations.values())) for column in columns]
    rows = tuple(zip(evaluations, zip(*cells, strict=True), strict=True))
    return ResultSection(
        labels=tuple(column.label for column in columns),
        rows=rows,
        num_images=files.evaluation.num_images,
        has_intervals=any(cell.interval for _, row in rows for cell in row),
    )


def _column_cells(column: _MetricColumn, evaluations: list[Evaluation]) -> list[MetricCell]:
    values = [column.value(row) for row in evaluations]
    texts = ["-" if value is None else format(value, column.format_spec) for value in values]
    numbers = [value for value in values if value is not None]
    best_text = format(max(numbers) if column.more_is_better else min(numbers), column.format_spec)
    values_differ = len({text for text in texts if text != "-"}) > 1
    intervals = [_format_interval(column.interval(row), column.format_spec) for row in evaluations]
    return [
        MetricCell(text, is_best=values_differ and text == best_text, interval=interval)
        for text, interval in zip(texts, intervals, strict=True)
    ]


def _format_interval(interval: tuple[float, float] | None, format_spec: str) -> str:
    return " to ".join(format(end, format_spec) for end in interval or ())
