"""Errors that a user can cause or fix: one class per kind of cause, each with a message of one line.

A message reads `<file or key>: <what is wrong> (got ...): <what to do>`. The command line prints the message and exits
with code 2. Every other exception is a bug of kp_ray and keeps its traceback.
"""

MAX_MESSAGE_CHARS = 1000
"""Maximum length of a printed message. A longer message loses its middle, which usually is a quote from a file."""


class KpRayError(Exception):
    """Base of all errors with a message for the user; the message is joined to one line (`one_line`)."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ConfigError(KpRayError):
    """A setting, option or combination of settings is not allowed."""


class DataError(KpRayError):
    """Labels, corrections, images, a submission or a list of images cannot be used."""


class StorageError(KpRayError):
    """A path cannot be reached, read or written, or a file is damaged."""


class StoreError(KpRayError):
    """The store is missing, unfinished or damaged, or lacks the requested rows."""


class ModelError(KpRayError):
    """Weights or a trained member are missing, or do not fit the model."""


class RunStateError(KpRayError):
    """The run folder holds results that were made with other settings, or another process uses it."""


class ClusterError(KpRayError):
    """Ray does not start or answer, or the cluster is too small for the config."""


class DivergedError(KpRayError):
    """A model's loss, weights or heat maps are no longer finite; a retry with the same settings would fail too."""


class StoppedError(KpRayError):
    """The work was stopped before its end; the same command resumes it."""


def one_line(text: object) -> str:
    """Replace every run of white space, line breaks included, by one space."""
    return " ".join(str(text).split())


def describe_error(error: BaseException) -> str:
    """Return an error's message as one line; the name of its class if it has no message."""
    return one_line(error) or type(error).__name__


def describe_unknown_error(error: BaseException) -> str:
    """Return an error's class and message as one line, e.g. "ValueError: text"; without a message the class alone."""
    return one_line(f"{type(error).__name__}: {error}").removesuffix(":")


def shorten(message: object, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """Reduce a message to one line of about `max_chars` characters: " ... " replaces the middle of a longer line."""
    line = one_line(message)
    tail_chars = 3 * max_chars // 10
    return line if len(line) <= max_chars else f"{line[: max_chars - tail_chars]} ... {line[-tail_chars:]}"
