"""Search learning rate, schedule and recipes: every trial is a real training run of the first member.

The number of trials at once is the number of training runs that the cluster holds now. What a trial did is recorded in
its own folder, `tune/trials/<trial>`; from these folders alone the tables are written and a search resumes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna

from kp_ray.cluster.resources import runs_at_once
from kp_ray.config.schema import Config
from kp_ray.config.training import WorkerRange
from kp_ray.errors import ConfigError, DivergedError, KpRayError, StoppedError, StoreError
from kp_ray.fingerprint import encode_fields, refuse_difference
from kp_ray.stage import Progress, no_progress
from kp_ray.storage import delete_folder, exists, join, list_folders, read_json, write_bytes, writer_lock
from kp_ray.store.manifest import read_manifest, store_digest
from kp_ray.training.settings import check_options, deciding_train_fields
from kp_ray.tuning.apply import SolverParams, best_config, check_sets
from kp_ray.tuning.plots import write_plots
from kp_ray.tuning.ray_tune import run_trials
from kp_ray.tuning.records import has_lasting_end, read_end, trial_dir, trial_name
from kp_ray.tuning.searcher import TrialSearcher
from kp_ray.tuning.space import first_points, recipe_sets
from kp_ray.tuning.trials import Trial, choose_best, read_trials, write_tables


@dataclass(frozen=True)
class TuneSummary:
    """The result of a search.

    Attributes:
        trials, failed: numbers of trials.
        best: value of `metric` of the trial named `trial`.
        params: of that trial.
        iterations: that all trials have trained.
        iterations_without_stops: of as many whole trials.
        config: path of `best.yaml`.
    """

    trials: int
    failed: int
    metric: str
    best: float
    trial: str
    params: SolverParams
    iterations: int
    iterations_without_stops: int
    config: str

    def lines(self) -> list[str]:
        """Lines of text for the terminal."""
        params = ", ".join(f"{name} {value}" for name, value in asdict(self.params).items() if value is not None)
        failed = f", {self.failed} failed" if self.failed else ""
        return [
            f"{self.trials} trials{failed}, {self.iterations} iterations of {self.iterations_without_stops} "
            "without stops",
            f"best {self.metric} {self.best:.4g} by trial {self.trial}: {params}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self)


def tune(config: Config, progress: Progress = no_progress) -> TuneSummary:
    """Search, or resume the search of this run folder that was stopped.

    Leaves in `<run_dir>/tune`: `trials.parquet` and `trials.csv` (`write_tables`), `best.yaml`, `log.jsonl`, `*.svg`
    (`write_plots`) and `trials/<trial>/`, one training run each, whose checkpoints are deleted after the search.

    Args:
        config: with a finished store that has validation rows; a Ray cluster must be running.
        progress: called with the row of a trial when it reports and when it ends.

    Raises:
        ClusterError: the cluster cannot hold one trial.
        ConfigError, StoreError: as `check_search`.
        DivergedError: every trial failed for good.
        RunStateError: the search began with other settings, or another process searches in this folder.
        StoppedError: Ray Tune stopped, or no trial has a result yet; the same command resumes the search.
        StorageError: a file of the search is damaged.
    """
    with writer_lock(config.path("tune")):
        if not is_finished(config):
            _search(config, progress)
        trials = read_trials(config)
        write_tables(config, trials)
        best = choose_best(trials, config.tune)
        if best is None or best.value is None:
            raise _no_result(config, trials)
        write_plots(config, trials)
        target = config.path("tune", "best.yaml")
        if not exists(target):
            write_bytes(target, best_config(config, best.start.params).to_yaml().encode())
        _delete_checkpoints(config)
        return TuneSummary(
            trials=len(trials),
            failed=sum(trial.status == "failed" for trial in trials),
            metric=config.tune.metric,
            best=best.value,
            trial=best.name,
            params=best.start.solver,
            iterations=sum(trial.trained for trial in trials),
            iterations_without_stops=len(trials) * max(trial.start.max_iter for trial in trials),
            config=target,
        )


def is_finished(config: Config) -> bool:
    """Return whether this run folder holds a finished search.

    Raises:
        RunStateError: it holds a search with other settings.
    """
    _check_settings(config)
    return exists(config.path("tune", "best.yaml"))


def check_search(config: Config) -> None:
    """Refuse a search that could not begin, before a cluster starts.

    Raises:
        ConfigError: settings of `tune` or `train` do not fit each other or the store.
        StoreError: there is no finished store, or it has no validation rows.
    """
    if not read_manifest(config.path("store")).num_rows_by_split["val"]:
        raise StoreError(
            f"{config.path('store')}: has no validation rows, on which trials are compared: set split.fraction above 0"
        )
    if not config.tune.num_trials:
        raise ConfigError("tune.num_trials: is 0: say how many trials, e.g. --set tune.num_trials=16")
    if isinstance(config.train.num_workers, WorkerRange):
        raise ConfigError(
            "train.num_workers: is a range, but trials must be of one size to be compared: give a number instead of "
            "min and max, or set tune.num_trials=0"
        )
    check_options(config)
    sets = recipe_sets(config)
    check_sets(config, sets)
    first_points(config, sets)


def _search(config: Config, progress: Progress) -> None:
    check_search(config)
    read_trials(config)  # refuses a damaged file before anything is trained
    _, use_gpu = runs_at_once(config)
    config.save()
    write_bytes(config.path("tune", "settings.json"), encode_fields(_settings(config)))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searcher = TrialSearcher(config)
    numbers = [number for number, _ in searcher.waiting]
    if not numbers:
        return
    run_trials(config, searcher, progress, use_gpu=use_gpu)
    if not all(read_end(trial_dir(config, trial_name(number))) for number in numbers):  # some signals end Ray Tune so
        raise StoppedError(f"{config.path('tune')}: the search was stopped: run the same command to resume it")


def _settings(config: Config) -> dict[str, Any]:
    """Return what decides the search's results, as plain values."""
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
    if exists(path):
        recorded = read_json(path, "delete this file and continue with the settings that the search began with")
        advice = "put it back, choose a new run_dir, or delete this folder to search again"
        refuse_difference(recorded, _settings(config), config.path("tune"), advice)


def _no_result(config: Config, trials: Sequence[Trial]) -> KpRayError:
    """Return the error for a search in which no trial reported the tuned metric."""
    reason = next((trial.reason for trial in trials if trial.reason), "none was evaluated")
    message = f"{config.path('tune')}: no trial reported {config.tune.metric}, the first because: {reason}"
    if trials and all(has_lasting_end(trial_dir(config, trial.name)) for trial in trials):
        return DivergedError(f"{message}: search other ranges, e.g. lower tune.base_lr, in a new run_dir")
    return StoppedError(f"{message}: correct the cause and run the same command")


def _delete_checkpoints(config: Config) -> None:
    """Delete the trials' checkpoints, gigabytes for a large model: a finished search is not resumed."""
    folder = config.path("tune", "trials")
    for trial in list_folders(folder):
        for name in list_folders(join(folder, trial)):
            if name.startswith("checkpoint_0"):
                delete_folder(join(folder, trial, name))
