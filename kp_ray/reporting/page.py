"""The report: one self-contained HTML page about a run folder.

Each section has a module, which builds the section from files of the run folder, or returns None if these files are
missing. The page leaves such a section out, so that a run has a report after any stage. `report.html.jinja` lays the
sections out and escapes their texts.
"""

from datetime import UTC, datetime
from importlib import resources
from pathlib import PurePosixPath

from jinja2 import Environment, StrictUndefined, Template

from kp_ray import __version__
from kp_ray.config.schema import Config
from kp_ray.errors import RunStateError
from kp_ray.reporting.configuration import configuration_section
from kp_ray.reporting.crossval import crossval_section
from kp_ray.reporting.data import data_section
from kp_ray.reporting.error_plots import error_section
from kp_ray.reporting.formatting import MAX_ROWS, format_number, hide_credentials
from kp_ray.reporting.poses import pose_section
from kp_ray.reporting.predictions import prediction_section
from kp_ray.reporting.result import result_section
from kp_ray.reporting.run_files import read_run_files
from kp_ray.reporting.speed import speed_section
from kp_ray.reporting.store import store_section
from kp_ray.reporting.suspects import suspects_section
from kp_ray.reporting.training import training_section
from kp_ray.reporting.tuning import tuning_section
from kp_ray.storage import exists, write_bytes


def write_report(config: Config) -> str:
    """Write `<run_dir>/report.html` and return its path.

    Raises:
        RunStateError: the run folder does not exist.
        KpRayError: a file in the run folder is damaged.
    """
    if not exists(config.run_dir):
        raise RunStateError(f"{config.run_dir}: the run folder does not exist: set run_dir, or run a stage first")
    files = read_run_files(config)
    html = _template().render(
        title=PurePosixPath(config.run_dir).name,
        run_dir=hide_credentials(config.run_dir),
        version=__version__,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        result=result_section(files),
        crossval=crossval_section(files),
        predictions=prediction_section(config, files),
        errors=error_section(files),
        training=training_section(files),
        tuning=tuning_section(config, files),
        store=store_section(config, files),
        poses=pose_section(files),
        data=data_section(config, files),
        suspects=suspects_section(config, files),
        speed=speed_section(files),
        configuration=configuration_section(config),
        max_rows=MAX_ROWS,
    )
    path = config.path("report.html")
    write_bytes(path, html.encode())
    return path


def _template() -> Template:
    source = resources.files("kp_ray.reporting").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = format_number
    return environment.from_string(source)
