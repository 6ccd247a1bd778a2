"""Read, write and apply the result of a search: `tune/result.json`, and its copy in a member's `settings.json`.

This module imports no torch, so that the report and `kp_ray.pipeline` can use it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.json_files import parse_record, read_json, write_json
from kp_ray.member_files import SETTINGS_NAME
from kp_ray.storage import exists, join
from kp_ray.store.layout import has_store
from kp_ray.store.manifest import read_manifest


@dataclass(frozen=True)
class SearchResult:
    """The content of `tune/result.json`.

    Attributes:
        trial: name of the chosen trial.
        metric: the tuned metric.
        iterations: number of iterations after which the chosen trial reached `value`.
        value: the chosen trial's value of the metric.
        own_value: value of the trial with the config's own settings, after the same number of iterations; None if that
            trial failed.
        train: the fields of the section `train` that the search changes, with their new values; empty if no trial was
            clearly better than the config's own settings (`tune.min_gain`).
    """

    trial: str
    metric: str
    iterations: int
    value: float
    own_value: float | None
    train: Mapping[str, Any]

    def describe(self) -> str:
        """Describe on one line the settings that the search changes, and the metric with and without the changes."""
        own_value = "failed" if self.own_value is None else f"{self.own_value:.4g}"
        if not self.train:
            return (
                "settings: the config's own; the search found none clearly better "
                f"({self.metric} {own_value} after {self.iterations} iterations)"
            )
        changes = ", ".join(f"{name} {_format_setting(value)}" for name, value in self.train.items())
        return (
            f"settings from the search ({self.trial}, {self.metric} {self.value:.4g} after {self.iterations} "
            f"iterations; the config's own: {own_value}): {changes}"
        )


def _format_setting(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def uses_search(config: Config) -> bool:
    """Return whether `train` would use the result of a search: see `train.tuned` and `tune.num_trials`.

    Trials are compared on validation rows: a store that exists must have some.
    """
    if not (config.train.tuned and config.tune.num_trials):
        return False
    return not has_store(config.path("store")) or read_manifest(config.path("store")).has_validation_rows


def is_search_finished(config: Config) -> bool:
    """Return whether this run folder holds the result of a search."""
    return exists(config.path("tune", "result.json"))


def read_result(config: Config) -> SearchResult:
    """Read `tune/result.json`.

    Raises:
        StorageError: the file does not exist, or is damaged.
    """
    path, fix = config.path("tune", "result.json"), "delete this file and run tune again"
    return parse_record(SearchResult, read_json(path, fix), path, fix)


def read_member_search(folder: str) -> SearchResult | None:
    """Read from a member's folder the search that its settings come from; None for the config's own settings.

    Raises:
        StorageError: the member's recorded settings are damaged.
    """
    path, fix = join(folder, SETTINGS_NAME), f"restore it, or delete {folder} to train the member again"
    recorded = read_json(path, fix).get("search") if exists(path) else None
    return parse_record(SearchResult, recorded, path, fix) if recorded else None


def write_result(config: Config, result: SearchResult) -> None:
    """Write `tune/result.json`, which marks the search as finished."""
    write_json(config.path("tune", "result.json"), asdict(result))


def apply_result(config: Config, result: SearchResult) -> Config:
    """Return the config with a search's settings for every member; applying the result again changes nothing."""
    values = config.to_dict()
    values["train"] |= {**result.train, "tuned": False}
    if "recipes" in result.train:
        for member in values["train"]["members"]:
            member["recipes"] = None
    return build_config(values)
