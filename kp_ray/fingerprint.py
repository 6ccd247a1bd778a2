"""Digest the fields that decide a result, or record them beside the result and compare them later.

A store's parts, a member, a search and a prediction all use these functions. A result is reused only if the fields that
decided it are unchanged; the message about a changed field names the field.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kp_ray.errors import RunStateError


def digest(content: Any, num_bytes: int = 8) -> str:
    """Compute the BLAKE2b digest of a JSON value as 2 * num_bytes hexadecimal digits; the order of keys is ignored."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=num_bytes).hexdigest()


def encode_fields(fields: Mapping[str, Any]) -> bytes:
    """Encode the fields as the JSON file that is recorded beside a result."""
    return (json.dumps(fields, indent=1) + "\n").encode()


def find_difference(old_fields: Mapping[str, Any], new_fields: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Find the first new field that was recorded with another value.

    Values are compared as JSON, so a tuple equals a list. A field that was not recorded counts as None. Old fields
    that are not among the new ones are ignored, because they no longer decide the result.

    Returns:
        The field's dotted name, its old value and its new value; None if all fields are equal.
    """
    for name, value in json.loads(json.dumps(new_fields)).items():
        old_value = old_fields.get(name)
        if isinstance(old_value, Mapping) and isinstance(value, Mapping):
            difference = find_difference(old_value, value)
            if difference:
                inner_name, inner_old, inner_new = difference
                return f"{name}.{inner_name}", inner_old, inner_new
        elif old_value != value:
            return name, old_value, value
    return None


def with_removed_keys(old_fields: Mapping[str, Any], new_fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the new fields, with None for those that only the old fields have, so that they differ.

    For fields that the user names, such as Detectron2's options: without one of them the result is another.
    """
    return {**dict.fromkeys(old_fields), **new_fields}


def refuse_difference(old_fields: Mapping[str, Any], new_fields: Mapping[str, Any], result_path: str, fix: str) -> None:
    """Refuse to reuse a result whose recorded fields differ from the new fields.

    Args:
        old_fields: fields that were recorded with the result.
        new_fields: fields of the current configuration.
        result_path: file or folder of the result; the message begins with it.
        fix: what the user should do; the message ends with it.

    Raises:
        RunStateError: a field differs.
    """
    difference = find_difference(old_fields, new_fields)
    if difference:
        name, old_value, value = difference
        raise RunStateError(f"{result_path}: was made with {name} {old_value!r:.80}, now {value!r:.80}: {fix}")
