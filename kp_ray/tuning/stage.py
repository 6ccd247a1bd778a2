"""The stage `tune`."""

from dataclasses import dataclass
from typing import Any

from kp_ray.config.schema import Config
from kp_ray.data.sides import check_flips
from kp_ray.stage import Progress
from kp_ray.store.layout import has_store
from kp_ray.store.manifest import read_manifest
from kp_ray.store.skeleton import run_skeleton
from kp_ray.training.search_result import uses_search
from kp_ray.tuning.search import TuneSummary, check_search, has_matching_result, tune


@dataclass(frozen=True)
class TuneForecast:
    """Forecast of a search.

    Attributes:
        trials: number of trials.
        iterations: iterations of a trial that is not stopped early, before scaling by the number of workers.
        metric: the tuned metric.
        num_rows_by_split: number of rows of the store by split.
        fold: number of the fold on which trials are compared; None without `split.folds`.
    """

    trials: int
    iterations: int
    metric: str
    num_rows_by_split: dict[str, int]
    fold: int | None = None

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        held_out = f"fold {self.fold} held out"
        if self.fold is None:
            held_out = f"{self.num_rows_by_split['val']} validation rows"
        return [f"{self.trials} trials of up to {self.iterations} iterations, {held_out}, compared by {self.metric}"]

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        return {"trials": self.trials, "iterations": self.iterations, **self.num_rows_by_split}


class TuneStage:
    """Search for a learning rate, a schedule and recipes (`kp_ray.stage.Stage`)."""

    name = "tune"
    needs_cluster = True
    needs_dashboard = True

    def applies(self, config: Config) -> bool:
        """Return whether `train` would use the result of a search."""
        return uses_search(config)

    def check(self, config: Config) -> None:
        """Refuse to mirror images if flip pairs are missing and, if there is a store, a search that could not begin.

        Raises:
            ConfigError, DataError, StoreError: as `check_flips` and `check_search`. `train.flip` is checked too,
                because the first trial has the config's own settings.
            RunStateError: the run folder holds a search with other settings.
        """
        skeleton = run_skeleton(config)
        check_flips(config, skeleton, "tune")
        check_flips(config, skeleton, "train")
        if has_store(config.path("store")) and not has_matching_result(config):
            check_search(config)

    def is_done(self, config: Config) -> bool:
        """Return whether the run folder holds a finished search.

        Raises:
            RunStateError: the run folder holds a search with other settings.
            StoreError: there is no finished store.
        """
        read_manifest(config.path("store"))
        return has_matching_result(config)

    def run(self, config: Config, progress: Progress) -> TuneSummary:
        """Search, or resume a search that was stopped; progress shows one line or bar per trial."""
        return tune(config, progress)

    def forecast(self, config: Config) -> TuneForecast:
        """Forecast the search.

        Raises:
            StoreError: there is no finished store.
        """
        num_rows = read_manifest(config.path("store")).num_rows_by_split
        iterations = config.tune.max_iter or config.train.max_iter
        fold = config.held_out_fold(config.train.members[0].name)
        return TuneForecast(config.tune.num_trials, iterations, config.tune.metric, dict(num_rows), fold)
