"""Record the settings that a search begins with, and train with the settings that a finished search found."""

from typing import Any

from kp_ray.config.schema import Config
from kp_ray.errors import RunStateError
from kp_ray.fingerprint import encode_fields, refuse_difference, with_removed_keys
from kp_ray.json_files import read_json
from kp_ray.storage import exists, write_bytes
from kp_ray.store.manifest import store_digest
from kp_ray.training.search_result import SearchResult, apply_result, is_search_finished, read_result
from kp_ray.training.settings import deciding_train_fields


def search_fields(config: Config) -> dict[str, Any]:
    """Return the settings that decide a search's results, as plain values."""
    values, member = config.to_dict(), config.train.members[0]
    member_values = {key: value for key, value in values["train"]["members"][0].items() if key != "name"}
    return {
        **{key: values[key] for key in ("seed", "model", "skeleton")},
        "augment": {"min_visible": config.augment.min_visible},
        "tune": _deciding_tune_fields(config),
        "train": deciding_train_fields(config),
        "train.members.0": {**member_values, "fold": config.held_out_fold(member.name)},
        "predict": {key: values["predict"][key] for key in ("decode", "score_threshold", "fallback_threshold")},
        "store": store_digest(config.path("store")),
    }


def _deciding_tune_fields(config: Config) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict()["tune"].items() if key != "max_concurrent"}


def record_search(config: Config) -> None:
    """Record the settings that a search begins with."""
    write_bytes(config.path("tune", "settings.json"), encode_fields(search_fields(config)))


def check_search_settings(config: Config, advice: str) -> None:
    """Refuse settings other than those with which the run folder's search began.

    The settings of `predict`, which decide the trials' scores, may change once the search is finished.

    Raises:
        RunStateError: a setting differs; the message names it and ends with `advice`.
        StorageError: recorded settings are damaged.
        StoreError: there is no finished store.
    """
    path = config.path("tune", "settings.json")
    if exists(path):
        recorded = read_json(path, "delete this file and continue with the settings that the search began with")
        # A field that was added to kp_ray after the settings were recorded counts as its default.
        defaults = {"train": deciding_train_fields(Config()), "tune": _deciding_tune_fields(Config())}
        for section, fields in defaults.items():
            if isinstance(recorded.get(section), dict):
                recorded[section] = fields | recorded[section]
        fields = search_fields(config)
        for section, name in (("model", "cfg"), ("tune", "recipes")):
            old_fields = recorded[section].get(name) if isinstance(recorded.get(section), dict) else None
            if isinstance(old_fields, dict) and isinstance(fields[section][name], dict):
                fields[section][name] = with_removed_keys(old_fields, fields[section][name])
        if is_search_finished(config) or "predict" not in recorded:  # versions before 0.2.0 did not record it
            del fields["predict"]
        refuse_difference(recorded, fields, config.path("tune"), advice)


def apply_search(config: Config) -> tuple[Config, SearchResult | None]:
    """Return the config with the settings that the run folder's search found, and the search's result.

    Without a search, with `train.tuned: false` or with `tune.num_trials: 0`, return the config unchanged, and None.

    Raises:
        RunStateError: the run folder's search is not finished, or began with other settings.
        StorageError: a file of the search is damaged.
        StoreError: there is a search and no finished store.
    """
    has_search = exists(config.path("tune", "settings.json")) or is_search_finished(config)
    if not (has_search and config.train.tuned and config.tune.num_trials):
        return config, None
    check_search_settings(
        config, "restore the setting, or set train.tuned=false to train with the config's own settings"
    )
    if not is_search_finished(config):
        raise RunStateError(
            f"{config.path('tune')}: the search is not finished: run tune to finish it, or set train.tuned=false to "
            "train with the config's own settings"
        )
    result = read_result(config)
    return apply_result(config, result), result
