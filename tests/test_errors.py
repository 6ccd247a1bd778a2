"""Messages of errors."""

from kp_ray.errors import MAX_MESSAGE_CHARS, ConfigError, shorten


def test_a_message_is_one_line_and_whole() -> None:
    assert str(ConfigError("a\n b")) == "a b"
    assert len(str(ConfigError("x" * 10**4))) == 10**4


def test_a_shortened_message_keeps_its_beginning_and_its_end() -> None:
    short = shorten(ConfigError("file.csv: " + "x" * 10**6 + " fix"))
    assert len(short) <= MAX_MESSAGE_CHARS + len(" ... ")
    assert short.startswith("file.csv: ")
    assert short.endswith(" fix")
    assert shorten("a\nb") == "a b"
