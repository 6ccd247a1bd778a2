"""Section "Configuration": the run's config and the installed versions."""

import platform
from dataclasses import dataclass
from importlib import metadata

from kp_ray.config.schema import Config
from kp_ray.reporting.formatting import hide_credentials
from kp_ray.storage import read_text

_PACKAGES = (
    "kp_ray", "ray", "torch", "torchvision", "detectron2", "sal-detectron2", "albumentations", "opencv-python-headless",
    "simplejpeg", "numpy", "pandas", "pyarrow", "optuna", "pycocotools", "matplotlib",
)  # fmt: skip


@dataclass(frozen=True)
class ConfigurationSection:
    """The run's config and the installed versions.

    Attributes:
        config_yaml: the resolved config as YAML, without credentials.
        versions: (name, version) of Python and of each installed package of _PACKAGES, on this machine.
    """

    config_yaml: str
    versions: tuple[tuple[str, str], ...]


def configuration_section(config: Config) -> ConfigurationSection:
    """Build the section from the run folder's config.yaml, or from `config` if that file is missing."""
    text = read_text(config.path("config.yaml")) or config.to_yaml()
    return ConfigurationSection(hide_credentials(text), (("Python", platform.python_version()), *_package_versions()))


def _package_versions() -> list[tuple[str, str]]:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return versions
