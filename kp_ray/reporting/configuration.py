"""Section "Configuration": the config of the run and the installed versions."""

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
    """The resolved config, and name and version of each package where the report is written."""

    config_yaml: str
    versions: tuple[tuple[str, str], ...]


def configuration_section(config: Config) -> ConfigurationSection:
    """Build the section from config.yaml of the run folder; from `config` if there is none."""
    text = read_text(config.path("config.yaml")) or config.to_yaml()
    return ConfigurationSection(hide_credentials(text), (("Python", platform.python_version()), *_versions()))


def _versions() -> list[tuple[str, str]]:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return versions
