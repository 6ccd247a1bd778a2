"""Read a configuration from YAML, with dotted overrides and presets."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from kp_ray.config.presets import CONFIG_PRESETS
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, one_line
from kp_ray.storage import URL_CREDENTIALS, exists, join, read_bytes

_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""Exceptions that PyYAML raises; ValueError comes from an impossible date or number, e.g. 2001-99-99."""


def load_config(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration from a YAML file.

    Overrides win over the file, the file wins over its preset, and the preset over the defaults.

    Args:
        path: a local path or URL; None for a configuration of defaults.
        overrides: texts of the form `a.b=value`, whose value is YAML.

    Raises:
        ConfigError: the file or an override is not YAML, or a key or value is not allowed.
        StorageError: the file cannot be read.
    """
    values: dict[str, Any] = {}
    name = path or "config"
    if path is not None:
        content = read_bytes(path)
        try:
            values = yaml.safe_load(content.decode("utf-8-sig")) or {}
        except _NOT_YAML as error:
            raise ConfigError(f"{path}: not valid YAML: {one_line(error)}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: a mapping of settings is expected, e.g. `run_dir: runs/first`")
    for override in overrides:
        values = _merge(values, _parse_override(override))
    return build_config(values, name)


def load_run_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration of a run from its folder, or from a YAML file.

    Args:
        path: the run folder, which becomes `run_dir` even if it was moved or copied; or a file for `load_config`.
        overrides: as in `load_config`.

    Raises:
        ConfigError, StorageError: as `load_config`.
    """
    inside = join(path, "config.yaml")
    if exists(inside):
        return load_config(inside, [f"run_dir={json.dumps(path)}", *overrides])
    return load_config(path, overrides)


def build_config(values: Mapping[str, Any], name: str = "config") -> Config:
    """Build and check a configuration from plain values; they win over their preset.

    Args:
        values: sections and fields, as in a configuration file.
        name: origin of the values, named first in the message.

    Raises:
        ConfigError: a key or value is not allowed; the message has the first such key and what to do.
    """
    preset = values.get("preset")
    if isinstance(preset, str) and preset in CONFIG_PRESETS:
        values = _merge(CONFIG_PRESETS[preset], values)
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = one_line(".".join(str(part) for part in first["loc"]))
        if first["type"] == "extra_forbidden":
            close = get_close_matches(str(first["loc"][-1]), _sibling_keys(first["loc"]), n=1)
            message = "unknown key" + (f"; did you mean {close[0]}?" if close else "")
        else:
            got = URL_CREDENTIALS.sub("***@", repr(first["input"]))
            message = f"{first['msg'].removeprefix('Value error, ')} (got {got:.100})"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{name}: {key}: {one_line(message)}{more}") from error


def _parse_override(text: str) -> dict[str, Any]:
    """Parse `a.b=value` into {a: {b: value}}."""
    key, equals, value = text.partition("=")
    text = one_line(text)
    try:
        parsed: Any = yaml.safe_load(value)
    except _NOT_YAML as error:
        raise ConfigError(f"--set {text}: the value is not YAML: {one_line(error)}") from error
    # Detectron2's own options have dots in their names, so the key after `model.cfg.` is not split.
    head, dotted_cfg, option = key.strip().partition("model.cfg.")
    parts = ["model", "cfg", option] if dotted_cfg and not head else key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: expected KEY=VALUE, e.g. --set train.max_iter=500")
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


def _merge(base: Mapping[str, Any], overriding: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; values of `overriding` win."""
    merged = dict(base)
    for key, value in overriding.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def _sibling_keys(location: Sequence[str | int]) -> list[str]:
    """List the keys that are allowed in the section where pydantic found an unknown one."""
    section: Any = Config
    for part in location[:-1]:
        if isinstance(part, int):  # index of an item of a tuple
            section = get_args(section)[0]
            continue
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            return []
        section = field.annotation
    return list(getattr(section, "model_fields", {}))
