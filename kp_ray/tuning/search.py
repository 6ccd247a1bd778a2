"""The search over learning rate, schedule and recipes on Ray Tune: every trial is a real training run of `train.py`.

A trial only waits for its training run, which takes its own resources; so the number of trials at once is what the
cluster can train at once, now. What a trial did lies in its own folder, `tune/trials/<trial>`. From these alone the
tables are written and a search goes on, whatever was killed on the way: Ray Tune's own notes are not kept.
"""

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import ray
import ray.tune
from ray.tune.execution import class_cache

from kp_ray.cluster.errors import describe_ray_error
from kp_ray.cluster.resources import runs_at_once
from kp_ray.config.schema import Config, WorkerRange
from kp_ray.errors import RunStateError, StoppedError
from kp_ray.storage import exists, file_sizes, filesystem, join, read_bytes, read_json, write_bytes, writer_lock
from kp_ray.store.manifest import read_manifest, store_digest
from kp_ray.training.settings import check_options, deciding_train_fields
from kp_ray.tuning.plots import write_plots
from kp_ray.tuning.schedulers import build_scheduler
from kp_ray.tuning.searcher import TrialSearcher
from kp_ray.tuning.space import APPLIED, best_config, check_sets, first_points, recipe_sets
from kp_ray.tuning.trial import Trial, note_end, read_end, read_log, trial_dir, trial_name
from kp_ray.tuning.trials import choose_best, read_trials, write_tables

Progress = Callable[[str, list[dict[str, Any]]], None]
"""Called with the trial that has news, and all trials as `read_trials` gives them."""


def tune(config: Config, progress: Progress | None = None) -> dict[str, Any]:
    """Search; go on with a search of this run folder that was stopped.

    Leaves in `<run_dir>/tune`: `trials.parquet` and `trials.csv` (`write_tables`), `best.yaml`, `log.jsonl` (a line a
    report), `*.svg` (`write_plots`), `trials/<trial>/` (a training run each; checkpoints go when the search is over).

    Args:
        config: with a finished store that has validation rows; a Ray cluster must be running.
        progress: called at each report and when a trial ends.

    Returns:
        `trials`, `failed`, `metric`, `best` (its value), `trial`, `params` (as applied), `iterations` (spent),
        `iterations_without_stops` (of as many full trials), `config` (path of `best.yaml`).

    Raises:
        RunStateError: no validation rows, a recipe set the store cannot serve, a point outside its range, a grid larger
            than num_trials, settings other than those the search began with, a cluster too small for one trial, every
            trial failed, or another process searches here.
    """
    with writer_lock(config.path("tune")):
        return _tune(config, progress)


def _tune(config: Config, progress: Progress | None) -> dict[str, Any]:
    if not is_finished(config):
        _search(config, progress)
    rows = read_trials(config)
    write_tables(config, rows)
    best = choose_best(rows, config.tune)
    if best is None:
        reason = next((row["reason"] for row in rows if row["reason"]), "none was evaluated")
        raise RunStateError(
            f"{config.path('tune')}: no trial reported {config.tune.metric}, the first because: {reason}"
        )
    write_plots(config, rows)
    target = config.path("tune", "best.yaml")
    if not exists(target):
        write_bytes(target, best_config(config, best).to_yaml().encode())
    _delete_checkpoints(config, rows)
    full = max(row["max_iter"] for row in rows)
    return {
        "trials": len(rows),
        "failed": sum(row["status"] == "failed" for row in rows),
        "metric": config.tune.metric,
        "best": best[config.tune.metric],
        "trial": best["trial"],
        "params": {name: best[name] for name in APPLIED},
        "iterations": sum(row["trained"] for row in rows),
        "iterations_without_stops": full * len(rows),
        "config": target,
    }


def is_finished(config: Config) -> bool:
    """Whether this run folder holds a finished search.

    Raises:
        RunStateError: it holds a search with other settings.
    """
    _check_settings(config)
    return exists(config.path("tune", "best.yaml"))


def check_search(config: Config) -> None:
    """Refuse a search that could not begin, before a cluster starts.

    Raises:
        RunStateError: no finished store or no validation rows in it, or settings that do not do.
    """
    if not read_manifest(config.path("store")).num_rows_by_split["val"]:
        raise RunStateError("tune compares trials on validation scenes, the store has none: set split.fraction above 0")
    if not config.tune.num_trials:
        raise RunStateError("tune.num_trials is 0: how many trials? E.g. --set tune.num_trials=16")
    if isinstance(config.train.num_workers, WorkerRange):
        raise RunStateError(
            "tune compares runs of one size: give train.num_workers a number, not min and max, or set tune.num_trials=0"
        )
    check_options(config)
    sets = recipe_sets(config)
    check_sets(config, sets)
    first_points(config, sets)


def _search(config: Config, progress: Progress | None) -> None:
    check_search(config)
    read_trials(config)  # a damaged file is told of before anything is trained
    _, use_gpu = runs_at_once(config)
    config.save()
    folder = config.path("tune")
    write_bytes(join(folder, "settings.json"), json.dumps(_settings(config), indent=1).encode())
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searcher = TrialSearcher(config)
    if not searcher.left:
        return
    trial = type("Trial", (Trial,), {"values": config.to_dict(), "use_gpu": use_gpu})
    # Ray Tune wants some resource; any share of a CPU would be missing when the training runs take all of them. A trial
    # itself only waits for its training run: it stays on the driver's node, where everything is installed.
    own = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    here = next(name for name in own["Resources"] if name.startswith("node:") and name != "node:__internal_head__")
    # Nodes have credentials of their own; handed on by Ray Tune, the driver's would stand in Ray's logs.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update([name for name in os.environ if name.startswith("AWS_")])
    # Ctrl-C ends the driver, as a kill does, instead of making a search look finished.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    numbers = [number for number, _ in searcher.left]
    with tempfile.TemporaryDirectory(prefix="kp_ray-tune-", ignore_cleanup_errors=True) as notes:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trial, {"memory": 1, here: 0.001}),
            tune_config=ray.tune.TuneConfig(
                num_samples=len(numbers), search_alg=searcher, scheduler=build_scheduler(config)
            ),
            run_config=ray.tune.RunConfig(
                name="search",
                storage_path=notes,
                verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=config.train.max_failures),
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),  # a trial's state: its folder
                callbacks=[_Listener(config, progress)],
            ),
        )
        try:
            tuner.fit()
        except (ray.exceptions.RayError, ray.tune.TuneError) as error:
            raise RunStateError(
                f"{folder}: the search stopped: {describe_ray_error(error)}; run the same command to go on"
            ) from error
    if not all(read_end(trial_dir(config, number)) for number in numbers):  # Ray Tune ends so on some signals
        raise StoppedError(f"{folder}: the search was stopped; run the same command to go on")


class _Listener(ray.tune.Callback):
    """Writes the log, notes why trials died, and tells whoever listens."""

    def __init__(self, config: Config, progress: Progress | None) -> None:
        self.config, self.progress = config, progress
        self.live: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:  # Ray Tune keeps a copy that nobody reads
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.live.add(trial_name(trial.config["number"]))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        name, metric = trial_name(trial.config["number"]), self.config.tune.metric
        known = {(line["trial"], line["iteration"]) for line in read_log(self.config)}
        if (name, result["iteration"]) not in known:
            line = {"time": round(time.time(), 1), "trial": name, "iteration": result["iteration"]}
            line |= {"seconds": result["seconds"], metric: result[metric] if math.isfinite(result[metric]) else None}
            path = self.config.path("tune", "log.jsonl")
            write_bytes(path, (read_bytes(path) if exists(path) else b"") + (json.dumps(line) + "\n").encode())
            self._tell(name)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        note_end(trial_dir(self.config, trial.config["number"]))
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        told = Path(trial.error_file).read_text()  # Ray's own get_error finds it only when it has been copied
        note_end(trial_dir(self.config, trial.config["number"]), describe_ray_error(RuntimeError(told)), lasting=False)
        self._ended(trial)

    def _ended(self, trial: Any) -> None:
        name = trial_name(trial.config["number"])
        self.live.discard(name)
        self._tell(name)

    def _tell(self, name: str) -> None:
        rows = read_trials(self.config, self.live)
        write_tables(self.config, rows)
        if self.progress:
            self.progress(name, rows)


# The settings of a search, and its end.


def _settings(config: Config) -> dict[str, Any]:
    """What decides the search's results, as plain values."""
    values = config.to_dict()
    return {
        **{part: values[part] for part in ("seed", "model", "skeleton")},
        "augment": {"min_visible": config.augment.min_visible},
        "tune": {key: value for key, value in values["tune"].items() if key != "max_concurrent"},
        "train": deciding_train_fields(config),
        "train.members.0": {key: value for key, value in values["train"]["members"][0].items() if key != "name"},
        "store": store_digest(config.path("store")),
    }


def _check_settings(config: Config) -> None:
    path = config.path("tune", "settings.json")
    if not exists(path):
        return
    before = read_json(path, "delete this file and go on with the settings that the search began with")
    now = json.loads(json.dumps(_settings(config)))
    for part in now:
        for key in now[part] if isinstance(now[part], dict) else ():
            if before.get(part, {}).get(key) != now[part][key]:
                _refuse(config, f"{part}.{key}", before.get(part, {}).get(key), now[part][key])
        if before.get(part) != now[part]:
            _refuse(config, part, before.get(part), now[part])


def _refuse(config: Config, key: str, before: Any, now: Any) -> None:
    raise RunStateError(
        f"{config.path('tune')}: holds a search with {key} {before}, now {now}: put it back, choose a new run_dir, or "
        "delete this folder to search anew"
    )


def _delete_checkpoints(config: Config, rows: Sequence[Mapping[str, Any]]) -> None:
    """Gigabytes for a large model, and a search that is over is not gone on with."""
    for row in rows:
        fs, inner = filesystem(config.path("tune", "trials", row["trial"]))
        for name in {path.split("/")[0] for path in file_sizes(config.path("tune", "trials", row["trial"]))}:
            if name.startswith("checkpoint_0"):
                with contextlib.suppress(FileNotFoundError):
                    fs.delete_dir(f"{inner}/{name}")
