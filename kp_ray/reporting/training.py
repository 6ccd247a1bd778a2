"""Section "Training": curves and final values of every member."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kp_ray.reporting.formatting import Figure, svg_figure
from kp_ray.reporting.run_files import RunFiles
from kp_ray.training.logs import LogEntry
from kp_ray.visualization.plots import plot_curves

MAX_CURVE_POINTS = 1000
"""Maximum number of points of a curve; from a longer log, every second, third, ... point is drawn."""


@dataclass(frozen=True)
class MemberProgress:
    """The progress of a member's training.

    Attributes:
        name: the member's name.
        iterations: number of iterations in the log.
        last_loss: last total loss in the log; None if the log has no total loss.
        best_rmse: lowest validation RMSE in pixels; None without an evaluation.
        best_iteration: number of iterations after which `best_rmse` was measured; None without an evaluation.
    """

    name: str
    iterations: int
    last_loss: float | None
    best_rmse: float | None
    best_iteration: int | None


@dataclass(frozen=True)
class TrainingSection:
    """The training of all members.

    Attributes:
        figures: plots over the iterations, each with one curve per member.
        members: one row per member.
        searches: (description of a search's result, names of the members trained with it).
    """

    figures: tuple[Figure, ...]
    members: tuple[MemberProgress, ...]
    searches: tuple[tuple[str, str], ...]


_CURVES = (  # name in the log, label of the y axis, title, True for a logarithmic y axis
    ("total_loss", "total loss", "Training loss", True),
    ("lr", "learning rate", "Learning rate", False),
    ("val/rmse", "RMSE (px)", "Validation RMSE", False),
    ("val/pck_0.05", "PCK@0.05", "Validation PCK@0.05", False),
)


def training_section(files: RunFiles) -> TrainingSection | None:
    """Build the section; None without a training log."""
    if not files.logs:
        return None
    figures = []
    for name, ylabel, title, log_y in _CURVES:
        curves = {member: _curve(log, name) for member, log in files.logs.items()}
        curves = {member: (iterations, values) for member, (iterations, values) in curves.items() if iterations}
        if curves:
            svg = plot_curves(curves, "iteration", ylabel, title, log_y)
            figures.append(svg_figure(svg, f"{title} over the iterations, by member"))
    members_by_text: dict[str, list[str]] = {}
    for member, search in files.search_by_member.items():
        members_by_text.setdefault(search.describe(), []).append(member)
    searches = tuple((text, ", ".join(members)) for text, members in members_by_text.items())
    return TrainingSection(tuple(figures), _member_progress(files.logs), searches)


def _member_progress(logs: Mapping[str, Sequence[LogEntry]]) -> tuple[MemberProgress, ...]:
    members = []
    for name, log in logs.items():
        losses = [entry.values["total_loss"] for entry in log if "total_loss" in entry.values]
        rmses = [(entry.evaluation.get("rmse", math.nan), entry.iteration + 1) for entry in log]
        best_rmse, best_iteration = min(
            ((rmse, iteration) for rmse, iteration in rmses if math.isfinite(rmse)), default=(None, None)
        )
        last_loss = losses[-1] if losses else None
        members.append(MemberProgress(name, log[-1].iteration + 1, last_loss, best_rmse, best_iteration))
    return tuple(members)


def _curve(log: Sequence[LogEntry], name: str) -> tuple[list[float], list[float]]:
    """Return the finished iterations and values of a curve: at most MAX_CURVE_POINTS points, and the last point."""
    points = [(entry.iteration + 1, entry.values[name]) for entry in log if name in entry.values]
    step = math.ceil(len(points) / MAX_CURVE_POINTS)
    if step > 1:
        points = points[::step] + points[-1:]
    return [float(iteration) for iteration, _ in points], [value for _, value in points]
