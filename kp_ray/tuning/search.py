"""Search for a learning rate, a schedule and recipes; every trial is a real training run of the first member.

The number of concurrent trials follows the capacity of the cluster. Each trial is recorded in its own folder,
`tune/trials/<trial>`. These folders and the log hold the whole state of a search, so that a new driver can resume it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna

from kp_ray.cluster.resources import training_capacity
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.config.training import WorkerRange
from kp_ray.errors import ConfigError, DivergedError, KpRayError, RunStateError, StoppedError, StoreError
from kp_ray.stage import Progress, no_progress
from kp_ray.storage import delete_folder, exists, join, list_folders, reader_lock, write_bytes, writer_lock
from kp_ray.store.folds import check_held_out_fold
from kp_ray.store.manifest import read_manifest
from kp_ray.store.read import list_rows
from kp_ray.training.search_result import SearchResult, apply_result, is_search_finished, read_result, write_result
from kp_ray.training.settings import check_train_config
from kp_ray.training.tuned import check_search_settings, record_search
from kp_ray.tuning.apply import SolverParams, check_recipe_sets, train_fields
from kp_ray.tuning.plots import write_plots
from kp_ray.tuning.ray_tune import run_trials
from kp_ray.tuning.records import (
    OWN_TRIAL,
    drop_reports_of_deleted_trials,
    is_over,
    read_end,
    trial_dir,
    trial_name,
)
from kp_ray.tuning.searcher import build_searcher
from kp_ray.tuning.space import build_recipe_sets, first_points
from kp_ray.tuning.trials import Trial, choose_trial, read_trials, write_tables


@dataclass(frozen=True)
class TuneSummary:
    """The result of a search.

    Attributes:
        trials: number of all trials.
        failed: number of failed trials.
        metric: the tuned metric.
        best: the chosen trial's value of the metric.
        own: the metric's value with the config's own settings, after as many iterations as the chosen trial; None
            without such a value, e.g. if trial 0 failed.
        trial: the chosen trial's name, see `choose_trial`.
        params: the chosen trial's settings.
        iterations: iterations trained by all trials together.
        iterations_without_stops: iterations that the same number of trials takes without early stopping.
        config: path of `best.yaml`.
        fold: number of the fold on which the trials were compared; None without `split.folds`.
    """

    trials: int
    failed: int
    metric: str
    best: float
    own: float | None
    trial: str
    params: SolverParams
    iterations: int
    iterations_without_stops: int
    config: str
    fold: int | None = None

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        params = ", ".join(f"{name} {value}" for name, value in asdict(self.params).items() if value is not None)
        comparison = "the config's own settings"
        if self.trial != OWN_TRIAL:
            comparison += " failed" if self.own is None else f" {self.own:.4g}"
        failures = f", {self.failed} failed" if self.failed else ""
        fold = "" if self.fold is None else f" on fold {self.fold}"
        return [
            f"{self.trials} trials{failures}, {self.iterations} iterations ({self.iterations_without_stops} without "
            "early stops)",
            f"chosen: {self.trial} with {self.metric} {self.best:.4g}{fold} ({comparison}): {params}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        values = asdict(self)
        if self.fold is None:
            del values["fold"]
        return values


def tune(config: Config, progress: Progress = no_progress) -> TuneSummary:
    """Search, or resume the search of this run folder.

    Files of `<run_dir>/tune` after the search:

    - `trials.parquet` and `trials.csv`: see `write_tables`.
    - `*.svg`: see `write_plots`.
    - `log.jsonl`: the reports of all trials.
    - `result.json`: the result, with which `train` trains.
    - `best.yaml`: a config to train with the result in another run.
    - `trials/<trial>/`: the training run of each trial, without its checkpoints.

    Args:
        config: the search's config. The run folder must hold a finished store with validation rows, and a Ray cluster
            must be running.
        progress: called with the trial's name when a trial reports and when it ends.

    Raises:
        ClusterError: the cluster cannot hold one trial.
        ConfigError, StoreError: see `check_search`.
        DivergedError: every trial has a final failure.
        RunStateError: the search began with other settings, another process searches in this folder or writes the
            store, or the chosen trial of a finished search is missing.
        StoppedError: Ray Tune stopped, or no trial has a result yet; the same command resumes the search.
        StorageError: a file of the search is damaged.
    """
    with writer_lock(config.path("tune")), reader_lock(config.path("store")):
        is_finished = has_matching_result(config)
        if not is_finished:
            _search(config, progress)
        elif not exists(config.path("tune", "settings.json")):
            record_search(config)  # a user may have deleted the file because it was damaged
        trials = read_trials(config)
        if is_finished:
            _refuse_missing_trial(config, trials, read_result(config).trial)
        write_tables(config, trials)
        chosen = choose_trial(trials, config.tune)
        if chosen is None or chosen.value is None:
            raise _no_result_error(config, trials)
        if not is_finished:
            _refuse_unfinished_trials(config, trials)
        write_plots(config, trials)
        own_trial = next((trial for trial in trials if trial.name == OWN_TRIAL), None)
        own_value = own_trial.value_at(chosen.iterations, config.tune.metric) if own_trial else None
        if not is_finished:
            _write_result(config, chosen, chosen.value, own_value)
        _delete_checkpoints(config)
        return TuneSummary(
            trials=len(trials),
            failed=sum(trial.status == "failed" for trial in trials),
            metric=config.tune.metric,
            best=chosen.value,
            own=own_value,
            trial=chosen.name,
            params=chosen.start.solver,
            iterations=sum(trial.trained_iterations for trial in trials),
            iterations_without_stops=len(trials) * max(trial.start.max_iter for trial in trials),
            config=config.path("tune", "best.yaml"),
            fold=config.held_out_fold(config.train.members[0].name),
        )


def has_matching_result(config: Config) -> bool:
    """Return whether this run folder holds the result of a search with the config's settings.

    Raises:
        RunStateError: the folder holds a search with other settings.
    """
    check_search_settings(config, "restore the setting, choose a new run_dir, or delete this folder to search again")
    return is_search_finished(config)


def _write_result(config: Config, chosen: Trial, value: float, own_value: float | None) -> None:
    """Write `best.yaml` and `result.json`, which ends the search."""
    fields = {} if chosen.name == OWN_TRIAL else train_fields(config, chosen.start.params)
    result = SearchResult(chosen.name, config.tune.metric, chosen.iterations, value, own_value, fields)
    write_bytes(config.path("tune", "best.yaml"), _best_config(config, result).to_yaml().encode())
    write_result(config, result)


def _best_config(config: Config, result: SearchResult) -> Config:
    """Return a config that trains with the result, and with which `tune` and `run` do not search again."""
    values = apply_result(config, result).to_dict()
    values["tune"]["num_trials"] = 0
    if values["train"]["schedule"] != "cosine":  # without a search, other schedules refuse the option
        values["model"]["cfg"].pop("SOLVER.BASE_LR_END", None)
    return build_config(values)


def check_search(config: Config) -> None:
    """Refuse a search that could not begin, before a cluster starts.

    Raises:
        ConfigError: settings of `tune` or `train` do not fit each other or the store.
        StoreError: there is no finished store, it has no validation rows, or its folds are not the config's.
        StorageError: a part of a store with folds is missing or damaged.
    """
    store, member = config.path("store"), config.train.members[0].name
    fold = check_held_out_fold(config, member)
    if not list_rows(store, split="val", fold=fold):
        missing_rows, fix = "validation rows", "raise split.fraction and run augment"
        if read_manifest(store).units.get("val"):
            fix = "repair the images that _quarantine.csv lists, and run augment"
        if fold is not None:
            missing_rows = f"usable images in fold {fold}"
            fix = f"let member {member} hold out another fold (train.members), or repair the images and run augment"
        raise StoreError(f"{store}: has no {missing_rows}, on which trials are compared: {fix}")
    if not config.tune.num_trials:
        raise ConfigError("tune.num_trials: there is no trial to run (got 0): raise it, e.g. --set tune.num_trials=16")
    if isinstance(config.train.num_workers, WorkerRange):
        raise ConfigError(
            "train.num_workers: only trials with the same number of workers can be compared (got a range): give a "
            "number instead of min and max, or set tune.num_trials=0"
        )
    check_train_config(config)
    recipe_sets = build_recipe_sets(config)
    check_recipe_sets(config, recipe_sets)
    first_points(config, recipe_sets)  # refuses points outside the search space


def _search(config: Config, progress: Progress) -> None:
    check_search(config)
    read_trials(config)  # refuses a damaged file before a trial trains
    drop_reports_of_deleted_trials(config)
    _, use_gpu = training_capacity(config)
    config.save()
    record_search(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searcher = build_searcher(config)
    numbers = list(searcher.numbers)  # `run_trials` empties the searcher's list
    if not numbers:
        return
    run_trials(config, searcher, progress, use_gpu=use_gpu)
    # After some signals Ray Tune returns although trials have not ended.
    if not all(read_end(trial_dir(config, trial_name(number))) for number in numbers):
        raise StoppedError(f"{config.path('tune')}: the search was stopped: run the same command to resume it")


def _no_result_error(config: Config, trials: Sequence[Trial]) -> KpRayError:
    """Return the error of a search in which no trial reported the tuned metric."""
    reason = next((trial.reason for trial in trials if trial.reason), "no trial was evaluated")
    message = f"{config.path('tune')}: no trial reported {config.tune.metric}; the first reason: {reason}"
    if trials and all(is_over(trial_dir(config, trial.name)) for trial in trials):
        return DivergedError(f"{message}: search other ranges, e.g. lower tune.base_lr, in a new run_dir")
    return StoppedError(f"{message}: correct the cause and run the same command")


def _refuse_missing_trial(config: Config, trials: Sequence[Trial], name: str) -> None:
    """Raise a RunStateError if the trial of a finished search's result is missing: tables and plots need it."""
    if name not in {trial.name for trial in trials}:
        raise RunStateError(
            f"{trial_dir(config, name)}: the chosen trial is missing: restore this folder (train needs only "
            f"result.json), or delete {config.path('tune')} to search again"
        )


def _refuse_unfinished_trials(config: Config, trials: Sequence[Trial]) -> None:
    """Raise a StoppedError if trials failed for a cause that may pass: the same command tries them again."""
    unfinished_trials = [trial for trial in trials if not is_over(trial_dir(config, trial.name))]
    if unfinished_trials:
        raise StoppedError(
            f"{config.path('tune')}: {len(unfinished_trials)} of {len(trials)} trials failed, first "
            f"{unfinished_trials[0].name}: {unfinished_trials[0].reason}: correct the cause and run the same command"
        )


def _delete_checkpoints(config: Config) -> None:
    """Delete the trials' checkpoints, which take gigabytes for a large model; a finished search is not resumed."""
    folder = config.path("tune", "trials")
    for trial in list_folders(folder):
        for name in list_folders(join(folder, trial)):
            if name.startswith("checkpoint_0"):
                delete_folder(join(folder, trial, name))
