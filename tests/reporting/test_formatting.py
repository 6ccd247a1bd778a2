"""Numbers and texts of the page."""

import math

import pytest

from kp_ray.reporting.formatting import format_number, hide_credentials


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0, "0"), (1234, "1,234"), (0.123456, "0.1235"), (1234.5678, "1,235"), (-20000.0, "-20,000"),
        (12.0, "12"), (1e-5, "1e-05"), (math.nan, "nan"), (True, "True"), ("0.10", "0.10"), ("", ""),
    ],
)  # fmt: skip
def test_numbers_have_four_digits_and_commas(value: float | int | str | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: s3://KEY:SECRET@bucket/x, b: s3://bucket/y@z", "a: s3://***@bucket/x, b: s3://bucket/y@z"),
        ("http://me:p@ss@host:5000/x", "http://***@host:5000/x"),
        ("https://TOKEN@host", "https://***@host"),
        ("abfs://container@account.example/x:y@z", "abfs://container@account.example/x:y@z"),
    ],
)
def test_credentials_of_urls_are_hidden(text: str, expected: str) -> None:
    assert hide_credentials(text) == expected
