"""Make run folders that share the members and the store of another run folder."""

from pathlib import Path
from typing import Any

from kp_ray.config.schema import Config
from kp_ray.data.submission import read_sample_submission
from tests.helpers.data import tiny_config

MEMBERS = [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}]
NUM_LINKS = 2
"""Number of links to each test image in the folder that the fixture `linked_data` makes."""


def link_run(base: Config, run_dir: Path, data: dict[str, Any] | None = None, **section: Any) -> Config:
    """Make a run folder with links to the members and the store of another run folder; return its config.

    Args:
        base: config of the other run folder.
        run_dir: the run folder to make.
        data: values that replace those of the `data` section.
        section: fields of the `predict` section.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in ("members", "store"):
        (run_dir / name).symlink_to(base.path(name))
    return configure_run(base, run_dir, data, **section)


def configure_run(base: Config, run_dir: Path, data: dict[str, Any] | None = None, **section: Any) -> Config:
    """Build the config of a run folder with the members of `base`; the arguments are those of `link_run`."""
    data_section = {**base.data.model_dump(), **(data or {})}
    return tiny_config(data_section, run_dir, train={"members": MEMBERS}, split={"fraction": 0.6}, predict=section)


def first_image(config: Config) -> Path:
    """Return the path of the first image of the sample submission."""
    name = read_sample_submission(config.require_input("sample_submission")).images[0]
    return Path(config.require_input("test_images"), name)
