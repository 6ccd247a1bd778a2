"""The interface of a stage. Its verb runs it alone; `kp-ray run` runs every stage that applies, in order."""

from collections.abc import Sequence
from typing import Any, Protocol

from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError
from kp_ray.storage import exists


class Progress(Protocol):
    """Receives the progress of a stage and shows one line or bar per name."""

    def __call__(self, name: str, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` iterations or images are done.

        Args:
            name: the member, trial or fold that makes progress; "" for the whole stage.
            done, total: numbers of iterations or images.
            note: text that is shown after the numbers.
        """
        ...


class Summary(Protocol):
    """The result of a stage, as a frozen dataclass."""

    def lines(self) -> list[str]:
        """Return the lines of text for the terminal."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the plain values for `--json`."""
        ...


class Stage(Protocol):
    """One step of the pipeline.

    Attributes:
        name: the verb, e.g. "augment".
        needs_cluster: whether `run` needs a Ray session, unless `is_done` returns True.
        needs_dashboard: whether a local session needs Ray's dashboard, which Ray Train queries.
    """

    name: str
    needs_cluster: bool
    needs_dashboard: bool

    def applies(self, config: Config) -> bool:
        """Return whether `kp-ray run` includes this stage."""
        ...

    def check(self, config: Config) -> None:
        """Refuse a config or run folder with which `run` would fail; start no cluster and write nothing.

        The results of earlier stages may still be missing.

        Raises:
            KpRayError: `run` would fail.
        """
        ...

    def is_done(self, config: Config) -> bool:
        """Return whether the stage's result is complete, so that `run` needs no cluster.

        Raises:
            KpRayError: the result of an earlier stage is missing, or was made with other settings.
        """
        ...

    def run(self, config: Config, progress: Progress) -> Summary:
        """Do the work that earlier runs did not finish; stages that others build on record the config.

        Raises:
            KpRayError: the work failed or was stopped.
        """
        ...


class ForecastStage(Stage, Protocol):
    """A stage whose verb has `--dry-run`."""

    def forecast(self, config: Config) -> Summary:
        """Estimate the work of `run`; start no cluster and write nothing."""
        ...


def no_progress(name: str, done: int, total: int, note: str = "") -> None:
    """Ignore progress; a `Progress` for callers that show none."""


def check_inputs(config: Config, required: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
    """Refuse paths in the config section `data` that do not exist; `Stage.check` passes the keys that it needs.

    Args:
        config: the run's configuration.
        required: keys of `data` that must be set.
        optional: keys of `data` that may be null.

    Raises:
        ConfigError: a required key is null, or a path does not exist.
    """
    for key in (*required, *optional):
        path = config.require_input(key) if key in required else getattr(config.data, key)
        if path is not None:
            require_path(f"data.{key}", path)


def require_path(key: str, path: str) -> None:
    """Refuse a path that does not exist; `key` is the setting that holds it, e.g. "data.images".

    Raises:
        ConfigError: the path does not exist.
    """
    if not exists(path):
        raise ConfigError(f"{key}: there is no such file or folder (got {path}): correct the path")
