"""Fingerprints: digests of fields, and the name of the field that differs."""

import json

import pytest

from kp_ray.errors import RunStateError
from kp_ray.fingerprint import digest, encode_fields, find_difference, refuse_difference


def test_digests_equal_those_of_version_0_1() -> None:
    assert digest([2, "ab", 1.5, None], 6) == "23b3cae84363"
    assert digest({"b": 1, "a": [1, 2]}) == "0e1cb8c944b77a68"


def test_a_digest_ignores_the_order_of_keys_and_the_kind_of_sequence() -> None:
    assert digest({"a": 1, "b": (2, 3)}) == digest({"b": [2, 3], "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert len(digest([], 6)) == 12


def test_recorded_fields_are_read_back_equal() -> None:
    fields = {"seed": 1, "model": {"preset": "r18", "sizes": (1, 2)}, "none": None}
    assert find_difference(json.loads(encode_fields(fields)), fields) is None


def test_a_tuple_equals_the_list_that_was_recorded() -> None:
    assert find_difference({"sizes": [1, 2]}, {"sizes": (1, 2)}) is None
    assert find_difference({"sizes": [1, 2]}, {"sizes": (1, 3)}) == ("sizes", [1, 2], [1, 3])


@pytest.mark.parametrize(
    ("current_fields", "difference"),
    [
        ({"seed": 2, "model": {"preset": "r18"}}, ("seed", 1, 2)),
        ({"seed": 1, "model": {"preset": "r50"}}, ("model.preset", "r18", "r50")),
        ({"seed": 1, "model": {"preset": "r18", "depth": 18}}, ("model.depth", None, 18)),
        ({"seed": 1, "model": None}, ("model", {"preset": "r18"}, None)),
        ({"seed": 1}, None),
    ],
    ids=["value", "nested value", "new field", "other type", "field no longer current"],
)
def test_the_first_field_that_differs_is_found(
    current_fields: dict[str, object], difference: tuple[str, object, object] | None
) -> None:
    assert find_difference({"seed": 1, "model": {"preset": "r18"}}, current_fields) == difference


def test_the_error_for_a_difference_names_the_place_and_the_field() -> None:
    refuse_difference({"seed": 1}, {"seed": 1}, "members/a", "choose a new run_dir")
    with pytest.raises(RunStateError, match="members/a: was made with seed 1, now 2: choose a new run_dir"):
        refuse_difference({"seed": 1}, {"seed": 2}, "members/a", "choose a new run_dir")
    with pytest.raises(RunStateError, match=r"was made with model\.preset 'r18', now 'r50': undo it"):
        refuse_difference({"model": {"preset": "r18"}}, {"model": {"preset": "r50"}}, "members/a", "undo it")
