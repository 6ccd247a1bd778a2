"""Errors for the user are one line, are shortened when printed, and survive pickling."""

import pickle

import pytest

from kp_ray import errors
from kp_ray.errors import MAX_MESSAGE_CHARS, KpRayError, describe_unknown_error, one_line, shorten

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, KpRayError)]


@pytest.mark.parametrize("error_class", CLASSES, ids=lambda error_class: error_class.__name__)
def test_an_error_is_one_line_and_keeps_its_class_when_pickled(error_class: type[KpRayError]) -> None:
    error = error_class("labels.csv: row 3:\n  not a number\t(got 'x')")
    assert str(error) == "labels.csv: row 3: not a number (got 'x')"
    loaded_error = pickle.loads(pickle.dumps(error))
    assert type(loaded_error) is error_class
    assert str(loaded_error) == str(error)


def test_runs_of_white_space_become_one_blank() -> None:
    assert one_line(" a\r\n\tb  c ") == "a b c"
    assert one_line(ValueError("a\nb")) == "a b"


def test_an_unknown_error_is_described_by_its_class_and_its_message_if_any() -> None:
    assert describe_unknown_error(ValueError("a\nb")) == "ValueError: a b"
    assert describe_unknown_error(AssertionError()) == "AssertionError"


def test_a_short_message_is_printed_unchanged() -> None:
    message = "x" * MAX_MESSAGE_CHARS
    assert shorten(KpRayError(message)) == message


def test_a_long_message_is_cut_in_the_middle_when_printed() -> None:
    error = KpRayError("file.csv: " + "x" * 10**6 + ": delete it")
    assert len(str(error)) > 10**6, "only the printed message is shortened"
    printed = shorten(error)
    assert len(printed) == MAX_MESSAGE_CHARS + len(" ... ")
    assert printed.startswith("file.csv: x")
    assert printed.endswith("x: delete it")
    assert len(shorten("a" * 50, max_chars=20)) == 20 + len(" ... ")
