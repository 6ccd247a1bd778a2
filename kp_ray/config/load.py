"""Read a configuration from YAML, with dotted overrides and presets."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from kp_ray.config.presets import CONFIG_PRESETS
from kp_ray.config.schema import Config
from kp_ray.config.types import Section
from kp_ray.errors import ConfigError, one_line
from kp_ray.storage import URL_CREDENTIALS, exists, join, read_bytes

_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)
"""Exceptions that PyYAML raises for invalid text; an impossible date, e.g. 2001-99-99, raises ValueError."""
_SECTIONS = {name for name, field in Config.model_fields.items() if isinstance(field.default, Section)}
"""Names of the sections."""


class _Loader(yaml.SafeLoader):
    """PyYAML's SafeLoader, which keeps the last value of a key that is repeated; this one refuses such a key."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value} is there twice", key.start_mark)
            names.add(key.value)
        return node


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)  # noqa: S506  (a SafeLoader)


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
            values = _parse_yaml(content.decode("utf-8-sig")) or {}
        except _YAML_ERRORS as error:
            raise ConfigError(f"{path}: not valid YAML: {one_line(error)}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: a mapping of settings is expected, e.g. `run_dir: runs/first`")
    parsed_overrides = [_parse_override(override) for override in overrides]
    presets = [parsed["preset"] for parsed in [values, *parsed_overrides] if "preset" in parsed]
    preset = presets[-1] if presets else None
    if preset != values.get("preset") and set(Config.model_fields) <= set(values):
        raise ConfigError(
            f"--set preset={preset}: {path} is a saved configuration, which states every setting, so a preset would "
            "change nothing: use the file from which it was made"
        )
    values = _add_preset({**values, "preset": preset})
    for parsed in parsed_overrides:
        values = _merge(values, parsed)
    return _validate(values, name)


def load_run_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration of a run from its folder, or from a YAML file.

    Args:
        path: the run folder, which becomes `run_dir` even if it was moved or copied; or a file for `load_config`.
        overrides: as in `load_config`.

    Raises:
        ConfigError, StorageError: as `load_config`.
    """
    saved_config = join(path, "config.yaml")
    if not path.endswith((".yaml", ".yml")) and exists(path) and not exists(saved_config):
        raise ConfigError(f"{path}: holds no config.yaml: name another run folder, or a configuration file")
    if exists(saved_config):
        return load_config(saved_config, [f"run_dir={json.dumps(path, ensure_ascii=False)}", *overrides])
    return load_config(path, overrides)


def build_config(values: Mapping[str, Any], name: str = "config") -> Config:
    """Build and check a configuration from plain values, which win over the preset that they name.

    Args:
        values: sections and fields, as in a configuration file.
        name: origin of the values, named first in the message.

    Raises:
        ConfigError: a key or value is not allowed; the message names the first such key and its fix.
    """
    return _validate(_add_preset(values), name)


def _add_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Add the values of the preset that plain values name; the plain values win."""
    # A section without keys, or whose keys are all comments, is null in YAML.
    values = {key: value for key, value in values.items() if value is not None or key not in _SECTIONS}
    preset = values.get("preset")
    return _merge(CONFIG_PRESETS[preset], values) if isinstance(preset, str) and preset in CONFIG_PRESETS else values


def _validate(values: Mapping[str, Any], name: str) -> Config:
    """Build a configuration from values that include those of their preset; for the rest see `build_config`."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_describe_errors(error.errors(), name)) from error


_TYPE_TAGS = ("number", "range", "bool", "int", "float", "str", "constrained-float")
"""Tags that Pydantic adds to an error's location, beside those with brackets, where a value can have several types."""


def _key(error: ErrorDetails) -> str:
    """Return the dotted key to which an error of Pydantic belongs."""
    parts = [str(part) for part in error["loc"]]
    return one_line(".".join(part for part in parts if part not in _TYPE_TAGS and "[" not in part))


def _describe_errors(errors: Sequence[ErrorDetails], name: str) -> str:
    """Describe the first of Pydantic's errors in one line that begins with `name`, and count the others."""
    # A value that can have several types has an error per type, and more of them if it is a mapping of such values.
    related_errors = [error for error in errors if f"{_key(error)}.".startswith(f"{_key(errors[0])}.")]
    depth = max(len(error["loc"]) for error in related_errors)
    first_error = next(error for error in related_errors if len(error["loc"]) == depth)
    key = _key(first_error)
    messages = [error["msg"].removeprefix("Value error, ") for error in related_errors if _key(error) == key]
    message = "; or: ".join(messages)
    if first_error["type"] == "extra_forbidden":
        suggestions = get_close_matches(str(first_error["loc"][-1]), _sibling_keys(first_error["loc"]), n=1)
        fix = f"; did you mean {suggestions[0]}?" if suggestions else ": delete it, or correct its name"
        message = f"unknown key{fix}"
    elif isinstance(first_error["input"], Mapping) and first_error["type"] == "value_error":
        key, message = "", f"{key}.{message}" if key else message  # the message of a section names the key
    else:
        value = URL_CREDENTIALS.sub("***@", repr(first_error["input"]))
        message += f" (got {value:.100})"
    num_more = len(errors) - len(related_errors)
    more = f" (and {num_more} more)" if num_more else ""
    place = f"{name}: {key}" if key else name
    return f"{place}: {one_line(message)}{more}"


def _parse_override(text: str) -> dict[str, Any]:
    """Parse `a.b=value` into {a: {b: value}}."""
    key, equals, value = text.partition("=")
    text = one_line(text)
    try:
        parsed: Any = _parse_yaml(value)
    except _YAML_ERRORS as error:
        raise ConfigError(f"--set {text}: the value is not YAML: {one_line(error)}") from error
    # Detectron2's own options have dots in their names, so the key after `model.cfg.` is not split.
    key = key.strip()
    option = key.removeprefix("model.cfg.")
    keys = key.split(".") if option == key else ["model", "cfg", option]
    if not equals or not all(keys):
        raise ConfigError(f"--set {text}: expected KEY=VALUE, e.g. --set train.max_iter=500")
    for name in reversed(keys):
        parsed = {name: parsed}
    return dict(parsed)


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any], *, has_sections: bool = True) -> dict[str, Any]:
    """Merge two nested mappings; values of `overrides` win.

    An empty mapping as the value of a setting, e.g. `tune.recipes: {}`, replaces the base's value. An empty section has
    the base's values; `has_sections` is true if the keys are sections.
    """
    result = dict(base)
    for key, value in overrides.items():
        base_value = result.get(key)
        if isinstance(base_value, Mapping) and isinstance(value, Mapping) and (value or has_sections):
            result[key] = _merge(base_value, value, has_sections=False)
        else:
            result[key] = value
    return result


def _sibling_keys(location: Sequence[str | int]) -> list[str]:
    """List the keys that are allowed in the section in which pydantic found an unknown key."""
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
