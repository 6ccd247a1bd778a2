"""The errors of kp_ray: one class a cause, each with a message of one line that tells the fix."""

LONGEST = 1000
"""Characters of a message to a user; what it quotes may be a file of one long line."""


class InputError(ValueError):
    """A mistake in what the user gave (config, file, option); its text is one line with the fix."""

    def __init__(self, told: str) -> None:
        line = one_line(told)
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - 300]} ... {line[-300:]}")


class StoppedError(InputError):
    """What was given is right, but the machines ended the work: the same command goes on."""


class DivergedError(InputError):
    """A training run's loss is no longer finite: the same settings would end so again."""


def one_line(told: object) -> str:
    """The text of an error, say, on one line."""
    return " ".join(str(told).split())
