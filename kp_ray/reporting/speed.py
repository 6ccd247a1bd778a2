"""Section "Speed": the time that each stage took."""

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from kp_ray.reporting.formatting import format_number
from kp_ray.reporting.run_files import RunFiles


@dataclass(frozen=True)
class SpeedSection:
    """The time of each stage that recorded it.

    Attributes:
        rows: (stage, time as text) pairs.
    """

    rows: tuple[tuple[str, str], ...]


def speed_section(files: RunFiles) -> SpeedSection | None:
    """Build the section; None if no stage recorded its time."""
    rows = [*_augment_rows(files), *_train_rows(files), *_tune_rows(files), *_predict_rows(files)]
    return SpeedSection(tuple(rows)) if rows else None


def _augment_rows(files: RunFiles) -> list[tuple[str, str]]:
    record = files.augment_record
    if record is None or not record.parts_written:
        return []
    seconds, start_up, rate = map(format_number, (record.seconds, record.start_up_s, record.sources_per_s))
    return [("augment", f"{seconds} s, {start_up} s of it start-up: {rate} sources/s")]


def _train_rows(files: RunFiles) -> list[tuple[str, str]]:
    rows = []
    for name, log in sorted(files.logs.items()):
        times = [entry.values["time"] for entry in log if np.isfinite(entry.values.get("time", np.nan))]
        if times:
            median = float(np.median(times))
            total = format_number(median * (log[-1].iteration + 1))
            rows.append((f"train {name}", f"{format_number(median)} s per iteration, {total} s"))
    return rows


def _tune_rows(files: RunFiles) -> list[tuple[str, str]]:
    if files.trials is None:
        return []
    seconds, iterations = (pc.sum(files.trials[name]).as_py() for name in ("seconds", "trained"))
    if not seconds:
        return []
    duration, num_iterations = format_number(seconds), format_number(iterations or 0)
    return [("tune", f"{duration} s over {len(files.trials)} trials, {num_iterations} iterations")]


def _predict_rows(files: RunFiles) -> list[tuple[str, str]]:
    if files.details is None or not files.details.took.seconds:
        return []
    duration = files.details.took
    seconds, rate = format_number(duration.seconds), format_number(duration.predicted / duration.seconds)
    return [("predict", f"{seconds} s: {rate} images/s")]
