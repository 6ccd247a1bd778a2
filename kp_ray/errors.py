"""The errors that a user can cause or fix: one class per kind of cause, one line of text each.

A message reads `<file or key>: <what is wrong> (got ...): <what to do>`. The command line prints it and exits with code
2; every other exception is a bug of kp_ray and keeps its traceback. What led to an error is carried as `__cause__`.
"""

MAX_MESSAGE_CHARS = 1000
"""Maximum length of a printed message; longer ones are cut in the middle, where they quote a file."""


class KpRayError(Exception):
    """Base of all errors with a message for the user; the text is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ConfigError(KpRayError):
    """A setting, option or combination of settings is not allowed."""


class DataError(KpRayError):
    """Labels, corrections, images, a submission or a list of images cannot be used."""


class StorageError(KpRayError):
    """A path cannot be reached, read or written, or a file is damaged."""


class StoreError(KpRayError):
    """The store is not there, not finished, damaged, or does not hold what is asked for."""


class ModelError(KpRayError):
    """Weights or a trained member are not there or do not fit."""


class RunStateError(KpRayError):
    """The run folder holds results of other settings, or another process writes to it."""


class ClusterError(KpRayError):
    """Ray does not start or answer, or the cluster cannot hold what is asked of it."""


class DivergedError(KpRayError):
    """A training run's loss is no longer finite; the same settings would end the same way."""


class StoppedError(KpRayError):
    """Machines or the user ended the work; the same command resumes it."""


def one_line(text: object) -> str:
    """The text with every run of white space as one blank."""
    return " ".join(str(text).split())


def shorten(message: object, max_chars: int = MAX_MESSAGE_CHARS) -> str:
    """One line of at most `max_chars` characters; the middle of a longer one is left out."""
    line = one_line(message)
    tail = 3 * max_chars // 10
    return line if len(line) <= max_chars else f"{line[: max_chars - tail]} ... {line[-tail:]}"
