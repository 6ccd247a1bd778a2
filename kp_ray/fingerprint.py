"""Fingerprints of what decides a result: named fields are digested, or recorded and compared.

A store's parts, a member, a search and a prediction all use these functions: a result is reused only if the fields that
decided it are the same, and a difference is refused by the name of the field.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from kp_ray.errors import RunStateError


def digest(content: Any, num_bytes: int = 8) -> str:
    """Hexadecimal BLAKE2b digest (2 x num_bytes digits) of a JSON value; the order of a mapping's keys is ignored."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=num_bytes).hexdigest()


def encode_fields(fields: Mapping[str, Any]) -> bytes:
    """The fields as the JSON that is recorded beside a result."""
    return (json.dumps(fields, indent=1) + "\n").encode()


def find_difference(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Find the first field of `current` that was recorded with another value.

    Returns:
        Its dotted name, the recorded value and the current one; None if all are equal.

    Values are compared as JSON, so a tuple equals a list. Fields that are recorded but no longer current are ignored.
    """
    for name, value in json.loads(json.dumps(current)).items():
        before = recorded.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            inner = find_difference(before, value)
            if inner:
                return f"{name}.{inner[0]}", inner[1], inner[2]
        elif before != value:
            return name, before, value
    return None


def refuse_difference(recorded: Mapping[str, Any], current: Mapping[str, Any], place: str, advice: str) -> None:
    """Refuse to continue a result that other fields decided.

    Args:
        recorded: fields stored with the result.
        current: fields of the present configuration.
        place: file or folder of the result, named first in the message.
        advice: what to do, named last.

    Raises:
        RunStateError: a field differs.
    """
    difference = find_difference(recorded, current)
    if difference:
        name, before, now = difference
        raise RunStateError(f"{place}: was made with {name} {before!r:.80}, now {now!r:.80}: {advice}")
