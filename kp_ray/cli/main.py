"""The command line: one subcommand a verb, no logic; the only `ray.init`."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kp_ray import __version__
from kp_ray.config.load import load_config
from kp_ray.config.schema import Config
from kp_ray.doctor import Check
from kp_ray.errors import ConfigError, KpRayError, one_line
from kp_ray.storage import exists, join, read_json, write_bytes
from kp_ray.store.plan import Plan

RAY_SETTINGS = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # its bars come from actors, thousands of lines
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # prints every line twice
    "RAY_AIR_NEW_OUTPUT": "0",  # Ray Tune's own table; our progress says the same
    "RAY_SCHEDULER_EVENTS": "0",  # advice about worker processes, to every driver
    "RAY_DEDUP_LOGS_SKIP_REGEX": "PYTHON worker processes have been started",  # more than a laptop's CPUs: always so
    "RAY_task_oom_retries": "3",  # Ray repeats a task that lacks memory without end
}
"""What Ray reads from the environment, some of it when it is imported; the user's own settings stay."""
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Human-keypoint training on a Ray cluster: from labelled frames to a submission.",
)
ConfigArgument = Annotated[str | None, typer.Argument(metavar="CONFIG.yaml", help="The configuration file.")]
RunArgument = Annotated[
    str | None, typer.Argument(metavar="RUN", help="The run folder, or the configuration file that names it.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.max_iter=500.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="End stdout with the figures as one JSON object.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan; start and write nothing.")]
LOG_EVERY_S = 10.0
"""Seconds between progress lines where there is no terminal."""
STARTS = 3
"""How often a local cluster is started that a busy machine does not let come up: Ray waits half a minute, no longer."""
WATCH_S = 5.0
"""How often it is asked whether this node still belongs to the cluster."""
console = Console(stderr=True, highlight=False)
_interrupted = threading.Event()
"""Ctrl-C was pressed. What it raises is lost when it meets one of Ray's callbacks, so progress raises it again."""


def _interrupt(*_: object) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake, or a disk's, is one line on stderr and exit code 2."""
    try:
        app(args=list(arguments) if arguments is not None else None)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "kp_ray":
            raise
        print(
            f"kp-ray: {error.name} is not installed: pip install 'kp_ray[train]', see docs/install.md", file=sys.stderr
        )
        sys.exit(2)
    except (KpRayError, OSError) as error:
        print("kp-ray:", one_line(error), file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def _cluster(config: Config, *, dashboard: bool = True) -> Iterator[float]:
    """Join the config's cluster or start a local one; gives the seconds it took.

    Args:
        dashboard: Ray Train asks a local cluster's for the state of its actors; other stages start faster without.
    """
    import ray  # here, so that help and shell completion need not wait for it

    began = time.monotonic()
    with _last_words():
        _join_ray(config, dashboard)
        handler = signal.signal(signal.SIGINT, _interrupt)
        try:
            with _watch():
                yield time.monotonic() - began
        except KeyboardInterrupt:
            _tell("stopped; the same command goes on from here")
            raise typer.Exit(130) from None
        finally:
            signal.signal(signal.SIGINT, handler)
            _interrupted.clear()
            ray.shutdown()


def _join_ray(config: Config, dashboard: bool) -> None:
    import ray
    import ray.data  # sets its log's level, so before we do

    section = config.cluster
    address = section.address or os.environ.get("RAY_ADDRESS") or "local"
    verbose = logging.getLogger().isEnabledFor(logging.INFO)
    if not verbose:
        for part in ("ray.data", "ray.tune"):  # what ends a run or a trial is told in our own words
            logging.getLogger(part).setLevel(logging.CRITICAL)
    told: dict[str, Any] = {"logging_level": "INFO" if verbose else "ERROR", "log_to_driver": verbose}
    if address == "local":
        told |= {"num_cpus": section.num_cpus, "num_gpus": section.num_gpus, "include_dashboard": dashboard}
    for left in reversed(range(STARTS)):
        try:
            ray.init(address=address, **told)
            return
        except Exception as error:  # Ray has a type of its own for each thing that may go wrong
            reason = one_line(error)[-300:]
            if address != "local":
                named = "cluster.address" if section.address else "RAY_ADDRESS"
                raise ConfigError(
                    f"{named} {address}: no Ray cluster of this version answers there: {reason}"
                ) from error
            if isinstance(error, ValueError) or not left:
                raise ConfigError(f"Ray does not start here, tried {STARTS - left} times: {reason}") from error
            ray.shutdown()
            _tell(f"Ray did not start, once more: {reason}")


@contextlib.contextmanager
def _watch() -> Iterator[None]:
    """End this process when Ray has given up its node: Ray Tune would wait for resources for ever."""
    import ray

    own, done = ray.get_runtime_context().get_node_id(), threading.Event()

    def look() -> None:
        while not done.wait(WATCH_S):
            with contextlib.suppress(Exception):  # the head is gone: Ray then ends this process itself
                if not any(node["Alive"] for node in ray.nodes() if node["NodeID"] == own):
                    console.show_cursor()
                    os._exit(2)  # with the last words below

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@contextlib.contextmanager
def _last_words() -> Iterator[None]:
    """Ray ends this process when its raylet dies, so nothing in it can say so: a shell that waits for it does."""
    told = (
        "kp-ray: Ray (its raylet or head is gone) or somebody else ended this run; the same command goes on from here"
    )
    wait = ["sh", "-c", f"trap '' INT; read -r _ || echo '{told}' >&2"]
    with subprocess.Popen(wait, stdin=subprocess.PIPE, start_new_session=True) as shell:  # noqa: S603  (a fixed text)
        try:
            yield
        finally:
            shell.communicate(b"\n")


def _heed_interrupt() -> None:
    if _interrupted.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _progress(verb: str) -> Iterator[Any]:
    """Rows of progress: bars in a terminal, a line every ten seconds elsewhere. Call with (row, done, total, note)."""
    if console.is_terminal:
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, TextColumn("{task.fields[note]}", markup=False), console=console) as bars:
            tasks: dict[str, Any] = {}

            def show(row: str, done: int, total: int, note: str = "") -> None:
                _heed_interrupt()
                if row not in tasks:
                    tasks[row] = bars.add_task(f"{verb} {row}".strip(), total=total, note=note)
                bars.update(tasks[row], completed=done, total=total, note=note)

            yield show
        return
    began: dict[str, tuple[float, int]] = {}
    told: dict[str, tuple[float, int]] = {}

    def tell(row: str, done: int, total: int, note: str = "") -> None:
        _heed_interrupt()
        now = time.monotonic()
        start, first = began.setdefault(row, (now, done))
        last, at = told.get(row, (start - LOG_EVERY_S, -1))
        if done == at or (now - last < LOG_EVERY_S and done < total):
            return
        told[row] = now, done
        rate = (done - first) / (now - start) if now > start else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        _tell(one_line(f"{verb} {row} {done}/{total}, {rate:.1f}/s{left} {note}"))

    yield tell


def _tell(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)  # a name may hold brackets, a path is longer than a line


def _finish(result: dict[str, Any], lines: Sequence[str], next_step: str | None, as_json: bool) -> None:
    for line in lines:
        _tell(line)
    if next_step:
        _tell(f"next: {next_step}")
    if as_json:
        print(json.dumps(result))


def _load(path: str | None, overrides: list[str] | None, needs: Sequence[str] = (), uses: Sequence[str] = ()) -> Config:
    """The configuration; the inputs under `data` that a verb needs, or uses if they are set, must be there."""
    if path is None:
        raise ConfigError("name the configuration file, e.g. kp-ray VERB config.yaml")
    config = load_config(path, overrides or ())
    for key in (*needs, *uses):
        given = config.require_input(key) if key in needs else getattr(config.data, key)
        if given is not None and not exists(given):
            raise ConfigError(f"data.{key}: {given}: there is no such file or folder")
    return config


def _load_run(path: str | None, overrides: list[str] | None) -> Config:
    """The configuration of a finished run: of its folder, wherever that lies now, or of a file."""
    if path is not None and exists(join(path, "config.yaml")):
        return load_config(join(path, "config.yaml"), [f"run_dir={json.dumps(path)}", *(overrides or ())])
    return _load(path, overrides)


@app.callback(invoke_without_command=True)
def _common(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show Ray's own log too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no summary.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    console.quiet = quiet
    logging.getLogger().setLevel(logging.INFO if verbose else logging.WARNING)


@app.command()
def sample(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Where to write the data set.")],
    images: Annotated[int, typer.Option(help="Labelled images.", min=1)] = 200,
    test_images: Annotated[int | None, typer.Option(help="Images to predict; default: a fifth.", min=1)] = None,
    width: Annotated[int, typer.Option(help="Of an image, in pixels.", min=64)] = 1920,
    height: Annotated[int, typer.Option(help="Of an image, in pixels.", min=64)] = 1080,
    seed: Annotated[int, typer.Option(help="Another seed, another data set.")] = 0,
    run_dir: Annotated[str | None, typer.Option(help="Run folder that its config names; default: DIR/run.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Generate a data set of people with exact labels."""
    from kp_ray.synthetic.dataset import make_sample

    total = images + (test_images if test_images is not None else max(10, images // 5))
    with _progress("sample") as show:
        result = make_sample(
            folder,
            num_images=images,
            num_test=test_images,
            width=width,
            height=height,
            seed=seed,
            run_dir=run_dir,
            progress=lambda done: show("", done, total, ""),
        )
    lines = [f"{result['num_train']} labelled and {result['num_test']} test images in {folder}"]
    _finish(result, lines, f"kp-ray run {result['config']}", as_json)


@app.command()
def check(config: ConfigArgument = None, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """Look for mistakes in the labels and images; exit code 1 if there are errors."""
    result = _check(_load(config, sets, needs=["annotations"], uses=["images", "corrections"]))
    _finish(result, result.pop("lines"), f"kp-ray augment {config}", as_json)
    if result["errors"]:
        raise typer.Exit(1)


def _check(config: Config) -> dict[str, Any]:
    from kp_ray.checks.stage import CheckStage

    with _progress("check") as show:
        summary = CheckStage().run(config, lambda name, done, total, note="": show(name, done, total, note))
    return {**summary.to_json(), "lines": summary.lines()}


@app.command()
def augment(
    config: ConfigArgument = None, sets: SetOption = None, dry_run: DryRunOption = False, as_json: JsonOption = False
) -> None:
    """Write the store: every recipe of every image, as Parquet."""
    from kp_ray.store.plan import plan
    from kp_ray.store.write import is_finished

    loaded = _load(config, sets, needs=["annotations", "images"], uses=["corrections"])
    if dry_run:
        _foresee("augment", loaded, as_json)
        return
    planned = plan(loaded)
    with contextlib.nullcontext(0.0) if is_finished(planned) else _cluster(loaded, dashboard=False) as start_up_s:
        result = _augment(loaded, planned, start_up_s)
    _finish(result, result.pop("lines"), f"kp-ray train {config}", as_json)


def _foresee(verb: str, config: Config, as_json: bool) -> None:
    from kp_ray.doctor import forecast

    result = forecast(verb, config)
    _finish(result, result.pop("lines"), None, as_json)


def _augment(config: Config, planned: "Plan", start_up_s: float) -> dict[str, Any]:
    from kp_ray.store.manifest import read_manifest
    from kp_ray.store.write import write_store

    kept = False
    with _progress("augment") as show:

        def tell(done: int, total: int) -> None:
            nonlocal kept
            if not kept:  # nobody else writes this store
                config.save()
            kept = True
            show("", done, total, "")

        result = write_store(planned, tell)
    if not kept:
        config.save()
    result["seconds"] = round(result["seconds"] + start_up_s, 3)
    result["start_up_s"] = round(result["start_up_s"] + start_up_s, 3)
    if result["parts_written"] or not exists(config.path("augment.json")):
        write_bytes(config.path("augment.json"), (json.dumps(result) + "\n").encode())
    lines = [
        f"{result['variants']} variants of {result['sources']} sources in {config.path('store')}: "
        f"{result['parts_written']} parts written, {result['parts_kept']} kept, {result['sources_per_s']:.1f} sources/s"
    ]
    if result["quarantined"]:
        first = read_manifest(config.path("store")).quarantined[0]
        lines.append(
            f"{result['quarantined']} sources could not be used by some or all recipes, e.g. {first.source}: "
            f"{first.reason}; all of them in "
            f"{config.path('store', 'quarantine.parquet')}"
        )
    return {**result, "lines": lines}


@app.command()
def verify(config: ConfigArgument = None, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """Re-hash the store's parts and re-make a sample of its rows; exit code 1 if something is wrong."""
    from kp_ray.store.plan import plan
    from kp_ray.store.verify import verify_store

    loaded = _load(config, sets, needs=["annotations", "images"], uses=["corrections"])
    problems = verify_store(plan(loaded))
    lines = problems or [f"{loaded.path('store')} is sound"]
    _finish({"problems": problems}, lines, f"kp-ray augment {config}" if problems else None, as_json)
    if problems:
        raise typer.Exit(1)


@app.command()
def train(
    config: ConfigArgument = None, sets: SetOption = None, dry_run: DryRunOption = False, as_json: JsonOption = False
) -> None:
    """Train every member of the ensemble; goes on where a stopped run ended."""
    from kp_ray.store.manifest import read_manifest

    loaded = _load(config, sets)
    read_manifest(loaded.path("store"))  # before a cluster starts
    if dry_run:
        _foresee("train", loaded, as_json)
        return
    with _cluster(loaded):
        result = _train(loaded)
    _finish(result, _train_lines(loaded, result), f"kp-ray predict {config}", as_json)


def _train(config: Config) -> dict[str, Any]:
    from kp_ray.training.run import train as run

    with _progress("train") as show:
        return run(config, lambda member, done, total, loss: show(member, done, total, f"loss {loss:.2f}"))


def _train_lines(config: Config, result: dict[str, Any]) -> list[str]:
    lines = []
    for name, figures in result.items():
        told = "finished before" if figures.get("skipped") else f"{figures['iterations']} iterations"
        told += f" (from the checkpoint at {figures['resumed_from']})" if figures.get("resumed_from") else ""
        told += f", {len(figures['not_in_weights'])} tensors from scratch" if figures.get("not_in_weights") else ""
        rmse = figures.get("rmse")
        told += f", validation RMSE {rmse:.2f} px, PCK@0.05 {figures['pck_0.05']:.3f}" if rmse is not None else ""
        lines.append(f"member {name}: {told}, in {config.member_dir(name)}")
    return lines


@app.command()
def tune(
    config: ConfigArgument = None, sets: SetOption = None, dry_run: DryRunOption = False, as_json: JsonOption = False
) -> None:
    """Search learning rate, schedule and recipes; goes on where a stopped search ended."""
    from kp_ray.store.manifest import read_manifest

    loaded = _load(config, sets)
    read_manifest(loaded.path("store"))  # before a cluster starts
    if dry_run:
        _foresee("tune", loaded, as_json)
        return
    from kp_ray.tuning.search import check_search, is_finished

    finished = is_finished(loaded)
    if not finished:
        check_search(loaded)
    with contextlib.nullcontext() if finished else _cluster(loaded):
        result = _tune(loaded)
    _finish(result, _tune_lines(result), f"kp-ray train {result['config']}", as_json)


def _tune(config: Config) -> dict[str, Any]:
    from kp_ray.tuning.search import tune as run

    with _progress("tune") as show:
        return run(config, lambda name, done, total, note="": show(name, done, total, note)).to_json()


def _tune_lines(result: dict[str, Any]) -> list[str]:
    spent, whole = result["iterations"], result["iterations_without_stops"]
    told = ", ".join(f"{name} {value}" for name, value in result["params"].items() if value is not None)
    failed = f", {result['failed']} failed" if result["failed"] else ""
    return [
        f"{result['trials']} trials{failed}, {spent} iterations of {whole} without stops",
        f"best {result['metric']} {result['best']:.4g} by trial {result['trial']}: {told}",
    ]


@app.command()
def predict(
    config: ConfigArgument = None, sets: SetOption = None, dry_run: DryRunOption = False, as_json: JsonOption = False
) -> None:
    """Predict images with every member, fuse, and write the submission; goes on where a stopped run ended."""
    loaded = _load(config, sets, uses=["test_images", "sample_submission"])
    if dry_run:
        _foresee("predict", loaded, as_json)
        return
    from kp_ray.prediction.stage import PredictStage

    with contextlib.nullcontext() if PredictStage().is_done(loaded) else _cluster(loaded):
        result = _predict(loaded)
    next_step = "evaluate" if loaded.data.truth else "report"
    _finish(result, result.pop("lines"), f"kp-ray {next_step} {config}", as_json)


def _predict(config: Config) -> dict[str, Any]:
    from kp_ray.prediction.stage import PredictStage

    with _progress("predict") as show:
        summary = PredictStage().run(config, show)
    return {**summary.to_json(), "lines": summary.lines()}


@app.command()
def evaluate(
    config: ConfigArgument = None,
    sets: SetOption = None,
    submission: Annotated[str | None, typer.Option(help="Score this CSV instead of the run's predictions.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Score the predictions, or any submission, against data.truth."""
    loaded = _load(config, sets)
    from kp_ray.prediction.stage import EvaluateStage
    from kp_ray.stage import no_progress

    result = EvaluateStage(submission).run(loaded, no_progress).to_json()
    Console(highlight=False).print(_metrics_table({"submission": result} if submission else _rows_of(result)))
    lines = []
    if interval := result["rmse_interval"]:
        lines.append(f"RMSE in 95 % of bootstrap samples of the scenes: {interval[0]:.2f} to {interval[1]:.2f} px")
    _finish(result, lines, f"kp-ray report {config}", as_json)


def _rows_of(evaluation: dict[str, Any]) -> dict[str, Any]:
    members = {f"member {name}": figures for name, figures in evaluation.get("members", {}).items()}
    return {**members, "ensemble": evaluation}


def _metrics_table(rows: dict[str, Any]) -> Table:
    table = Table("", "RMSE px", "median px", "PCK@0.05", "PCK@0.1", "OKS-AP", "missing")
    for name, figures in rows.items():
        values = [figures["rmse"], figures["median_px"], *figures["pck"].values(), figures["ap"]]
        told = ["-" if value is None else f"{value:.2f}" if i < 2 else f"{value:.3f}" for i, value in enumerate(values)]
        table.add_row(escape(name), *told, f"{figures['num_missing']} of {figures['num_images']}")
    return table


@app.command()
def report(run: RunArgument = None, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """Write the run's report, one HTML file."""
    loaded = _load_run(run, sets)
    from kp_ray.reporting.page import write_report

    target = write_report(loaded)
    _finish({"report": target}, [f"report: {target}"], None, as_json)


@app.command()
def show(
    path: Annotated[str, typer.Argument(metavar="STORE|PREDICTIONS", help="RUN/store or RUN/predictions.parquet.")],
    recipe: Annotated[str | None, typer.Option(help="Only variants of this recipe.")] = None,
    image: Annotated[str | None, typer.Option(help="Only this image.")] = None,
    num: Annotated[int, typer.Option(help="At most so many pictures, drawn at random.", min=1)] = 12,
    seed: Annotated[int, typer.Option(help="Another seed, other pictures.", min=0)] = 0,
    out: Annotated[str | None, typer.Option(help="Where to; default: RUN/show.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write pictures with skeletons over them, to look at, and a sheet of all of them."""
    from kp_ray.reporting.show import show as run

    result = run(path, out, recipe=recipe, image=image, num=num, seed=seed)
    _finish(result.to_json(), result.lines(), None, as_json)


@app.command()
def export(
    run: RunArgument = None,
    folder: Annotated[str | None, typer.Option(help="Where to; default: <run_dir>/export.")] = None,
    split: Annotated[str | None, typer.Option(help="Only train or val.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Only this recipe; may be repeated.")] = None,
    yolo: Annotated[bool, typer.Option("--yolo", help="Also labels/, a text an image, for YOLO-pose.")] = False,
    sets: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the store as COCO keypoints JSON, wide CSV and images."""
    from kp_ray.data.yolo_format import write_yolo
    from kp_ray.store.export import export_store

    loaded = _load_run(run, sets)
    result = export_store(loaded, folder or loaded.path("export"), split=split, recipes=recipe or None)
    if yolo:
        write_yolo(result["folder"])
    lines = [f"{result['images']} images and annotations.json, annotations.csv in {result['folder']}"]
    _finish(result, lines, None, as_json)


@app.command()
def doctor(config: ConfigArgument = None, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """Check this machine, the cluster and the inputs; exit code 1 if something is wrong."""
    from kp_ray.doctor import check_cluster, check_machine

    loaded = load_config(config, sets or ())
    bad = []

    def tell(checks: Sequence["Check"]) -> None:
        for one in checks:
            console.print("ok" if one.ok else "no", style="green" if one.ok else "red", end=" ")
            _tell(f"{one.name}: {one.found}" + ("" if one.ok else f" -> {one.fix}"))
            bad.extend([] if one.ok else [one.name])

    tell(check_machine(loaded))
    with _cluster(loaded):
        tell(check_cluster(loaded))
    _finish({"ok": not bad, "failed": bad}, [], None, as_json)
    if bad:
        raise typer.Exit(1)


@app.command()
def run(config: ConfigArgument = None, sets: SetOption = None, as_json: JsonOption = False) -> None:
    """The whole pipeline: check, augment, train, tune, predict, evaluate, report; finished stages are skipped."""
    from kp_ray.store.plan import plan

    uses = ["corrections", "sample_submission", "truth", "test_images"]
    loaded = _load(config, sets, needs=["annotations", "images"], uses=uses)
    if loaded.predict.images is None:
        loaded.require_input("test_images")
    planned = plan(loaded)
    from kp_ray.prediction.evaluate import evaluate_run
    from kp_ray.reporting.page import write_report
    from kp_ray.store.write import is_finished as is_stored
    from kp_ray.training.run import check_settings
    from kp_ray.tuning.search import check_search, is_finished

    stored = is_stored(planned)
    if stored:  # what was trained or searched with other settings is refused now, not hours later
        check_settings(loaded)
        if loaded.tune.num_trials:
            is_finished(loaded)
    if not (stored and exists(loaded.path("check.csv"))):
        checked = _check(loaded)
        _finish({}, checked.pop("lines"), None, False)
    with _cluster(loaded) as start_up_s:
        made = _augment(loaded, planned, start_up_s)
        _finish({}, made.pop("lines"), None, False)
        search = loaded.tune.num_trials and planned.units["val"] and not is_finished(loaded)
        if search:  # what it cannot do is said before hours of training
            check_search(loaded)
        trained = _train(loaded)
        _finish({}, _train_lines(loaded, trained), None, False)
        if search:
            _finish({}, _tune_lines(_tune(loaded)), None, False)
        predicted = _predict(loaded)
        _finish({}, predicted.pop("lines"), None, False)
    labelled = loaded.data.truth or (loaded.predict.images or "").startswith("store:")
    evaluation = evaluate_run(loaded).to_json() if labelled else None
    target = write_report(loaded)
    result = {"augment": made, "predict": predicted, "report": target, "submission": predicted["submission"]}
    out = Console(highlight=False)
    facts = Table("images", "variants", "sources/s", "filled in")
    rate = read_json(loaded.path("augment.json"), "delete it and run the same command")["sources_per_s"]
    facts.add_row(str(made["sources"]), str(made["variants"]), f"{rate:.1f}", str(predicted["filled"]))
    out.print(facts)
    if evaluation:
        result["evaluation"] = evaluation
        out.print(_metrics_table(_rows_of(evaluation)))
    out.print(f"submission: {predicted['submission']}\nreport: {target}", markup=False, soft_wrap=True)
    _finish(result, [], None, as_json)


if __name__ == "__main__":
    main()
