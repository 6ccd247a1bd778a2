"""The stage `train`."""

from dataclasses import dataclass
from typing import Any

from kp_ray.config.schema import Config
from kp_ray.data.sides import check_flips
from kp_ray.member_files import is_trained
from kp_ray.stage import Progress
from kp_ray.store.layout import has_store
from kp_ray.store.manifest import read_manifest
from kp_ray.store.skeleton import run_skeleton
from kp_ray.training.run import TrainSummary, check_rows, train
from kp_ray.training.search_result import SearchResult, is_search_finished
from kp_ray.training.settings import check_member_settings, check_train_config
from kp_ray.training.tuned import apply_search


@dataclass(frozen=True)
class TrainForecast:
    """Forecast of what `train` does.

    Attributes:
        members, finished: number of members, and of finished members.
        iterations: iterations per member with the largest number of workers.
        min_workers, max_workers: smallest and largest number of workers per member.
        ims_per_batch: images per worker and iteration.
        num_rows_by_split: number of the store's rows, under "train" and "val".
        search: the search whose settings are used; None for the config's own settings.
        folds: number of folds, of which each member holds out one; None without `split.folds`.
    """

    members: int
    finished: int
    iterations: int
    min_workers: int
    max_workers: int
    ims_per_batch: int
    num_rows_by_split: dict[str, int]
    search: SearchResult | None = None
    folds: int | None = None

    def lines(self) -> list[str]:
        """Return lines of text for the terminal."""
        is_elastic = self.min_workers < self.max_workers
        workers = f"{self.min_workers} to {self.max_workers}" if is_elastic else str(self.max_workers)
        validation = f"{self.num_rows_by_split['val']} validation rows"
        if self.folds is not None:
            validation = f"{self.folds} folds, of which each member validates on one"
        return [
            *([self.search.describe()] if self.search else []),
            f"{self.members} members ({self.finished} finished) of {self.iterations} iterations on {workers} workers, "
            f"{self.ims_per_batch} images per worker and iteration, {self.num_rows_by_split['train']} stored rows of "
            f"all recipes, {validation}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `--json`."""
        counts = {"members": self.members, "finished": self.finished, "iterations": self.iterations}
        return {**counts, **self.num_rows_by_split}


class TrainStage:
    """Trains every member of the ensemble; finished members are skipped, stopped ones resume."""

    name = "train"
    needs_cluster = True
    needs_dashboard = True

    def applies(self, config: Config) -> bool:
        """Return True: every run trains."""
        return True

    def describe_settings(self, config: Config) -> str | None:
        """Describe on one line what the run folder's search changes; None if the config's own settings are used.

        Raises:
            RunStateError: see `apply_search`.
        """
        _, search = apply_search(config)
        return search.describe() if search else None

    def check(self, config: Config) -> None:
        """Refuse wrong options, too few training rows, and settings other than those that existing members began with.

        An unfinished search passes, because `kp-ray run` finishes the search before training; `is_done` refuses it.

        Raises:
            ConfigError, ModelError, StoreError: see `check_train_config` and `check_flips`.
            DataError: see `check_rows`.
            RunStateError: a member or the finished search of this run folder began with other settings.
        """
        is_stored, search = has_store(config.path("store")), None
        if is_stored and is_search_finished(config):
            config, search = apply_search(config)
        check_train_config(config)
        check_flips(config, run_skeleton(config), "train")
        if is_stored:
            check_member_settings(config, from_search=search is not None)
            for member in config.train.members:
                if not is_trained(config.member_dir(member.name)):
                    check_rows(config, member)

    def is_done(self, config: Config) -> bool:
        """Return whether every member is finished.

        Raises:
            StoreError: there is no finished store.
            RunStateError: a member or the search of this run folder began with other settings, or the search is not
                finished.
        """
        read_manifest(config.path("store"))
        config, search = apply_search(config)
        check_member_settings(config, from_search=search is not None)
        return all(is_trained(config.member_dir(member.name)) for member in config.train.members)

    def run(self, config: Config, progress: Progress) -> TrainSummary:
        """Train the members that are not finished; see `train`."""
        return train(config, progress)

    def forecast(self, config: Config) -> TrainForecast:
        """Count the members, iterations and rows.

        Raises:
            StoreError: there is no finished store.
            RunStateError: see `apply_search`.
        """
        config, search = apply_search(config)
        manifest, section = read_manifest(config.path("store")), config.train
        return TrainForecast(
            members=len(section.members),
            finished=sum(is_trained(config.member_dir(member.name)) for member in section.members),
            iterations=round(section.max_iter / section.max_workers),
            min_workers=section.min_workers,
            max_workers=section.max_workers,
            ims_per_batch=section.ims_per_batch,
            num_rows_by_split=manifest.num_rows_by_split,
            search=search,
            folds=config.split.folds,
        )
