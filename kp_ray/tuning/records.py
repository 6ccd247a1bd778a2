"""Read and write the files from which a search resumes.

`tune/trials/<trial>/trial.json` records how a trial began and `end.json` how it ended; its training run writes
`metrics.json` beside them. `tune/log.jsonl` has one line per report to Ray Tune. Ray Tune's own snapshots are not kept.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from kp_ray.config.schema import Config
from kp_ray.config.tuning import TuneConfig
from kp_ray.errors import shorten
from kp_ray.json_files import append_json_line, parse_record, read_json, read_json_lines, write_json
from kp_ray.storage import delete_file, exists, join, read_bytes, write_bytes
from kp_ray.training.logs import LogEntry, read_training_log
from kp_ray.tuning.apply import SolverParams
from kp_ray.tuning.space import Point

MAX_REASON_CHARS = 300
"""Maximum length of a recorded reason; a longer reason is cut in the middle."""


@dataclass(frozen=True)
class TrialStart:
    """The contents of a trial's `trial.json`.

    Attributes:
        began: Unix time of the trial's start, in seconds.
        params: the trial's point in the search space.
        max_iter: iterations of the trial if it is not stopped early, scaled by the number of workers.
        solver: the settings of Detectron2's solver that follow from `params`.
    """

    began: float
    params: Point
    max_iter: int
    solver: SolverParams


@dataclass(frozen=True)
class TrialEnd:
    """The contents of a trial's `end.json`.

    Attributes:
        reason: cause of a failure; empty if the trial finished or was stopped early.
        is_final: True if the trial is over; False if the same command retries it. The key in the file is `lasting`.
    """

    reason: str = ""
    is_final: bool = True


@dataclass(frozen=True)
class Report:
    """A line of `log.jsonl`: one report of a trial to Ray Tune.

    Attributes:
        trial: the trial's name.
        iteration: iterations trained at the evaluation; 0 for a failure.
        seconds: duration of the trial up to the report.
        value: the tuned metric; None for a failure.
    """

    trial: str
    iteration: int
    seconds: float
    value: float | None


@dataclass(frozen=True)
class TrialEvaluation:
    """An evaluation of a trial on the validation rows.

    Attributes:
        iteration: iterations trained before the evaluation.
        metrics: value by metric, possibly NaN.
    """

    iteration: int
    metrics: Mapping[str, float]

    def value(self, metric: str) -> float | None:
        """Return a metric's value; None if it is missing or not finite."""
        value = self.metrics.get(metric, math.nan)
        return value if math.isfinite(value) else None


def trial_name(number: int) -> str:
    """Return the name of the trial with this number, counted from 0."""
    return f"trial-{number:03d}"


OWN_TRIAL = trial_name(0)
"""Name of the trial with the config's own settings."""


def trial_dir(config: Config, name: str) -> str:
    """Return the folder of a trial."""
    return config.path("tune", "trials", name)


def worst_value(section: TuneConfig) -> float:
    """Return the value of a failed trial: infinity if the tuned metric is minimized, else minus infinity."""
    return math.inf if section.mode == "min" else -math.inf


def read_start(folder: str) -> TrialStart | None:
    """Read `trial.json`; None if the trial did not begin.

    Raises:
        StorageError: `trial.json` is damaged.
    """
    path = join(folder, "trial.json")
    if not exists(path):
        return None
    record = read_json(path, _restart_advice(folder))
    values = {**{name: record.get(name) for name in ("began", "params", "max_iter")}, "solver": record}
    return parse_record(TrialStart, values, path, _restart_advice(folder))


def write_start(folder: str, start: TrialStart) -> None:
    """Write `trial.json`, unless the trial has one."""
    path = join(folder, "trial.json")
    if not exists(path):
        record = asdict(start)
        solver = record.pop("solver")
        write_json(path, {**record, **solver})


def read_end(folder: str) -> TrialEnd | None:
    """Read `end.json`; None if the trial did not end.

    Raises:
        StorageError: `end.json` is damaged.
    """
    path = join(folder, "end.json")
    if not exists(path):
        return None
    record = read_json(path, _restart_advice(folder))
    values = {"reason": record.get("reason"), "is_final": record.get("lasting")}
    return parse_record(TrialEnd, values, path, _restart_advice(folder))


def is_over(folder: str) -> bool:
    """Return whether a trial has a final end, so that no command runs it again.

    Raises:
        StorageError: `end.json` is damaged.
    """
    end = read_end(folder)
    return end is not None and end.is_final


def write_end(folder: str, end: TrialEnd) -> None:
    """Write `end.json`, unless the trial has one."""
    path = join(folder, "end.json")
    if not exists(path):
        write_json(path, {"reason": shorten(end.reason, MAX_REASON_CHARS), "lasting": end.is_final})


def delete_end(folder: str) -> None:
    """Delete a trial's `end.json`, if there is one."""
    path = join(folder, "end.json")
    if exists(path):
        delete_file(path)


def read_trial_log(folder: str) -> list[LogEntry]:
    """Read the training log of a trial.

    Raises:
        StorageError: the log is damaged.
    """
    return read_training_log(folder, fix=_restart_advice(folder))


def to_evaluations(log: Sequence[LogEntry]) -> tuple[TrialEvaluation, ...]:
    """Return the evaluations of a training log, in order."""
    return tuple(TrialEvaluation(entry.iteration + 1, entry.evaluation) for entry in log if entry.evaluation)


def read_search_log(config: Config) -> list[Report]:
    """Read the reports in `log.jsonl`, in order; return none if the file does not exist.

    Raises:
        StorageError: the file is damaged.
    """
    path, fix = config.path("tune", "log.jsonl"), "delete this file and run the same command"
    records = read_json_lines(path, ("trial", "iteration", "seconds", config.tune.metric), fix)
    return [parse_record(Report, {**record, "value": record[config.tune.metric]}, path, fix) for record in records]


def drop_reports_of_deleted_trials(config: Config) -> None:
    """Remove the reports of trials without `trial.json` from `log.jsonl`: a trial that starts again has other reports.

    Raises:
        StorageError: the log is damaged, or cannot be written.
    """
    path = config.path("tune", "log.jsonl")
    is_deleted = {
        name: not exists(join(trial_dir(config, name), "trial.json"))
        for name in {report.trial for report in read_search_log(config)}
    }
    if any(is_deleted.values()):
        lines = read_bytes(path).splitlines(keepends=True)
        write_bytes(path, b"".join(line for line in lines if not is_deleted[json.loads(line)["trial"]]))


def append_report(config: Config, report: Report) -> None:
    """Add a report to `log.jsonl`, with the current time."""
    line = {"time": round(time.time(), 1), "trial": report.trial, "iteration": report.iteration}
    path = config.path("tune", "log.jsonl")
    append_json_line(path, {**line, "seconds": report.seconds, config.tune.metric: report.value})


def read_reports(config: Config) -> dict[str, list[Report]]:
    """Read the reports of each trial, in order, by the trial's name.

    For a trial that is over and has no report, e.g. because a user deleted the log, its evaluations become reports.

    Raises:
        StorageError: a file is damaged.
    """
    reports: dict[str, list[Report]] = {}
    for report in read_search_log(config):
        reports.setdefault(report.trial, []).append(report)
    for number in range(config.tune.num_trials):
        name = trial_name(number)
        folder = trial_dir(config, name)
        if name not in reports and is_over(folder):
            evaluations = to_evaluations(read_trial_log(folder))
            values = [(evaluation.iteration, evaluation.value(config.tune.metric)) for evaluation in evaluations]
            reports[name] = [Report(name, iteration, 0.0, value) for iteration, value in values if value is not None]
    return reports


def _restart_advice(folder: str) -> str:
    return f"delete {folder}, and tune/result.json if it is there, and run the same command"
