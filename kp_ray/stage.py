"""The contract of a stage: what a verb of the command line calls, and what `run` calls in order."""

from collections.abc import Sequence
from typing import Any, Protocol

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError
from kp_ray.storage import exists


class Progress(Protocol):
    """Receives the progress of a stage."""

    def __call__(self, name: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units are done of the row `name`: a member, a trial, or "" for the stage."""
        ...


class Summary(Protocol):
    """The result of a stage, as a frozen dataclass."""

    def lines(self) -> list[str]:
        """Lines of text for the terminal."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        ...


class Stage(Protocol):
    """One step of the pipeline.

    Attributes:
        name: the verb, e.g. "augment".
        needs_cluster: whether `run` needs a Ray session unless `is_done`.
        needs_dashboard: whether a local session needs Ray's dashboard; Ray Train queries it.
    """

    name: str
    needs_cluster: bool
    needs_dashboard: bool

    def applies(self, config: Config) -> bool:
        """Return whether `run` of the whole pipeline includes this stage."""
        ...

    def check(self, config: Config) -> None:
        """Refuse what would fail later, as far as it can be known from the config and the run folder as they are.

        What an earlier stage has yet to make is not required here. Starts no cluster and writes nothing.
        """
        ...

    def is_done(self, config: Config) -> bool:
        """Return whether `run` would need no cluster because the result is there.

        Raises:
            KpRayError: what an earlier stage makes is not there, or is of other settings.
        """
        ...

    def run(self, config: Config, progress: Progress) -> Summary:
        """Do the work, resuming what a stopped run left, and record the config in the run folder."""
        ...

    def forecast(self, config: Config) -> Summary:
        """Describe what `run` would do (`--dry-run`); start and write nothing."""
        ...


def no_progress(name: str, done: int, total: int, note: str = "") -> None:
    """Ignore progress."""


def check_inputs(config: Config, required: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
    """Refuse paths under `data` that are not there; every `Stage.check` names its own.

    Args:
        config: the run's configuration.
        required: keys of `data` that must be set.
        optional: keys of `data` that may be null.

    Raises:
        ConfigError: a required key is null, or a path does not exist.
    """
    for key in (*required, *optional):
        path = config.require_input(key) if key in required else getattr(config.data, key)
        if path is not None and not exists(path):
            raise ConfigError(f"data.{key}: {path}: there is no such file or folder")
