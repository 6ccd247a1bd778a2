"""A run folder as one self-contained HTML page, and pictures of a store's or the predictions' skeletons.

Each section is made from files the stages leave in the run folder and is None when its files are not there, so a run
that only augmented, or only trained, has a report too. `report.html.jinja` lays the sections out; names from data
reach it as plain text and are escaped there.
"""

import platform
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import PurePosixPath

from jinja2 import Environment, StrictUndefined

from kp_ray import __version__
from kp_ray.config.schema import Config
from kp_ray.errors import RunStateError
from kp_ray.reporting.formatting import NUM_ROWS, format_number, read_optional_json, without_secrets
from kp_ray.reporting.predictions import predictions_section, read_answers
from kp_ray.reporting.result import error_figures, result_section, success_curves
from kp_ray.reporting.store import data_section, poses_section, read_variants, store_section
from kp_ray.reporting.training import speeds_section, training_section, tuning_section
from kp_ray.storage import exists, read_text, write_bytes

_PACKAGES = (
    "kp_ray", "ray", "torch", "torchvision", "detectron2", "sal-detectron2", "albumentations", "opencv-python-headless",
    "simplejpeg", "numpy", "pandas", "pyarrow", "optuna", "pycocotools", "matplotlib",
)  # fmt: skip


def write_report(config: Config) -> str:
    """Write `<run_dir>/report.html` from what is in the run folder, and return its path.

    Raises:
        RunStateError: the run folder is not there, or one of its files cannot be read.
    """
    if not exists(config.run_dir):
        raise RunStateError(f"{config.run_dir}: there is no such run folder: set run_dir, or run a stage first")
    evaluation = read_optional_json(config.path("evaluation.json")) or {}
    manifest = read_optional_json(config.path("store", "manifest.json"))
    variants = read_variants(config, manifest)
    answers = read_answers(config)
    source = resources.files("kp_ray.reporting").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["number"] = format_number
    html = page.from_string(source).render(
        title=PurePosixPath(config.run_dir).name,
        run_dir=without_secrets(config.run_dir),
        version=__version__,
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        result=result_section(evaluation),
        errors=[*error_figures(evaluation), *success_curves(answers)],
        data=data_section(config, manifest, variants),
        store=store_section(config, manifest, variants),
        poses=poses_section(config, variants, answers),
        training=training_section(config),
        tune=tuning_section(config),
        predictions=predictions_section(config, evaluation, answers),
        speeds=speeds_section(config),
        config_yaml=without_secrets(read_text(config.path("config.yaml")) or config.to_yaml()),
        versions=_versions(),
        num_rows=NUM_ROWS,
    )
    write_bytes(config.path("report.html"), html.encode())
    return config.path("report.html")


def _versions() -> list[tuple[str, str]]:
    found = [("Python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return found
