"""The trials of a search as a table, and the choice of the trial whose settings are used."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import pyarrow as pa

from kp_ray.config.schema import Config
from kp_ray.config.tuning import TuneConfig
from kp_ray.storage import list_folders, write_bytes, write_parquet
from kp_ray.tuning.records import (
    OWN_TRIAL,
    TrialEvaluation,
    TrialStart,
    read_end,
    read_search_log,
    read_start,
    read_trial_log,
    to_evaluations,
    trial_dir,
)

METRICS: tuple[str, ...] = get_args(TuneConfig.model_fields["metric"].annotation)
"""Names of the metrics of an evaluation, in the order of the tables."""


@dataclass(frozen=True)
class Trial:
    """The state of a trial, read from its folder; one row of the tables.

    Attributes:
        name: e.g. "trial-003".
        status: the state now; "stopped" if the scheduler, or the end of the search, stopped the trial early.
        iterations: iterations trained at the last evaluation; 0 without an evaluation.
        trained_iterations: iterations in the training log.
        value: the tuned metric at the last evaluation; None for a failed trial and for a value that is not finite.
        seconds: duration of the trial; None if the search's log has no report of the trial.
        reason: cause of a failure, else empty.
        start: the contents of `trial.json`.
        evaluations: every evaluation, in order.
    """

    name: str
    status: Literal["finished", "stopped", "failed", "running"]
    iterations: int
    trained_iterations: int
    value: float | None
    seconds: float | None
    reason: str
    start: TrialStart
    evaluations: tuple[TrialEvaluation, ...]

    def value_at(self, iterations: int, metric: str) -> float | None:
        """Return a metric's value after a number of iterations; None if there is no value, or the trial failed."""
        values = [evaluation.value(metric) for evaluation in self.evaluations if evaluation.iteration == iterations]
        return values[0] if values and self.status != "failed" else None

    def to_row(self, metric: str) -> dict[str, Any]:
        """Return the trial's row in the tables of `write_tables`, as column -> value."""
        return {
            "trial": self.name,
            "status": self.status,
            "iterations": self.iterations,
            "trained": self.trained_iterations,
            "max_iter": self.start.max_iter,
            metric: self.value,
            **asdict(self.start.solver),
            "seconds": self.seconds,
            "reason": self.reason,
            "began": self.start.began,
            "params": json.dumps(asdict(self.start.params)),
            "evaluations": [
                {"iteration": evaluation.iteration, **evaluation.metrics} for evaluation in self.evaluations
            ],
        }


def read_trials(config: Config, running_names: Collection[str] = ()) -> list[Trial]:
    """Read the trials of the run folder's search, in the order in which they began.

    A trial that is not running and has neither an evaluation nor a recorded failure is left out.

    Args:
        config: the search's config.
        running_names: names of the trials that are running now.

    Raises:
        StorageError: a file of a trial, or the search's log, is damaged.
    """
    seconds: dict[str, float] = {}
    for report in read_search_log(config):
        seconds[report.trial] = max(report.seconds, seconds.get(report.trial, 0.0))
    trials = []
    for name in list_folders(config.path("tune", "trials")):
        trial = _read_trial(config, name, seconds.get(name), is_running=name in running_names)
        if trial is not None:
            trials.append(trial)
    return sorted(trials, key=lambda trial: trial.start.began)


def _read_trial(config: Config, name: str, seconds: float | None, *, is_running: bool) -> Trial | None:
    folder = trial_dir(config, name)
    start, end = read_start(folder), read_end(folder)
    if start is None:
        return None
    log = read_trial_log(folder)
    evaluations = to_evaluations(log)
    iterations = evaluations[-1].iteration if evaluations else 0
    # While a trial runs, a failure that is not final does not count: Ray Tune may retry the trial.
    reason = end.reason if end and (end.is_final or not is_running) else ""
    if not (evaluations or reason or is_running):
        return None
    if reason:
        status: Literal["finished", "stopped", "failed", "running"] = "failed"
    elif iterations == start.max_iter:
        status = "finished"
    else:
        status = "running" if is_running else "stopped"
    return Trial(
        name=name,
        status=status,
        iterations=iterations,
        trained_iterations=log[-1].iteration + 1 if log else 0,
        value=evaluations[-1].value(config.tune.metric) if evaluations and not reason else None,
        seconds=seconds,
        reason=reason,
        start=start,
        evaluations=evaluations,
    )


def choose_trial(trials: Sequence[Trial], section: TuneConfig) -> Trial | None:
    """Return the trial whose settings are used; None if no trial has a value.

    It is the best of the trials with the most iterations, because values at different iterations cannot be compared.
    But it is the trial with the config's own settings, if that trial has a value and the best trial's error is not
    lower by the share `tune.min_gain`. The error of AP and PCK is 1 - value.
    """
    results = [(trial, trial.value) for trial in trials if trial.value is not None]
    max_iterations = max((trial.iterations for trial, _ in results), default=0)
    candidates = [
        (value if section.mode == "min" else 1 - value, trial.name, trial)
        for trial, value in results
        if trial.iterations == max_iterations
    ]
    if not candidates:
        return None
    best = min(candidates, key=lambda candidate: candidate[:2])
    own = next((candidate for candidate in candidates if candidate[1] == OWN_TRIAL), None)
    if own is None or best[0] < (1 - section.min_gain) * own[0]:
        return best[2]
    return own[2]


def write_tables(config: Config, trials: Sequence[Trial]) -> None:
    """Write `tune/trials.parquet` and `tune/trials.csv`, one row per trial.

    Columns: `trial` (the name); `status` (finished, stopped, failed, running); `iterations` (at the last evaluation);
    `trained` (iterations in the training log); `max_iter`; the tuned metric, under its name, at the last evaluation
    (empty for a failed trial); the fields of `SolverParams`; `seconds` (duration); `reason` (cause of a failure).
    Only in Parquet: `began` (Unix time), `params` (the point, as JSON), `evaluations` (list of {iteration, METRICS}).
    """
    evaluation = pa.struct([("iteration", pa.int64()), *((name, pa.float64()) for name in METRICS)])
    number, text = pa.float64(), pa.string()
    schema = pa.schema(
        [
            ("trial", text), ("status", text), ("iterations", pa.int64()), ("trained", pa.int64()),
            ("max_iter", pa.int64()), (config.tune.metric, number), ("base_lr", number), ("warmup_iters", pa.int64()),
            ("schedule", text), ("num_steps", pa.int64()), ("steps", text), ("gamma", number),
            ("weight_decay", number), ("flip", pa.bool_()), ("recipes", text), ("seconds", number), ("reason", text),
            ("began", number), ("params", text), ("evaluations", pa.list_(evaluation)),
        ]
    )  # fmt: skip
    table = pa.Table.from_pylist([trial.to_row(config.tune.metric) for trial in trials], schema=schema)
    write_parquet(config.path("tune", "trials.parquet"), table)
    csv_table = table.drop_columns(["began", "params", "evaluations"]).to_pandas()
    write_bytes(config.path("tune", "trials.csv"), csv_table.to_csv(index=False).encode())
