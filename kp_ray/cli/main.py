"""The command line: one subcommand per verb; the stages hold the logic."""

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from kp_ray import __version__
from kp_ray.cli.progress import console, say, show_progress
from kp_ray.cluster.session import session, set_ray_environment
from kp_ray.config.load import load_config, load_run_config
from kp_ray.errors import ConfigError, KpRayError, shorten
from kp_ray.stage import Summary

if TYPE_CHECKING:
    from kp_ray.doctor import Check


class _Verbs(TyperGroup):
    """The verbs; after Ctrl-C any of them prints one line and exits with code 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            resuming_verbs = ("augment", "train", "tune", "crossval", "predict", "suspects", "run")
            advice = "; run the same command to resume" if ctx.invoked_subcommand in resuming_verbs else ""
            say(f"stopped{advice}")
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Verbs,
    pretty_exceptions_enable=False,
    help="Human-keypoint training on a Ray cluster: from labelled frames to a submission.",
)

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="The configuration file.")]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="The run folder, or the configuration file that names it.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set e.g. train.max_iter=500; may be repeated.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object at the end of stdout.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan; start and write nothing.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error that the user can fix is one line on stderr and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(app(args=list(arguments) or ["--help"], standalone_mode=False) or 0)
    except typer.TyperException as error:  # a wrong verb, option or argument
        _exit_with(f"{error.format_message()} (see kp-ray --help or kp-ray VERB --help)")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "kp_ray":
            raise
        package = error.name.partition(".")[0]
        fix = "make setup installs it" if package == "detectron2" else "pip install 'kp_ray[train]'"
        _exit_with(f"{package} is not installed: {fix}, see docs/install.md")
    except KpRayError as error:
        _exit_with(error)
    except OSError as error:
        if error.filename is None:  # the error is not about a file, so it is a bug of kp_ray
            raise
        _exit_with(error)


def _exit_with(message: object) -> None:
    print("kp-ray:", shorten(message), file=sys.stderr)
    sys.exit(2)


def _print_summary(summary: Summary, as_json: bool, next_command: str | None = None) -> None:
    for line in summary.lines():
        say(line)
    if next_command:
        say(f"next: kp-ray {next_command}")
    if as_json:
        print(json.dumps(summary.to_json()))


def _run_stage(verb: str, path: str, overrides: list[str] | None, as_json: bool, *, dry_run: bool = False) -> Summary:
    """Run a stage, or forecast it if `dry_run`, and print its summary and the next command."""
    from kp_ray.pipeline import find_next_verb, forecast_stage, run_stage

    config = load_config(path, overrides or ())
    if dry_run:
        _print_summary(forecast := forecast_stage(verb, config), as_json)
        return forecast
    summary = run_stage(verb, config, show_progress, say)
    # Only the summary of `check` has `ok`; the errors that `check` found would also stop the next stage.
    next_verb = find_next_verb(verb, config) if getattr(summary, "ok", True) else None
    _print_summary(summary, as_json, _command(next_verb, path, overrides))
    return summary


def _command(verb: str | None, path: str, overrides: list[str] | None) -> str | None:
    """Return a verb with the arguments of the finished one, without credentials; None without a verb."""
    from kp_ray.reporting.formatting import hide_credentials

    options = [argument for override in overrides or () for argument in ("--set", override)]
    return hide_credentials(shlex.join([verb, path, *options])) if verb else None


@app.callback(invoke_without_command=True)
def _set_global_options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show Ray's own log too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no summary.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    console.quiet = quiet
    logging.getLogger().setLevel(logging.INFO if verbose else logging.WARNING)
    set_ray_environment()


@app.command()
def sample(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder for the data set.")],
    images: Annotated[int, typer.Option(help="Number of labelled images.", min=1)] = 200,
    test_images: Annotated[
        int | None, typer.Option(help="Number of images to predict; default: a fifth of --images, at least 10.", min=1)
    ] = None,
    width: Annotated[int, typer.Option(help="Width of an image in pixels.", min=64)] = 1920,
    height: Annotated[int, typer.Option(help="Height of an image in pixels.", min=64)] = 1080,
    seed: Annotated[int, typer.Option(help="Another seed gives another data set.")] = 0,
    run_dir: Annotated[str | None, typer.Option(help="Run folder in the written config; default: DIR/run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Generate a data set of people with exact labels."""
    from kp_ray.synthetic.dataset import make_sample

    with show_progress("sample") as progress:
        summary = make_sample(
            folder,
            num_images=images,
            num_test=test_images,
            width=width,
            height=height,
            seed=seed,
            run_dir=run_dir,
            progress=lambda done, total: progress("", done, total),
        )
    _print_summary(summary, as_json, _command("run", summary.config, None))


@app.command()
def check(config: ConfigArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Look for mistakes in the labels and images; exit code 1 if there are errors."""
    from kp_ray.checks.stage import CheckSummary

    summary = _run_stage("check", config, overrides, as_json)
    if isinstance(summary, CheckSummary) and not summary.ok:
        raise typer.Exit(1)


@app.command()
def augment(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the store: every recipe applied to every image, as Parquet."""
    _run_stage("augment", config, overrides, as_json, dry_run=dry_run)


@app.command()
def verify(config: ConfigArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Check the store's parts by hash and a sample of rows by making them again; delete damaged parts.

    The exit code is 1 if something is wrong.
    """
    from kp_ray.store.stage import verify as verify_run

    summary = verify_run(load_config(config, overrides or ()))
    _print_summary(summary, as_json)
    if not summary.ok:
        raise typer.Exit(1)


@app.command()
def train(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train every member with the settings that a search found, or the config's own; a stopped run is resumed."""
    _run_stage("train", config, overrides, as_json, dry_run=dry_run)


@app.command()
def tune(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search learning rate, schedule and recipes for `train` to use; a stopped search is resumed."""
    _run_stage("tune", config, overrides, as_json, dry_run=dry_run)


@app.command()
def crossval(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict and score every labelled image by the members that never saw its scene; needs split.folds."""
    _run_stage("crossval", config, overrides, as_json, dry_run=dry_run)


@app.command()
def predict(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict images with every member and write the fused submission; a stopped run is resumed."""
    _run_stage("predict", config, overrides, as_json, dry_run=dry_run)


@app.command()
def suspects(
    config: ConfigArgument,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Rank the labels that are probably wrong, and write proposed corrections, commented out, to corrections.csv."""
    _run_stage("suspects", config, overrides, as_json, dry_run=dry_run)


@app.command()
def evaluate(
    config: ConfigArgument,
    overrides: SetOption = None,
    submission: Annotated[str | None, typer.Option(help="Score this CSV instead of the run's predictions.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score the predictions, or any submission, against data.truth or the labels of the predicted split."""
    from kp_ray.cli.tables import print_evaluation
    from kp_ray.prediction.stage import EvaluateStage

    run_config = load_config(config, overrides or ())
    stage = EvaluateStage(submission)
    stage.check(run_config)
    with show_progress("evaluate") as progress:
        summary = stage.run(run_config, progress)
    print_evaluation(summary.rows())
    _print_summary(summary, as_json, None if submission else _command("report", config, overrides))


@app.command()
def fuse(
    submissions: Annotated[list[str], typer.Argument(metavar="A.csv B.csv", help="The submissions, two or more.")],
    out: Annotated[str, typer.Option(metavar="C.csv", help="File for the fused submission.")],
    weights: Annotated[str | None, typer.Option(metavar="2,1,...", help="A weight per file; default: equal.")] = None,
    fusion: Annotated[Literal["mean", "median"], typer.Option(help="Same as predict.fusion.")] = "mean",
    reject_sigmas: Annotated[float | None, typer.Option(help="Same as predict.reject_sigmas.")] = None,
    missing: Annotated[Literal["fill", "zeros"], typer.Option(help="Same as predict.missing.")] = "fill",
    as_json: JsonOption = False,
) -> None:
    """Fuse submissions of any origin; a row of zeros means that nobody was found, and other submissions fill it."""
    from kp_ray.prediction.submissions import fuse_submissions

    summary = fuse_submissions(
        submissions,
        out,
        weights=_parse_weights(weights) if weights is not None else None,
        method=fusion,
        reject_sigmas=reject_sigmas,
        missing=missing,
    )
    _print_summary(summary, as_json)


def _parse_weights(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--weights: numbers with commas are expected, e.g. 2,1 (got {text!r:.80})") from error


@app.command()
def report(run: RunArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Write the run's report as one HTML file."""
    from kp_ray.reporting.stage import ReportStage

    run_config = load_run_config(run, overrides or ())
    with show_progress("report") as progress:
        _print_summary(ReportStage().run(run_config, progress), as_json)


@app.command()
def show(
    path: Annotated[str, typer.Argument(metavar="STORE|PREDICTIONS", help="RUN/store or RUN/predictions.parquet.")],
    recipe: Annotated[str | None, typer.Option(help="Only variants of this recipe.")] = None,
    image: Annotated[str | None, typer.Option(help="Only this image.")] = None,
    num: Annotated[int, typer.Option(help="Maximum number of images, chosen at random.", min=1)] = 12,
    seed: Annotated[int, typer.Option(help="Another seed chooses other images.", min=0)] = 0,
    out: Annotated[str | None, typer.Option(help="Folder for the images; default: RUN/show.")] = None,
    submission: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Draw this submission too; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the skeletons of variants or predictions over their images; write each image, and one sheet of them all."""
    from kp_ray.reporting.show import show as write_images

    summary = write_images(path, out, recipe=recipe, image=image, num=num, seed=seed, submissions=submission or ())
    _print_summary(summary, as_json)


@app.command()
def export(
    run: RunArgument,
    folder: Annotated[str | None, typer.Option(help="Folder for the export; default: <run_dir>/export.")] = None,
    split: Annotated[Literal["train", "val"] | None, typer.Option(help="Export only this split.")] = None,
    fold: Annotated[int | None, typer.Option(help="Fold to export as val; the others become train.", min=0)] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Only this recipe; may be repeated.")] = None,
    yolo: Annotated[
        bool, typer.Option("--yolo", help="Also write labels/, one text file per image, for YOLO-pose.")
    ] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the store as COCO keypoints JSON, wide CSV and images."""
    from kp_ray.store.export import export_store

    run_config = load_run_config(run, overrides or ())
    out_folder = folder or run_config.path("export")
    summary = export_store(run_config, out_folder, split=split, recipes=recipe or None, fold=fold, yolo=yolo)
    _print_summary(summary, as_json)


@app.command()
def doctor(
    config: Annotated[str | None, typer.Argument(metavar="CONFIG.yaml", help="The configuration file.")] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, the cluster and the inputs; exit code 1 if something is wrong."""
    from kp_ray.doctor import check_cluster, check_machine

    run_config = load_config(config, overrides or ())
    failures = _print_checks(check_machine(run_config))
    with session(run_config, say=say):
        failures += _print_checks(check_cluster(run_config))
    if as_json:
        print(json.dumps({"ok": not failures, "failed": failures}))
    if failures:
        raise typer.Exit(1)


def _print_checks(checks: "Sequence[Check]") -> list[str]:
    """Print the checks; return the names of the checks that failed."""
    for item in checks:
        console.print("ok" if item.ok else "no", style="green" if item.ok else "red", end=" ")
        say(f"{item.name}: {item.value}" + ("" if item.ok else f" -> {item.fix}"))
    return [item.name for item in checks if not item.ok]


@app.command()
def run(config: ConfigArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Run the whole pipeline; finished stages are skipped.

    The stages are check, augment, tune, train, crossval (with folds), predict, evaluate and report.
    """
    from kp_ray.cli.tables import print_run
    from kp_ray.pipeline import run_pipeline

    run_config = load_config(config, overrides or ())
    summary = run_pipeline(run_config, show_progress, say, _print_stage)
    print_run(summary)
    if as_json:
        print(json.dumps(summary.to_json()))


def _print_stage(verb: str, summary: Summary) -> None:
    if verb not in ("evaluate", "report"):  # `print_run` prints these two at the end
        _print_summary(summary, as_json=False)


if __name__ == "__main__":
    main()
