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
from kp_ray.storage import SECRET, exists, join, read_bytes

_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What PyYAML raises; a ValueError comes from an impossible date or number, e.g. 2001-99-99."""


def load_config(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file (None: defaults) with `a.b=value` overrides.

    The preset, if any, lies below the file, the overrides above it.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is not allowed.
    """
    given: dict[str, Any] = {}
    name = path or "config"
    if path is not None:
        content = read_bytes(path)
        try:
            given = yaml.safe_load(content.decode("utf-8-sig")) or {}
        except _NOT_YAML as error:
            raise ConfigError(f"{path}: not valid YAML: {one_line(error)}") from error
        if not isinstance(given, dict):
            raise ConfigError(f"{path}: a mapping of settings is expected, e.g. `run_dir: runs/first`")
    for override in overrides:
        given = _merge(given, _parse_override(override))
    return build_config(given, name)


def load_run_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration of a finished run: of its folder, wherever that lies now, or of a YAML file.

    Raises:
        ConfigError: as `load_config`.
    """
    inside = join(path, "config.yaml")
    if exists(inside):
        return load_config(inside, [f"run_dir={json.dumps(path)}", *overrides])
    return load_config(path, overrides)


def build_config(values: Mapping[str, Any], name: str = "config") -> Config:
    """A checked configuration from plain values; their preset, if any, lies below them.

    Raises:
        ConfigError: naming `name`, the first wrong key and the fix.
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
            close = get_close_matches(str(first["loc"][-1]), _keys_beside(first["loc"]), n=1)
            message = "unknown key" + (f"; did you mean {close[0]}?" if close else "")
        else:
            got = SECRET.sub("***@", repr(first["input"]))
            message = f"{first['msg'].removeprefix('Value error, ')} (got {got:.100})"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{name}: {key}: {one_line(message)}{more}") from error


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    text = one_line(text)
    try:
        parsed: Any = yaml.safe_load(value)
    except _NOT_YAML as error:
        raise ConfigError(f"--set {text}: the value is not YAML: {one_line(error)}") from error
    # Detectron2's own options have dots in their names, so `model.cfg.` keeps the rest of the key whole.
    head, dotted_cfg, option = key.strip().partition("model.cfg.")
    parts = ["model", "cfg", option] if dotted_cfg and not head else key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {text}: expected KEY=VALUE, e.g. --set train.max_iter=500")
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def _keys_beside(location: Sequence[str | int]) -> list[str]:
    section: Any = Config
    for part in location[:-1]:
        if isinstance(part, int):  # an item of a tuple
            section = get_args(section)[0]
            continue
        field = getattr(section, "model_fields", {}).get(part)
        if field is None:
            return []
        section = field.annotation
    return list(getattr(section, "model_fields", {}))
