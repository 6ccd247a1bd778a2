"""Fingerprints of the fields that decide a result: the fields are either digested, or recorded and compared.

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


def find_difference(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Find the first field of `current` that was recorded with another value.

    Values are compared as JSON, so a tuple equals a list. A field that was not recorded counts as None. Recorded fields
    that `current` lacks are ignored, because they no longer decide the result.

    Returns:
        The field's dotted name, its recorded value and its current value; None if all fields are equal.
    """
    for name, value in json.loads(json.dumps(current)).items():
        recorded_value = recorded.get(name)
        if isinstance(recorded_value, Mapping) and isinstance(value, Mapping):
            difference = find_difference(recorded_value, value)
            if difference:
                inner_name, inner_recorded, inner_current = difference
                return f"{name}.{inner_name}", inner_recorded, inner_current
        elif recorded_value != value:
            return name, recorded_value, value
    return None


def refuse_difference(recorded: Mapping[str, Any], current: Mapping[str, Any], place: str, fix: str) -> None:
    """Refuse to reuse a result whose recorded fields differ from the current ones.

    Args:
        recorded: fields stored with the result.
        current: fields of the current configuration.
        place: file or folder of the result; the message begins with it.
        fix: what the user should do; the message ends with it.

    Raises:
        RunStateError: a field differs.
    """
    difference = find_difference(recorded, current)
    if difference:
        name, recorded_value, value = difference
        raise RunStateError(f"{place}: was made with {name} {recorded_value!r:.80}, now {value!r:.80}: {fix}")
