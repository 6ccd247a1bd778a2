"""All trials of a search, as a table."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from kp_ray.config.schema import Config, TuneConfig
from kp_ray.storage import exists, file_sizes, join, write_bytes, write_parquet
from kp_ray.tuning.space import APPLIED, METRICS
from kp_ray.tuning.trial import evaluations_of, read_end, read_facts, read_log, read_trial_log


def read_trials(config: Config, live: Sequence[str] | set[str] = ()) -> list[dict[str, Any]]:
    """Every trial of the run folder's search, in the order they began, from the trials' own folders.

    Args:
        live: the trials that are running now.

    Returns:
        The columns of `write_tables`, each trial a dict; one that never came to an evaluation or a failure, and is not
        running, is left out.
    """
    folder = config.path("tune", "trials")
    names = {path.split("/")[0] for path in file_sizes(folder) if path.count("/") == 1} if exists(folder) else set()
    seconds: dict[str, float] = {}
    for line in read_log(config):
        seconds[line["trial"]] = max(line["seconds"], seconds.get(line["trial"], 0.0))
    rows = []
    for name in names:
        home = join(folder, name)
        facts = read_facts(home)
        if not facts:
            continue
        log, failed = read_trial_log(home), read_end(home).get("reason", "")
        evaluations = evaluations_of(log)
        done = evaluations[-1]["iteration"] if evaluations else 0
        status = "failed" if failed else "finished" if done == facts["max_iter"] else "stopped"
        if name in live and status == "stopped":
            status = "running"
        if evaluations or failed or name in live:
            last = {} if failed or not evaluations else evaluations[-1]
            rows.append(
                {
                    "trial": name,
                    "status": status,
                    "iterations": done,
                    "trained": log[-1].iteration + 1 if log else 0,
                    "max_iter": facts["max_iter"],
                    config.tune.metric: last.get(config.tune.metric),
                    **{key: facts[key] for key in APPLIED},
                    "seconds": seconds.get(name),
                    "reason": failed,
                    "began": facts["began"],
                    "params": json.dumps(facts["params"]),
                    "evaluations": evaluations,
                }
            )
    return sorted(rows, key=lambda row: row["began"])


def choose_best(rows: Sequence[Mapping[str, Any]], section: TuneConfig) -> Mapping[str, Any] | None:
    """The best of the trials that went farthest: others were not measured at the same iteration. None: none was."""
    known = [row for row in rows if row[section.metric] is not None and math.isfinite(row[section.metric])]
    farthest = max((row["iterations"] for row in known), default=0)
    sign = 1 if section.mode == "min" else -1
    level = [row for row in known if row["iterations"] == farthest]
    return min(level, key=lambda row: sign * row[section.metric], default=None)


def write_tables(config: Config, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `tune/trials.parquet` and `tune/trials.csv`, a row a trial.

    Columns: `trial`; `status` (finished, stopped, failed, running); `iterations` at the last evaluation, and those
    `trained` as the log has them, of `max_iter`; the tuned metric by its name, at the last evaluation (empty for a
    failed trial); as applied by Detectron2's solver, after scaling by the workers: `base_lr`, `warmup_iters`,
    `schedule`, `num_steps`, `steps` (a JSON list), `gamma` (empty for cosine), `weight_decay`, `flip`, `recipes` (the
    name of the set); `seconds` of the trial; `reason` of a failure.
    Parquet alone: `began` (Unix time), `params` (JSON: what was drawn), `evaluations` (list of {iteration, METRICS}).
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
    table = pa.Table.from_pylist(list(rows), schema=schema)
    write_parquet(config.path("tune", "trials.parquet"), table)
    plain = table.drop_columns(["began", "params", "evaluations"]).to_pandas()
    write_bytes(config.path("tune", "trials.csv"), plain.to_csv(index=False).encode())
