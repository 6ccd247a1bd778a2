"""The search over learning rate, schedule and recipes on Ray Tune: every trial is a real training run of `train.py`.

A trial only waits for its training run, which takes its own resources; so the number of trials at once is what the
cluster can train at once, now. What a trial did lies in its own folder, `tune/trials/<trial>`. From these alone the
tables are written and a search goes on, whatever was killed on the way: Ray Tune's own notes are not kept.
"""

import contextlib
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
import pandas as pd
import pyarrow as pa
import ray
import ray.tune
from ray.tune.execution import class_cache
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from kp_ray import draw
from kp_ray.config import (
    Config,
    DivergedError,
    InputError,
    StoppedError,
    TrainConfig,
    TuneConfig,
    WorkerRange,
    build,
    exists,
    file_sizes,
    filesystem,
    join,
    one_line,
    read_bytes,
    read_json,
    write_bytes,
)
from kp_ray.detectron import build_cfg, scale_cfg
from kp_ray.keypoints import Skeleton
from kp_ray.recipes import RECIPES
from kp_ray.store import read_manifest, reason_of, store_digest, write_parquet, writer_lock
from kp_ray.train import NOT_DECIDING, check_options, fit_member, runs_at_once, usable_rows

METRICS: tuple[str, ...] = get_args(TuneConfig.model_fields["metric"].annotation)
"""What an evaluation reports of a model, by its name."""

APPLIED = ("base_lr", "warmup_iters", "schedule", "num_steps", "steps", "gamma", "weight_decay", "flip", "recipes")
"""The columns of a trial's parameters, as Detectron2's solver had them."""

LOGARITHMIC = ("base_lr", "weight_decay")
GRID_VALUES = 3
"""How many values a grid takes of a range."""
POLL_S = 0.5
"""How often a trial looks for a new evaluation."""
STOP_S = 60.0
"""How long a trial that is stopped waits for its training run to end."""
REDUCTION = 2
"""Of the trials that get to one of ASHA's rungs, about one in so many goes on."""

Progress = Callable[[str, list[dict[str, Any]]], None]
"""Called with the trial that has news, and all trials as `read_trials` gives them."""


def tune(config: Config, progress: Progress | None = None) -> dict[str, Any]:
    """Search; go on with a search of this run folder that was stopped.

    Leaves in `<run_dir>/tune`: `trials.parquet` and `trials.csv` (`write_tables`), `best.yaml`, `log.jsonl` (a line a
    report), `*.svg` (`write_plots`), `trials/<trial>/` (a training run each; checkpoints go when the search is over).

    Args:
        config: with a finished store that has validation rows; a Ray cluster must be running.
        progress: called at each report and when a trial ends.

    Returns:
        `trials`, `failed`, `metric`, `best` (its value), `trial`, `params` (as applied), `iterations` (spent),
        `iterations_without_stops` (of as many full trials), `config` (path of `best.yaml`).

    Raises:
        InputError: no validation rows, a recipe set the store cannot serve, a point outside its range, a grid larger
            than num_trials, settings other than those the search began with, a cluster too small for one trial, every
            trial failed, or another process searches here.
    """
    with writer_lock(config.path("tune")):
        return _tune(config, progress)


def _tune(config: Config, progress: Progress | None) -> dict[str, Any]:
    if not is_finished(config):
        _search(config, progress)
    rows = read_trials(config)
    write_tables(config, rows)
    best = choose_best(rows, config.tune)
    if best is None:
        reason = next((row["reason"] for row in rows if row["reason"]), "none was evaluated")
        raise InputError(f"{config.path('tune')}: no trial reported {config.tune.metric}, the first because: {reason}")
    write_plots(config, rows)
    target = config.path("tune", "best.yaml")
    if not exists(target):
        write_bytes(target, best_config(config, best).to_yaml().encode())
    _delete_checkpoints(config, rows)
    full = max(row["max_iter"] for row in rows)
    return {
        "trials": len(rows),
        "failed": sum(row["status"] == "failed" for row in rows),
        "metric": config.tune.metric,
        "best": best[config.tune.metric],
        "trial": best["trial"],
        "params": {name: best[name] for name in APPLIED},
        "iterations": sum(row["trained"] for row in rows),
        "iterations_without_stops": full * len(rows),
        "config": target,
    }


def is_finished(config: Config) -> bool:
    """Whether this run folder holds a finished search.

    Raises:
        InputError: it holds a search with other settings.
    """
    _check_settings(config)
    return exists(config.path("tune", "best.yaml"))


def check_search(config: Config) -> None:
    """Refuse a search that could not begin, before a cluster starts.

    Raises:
        InputError: no finished store or no validation rows in it, or settings that do not do.
    """
    if not read_manifest(config.path("store")).num_rows_by_split["val"]:
        raise InputError("tune compares trials on validation scenes, the store has none: set split.fraction above 0")
    if not config.tune.num_trials:
        raise InputError("tune.num_trials is 0: how many trials? E.g. --set tune.num_trials=16")
    if isinstance(config.train.num_workers, WorkerRange):
        raise InputError(
            "tune compares runs of one size: give train.num_workers a number, not min and max, or set tune.num_trials=0"
        )
    check_options(config)
    sets = recipe_sets(config)
    _check_sets(config, sets)
    first_points(config, sets)


def _search(config: Config, progress: Progress | None) -> None:
    check_search(config)
    read_trials(config)  # a damaged file is told of before anything is trained
    _, use_gpu = runs_at_once(config)
    config.keep()
    folder = config.path("tune")
    write_bytes(join(folder, "settings.json"), json.dumps(_settings(config), indent=1).encode())
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searcher = _Searcher(config)
    if not searcher.left:
        return
    trial = type("Trial", (_Trial,), {"values": config.to_dict(), "use_gpu": use_gpu})
    # Ray Tune wants some resource; any share of a CPU would be missing when the training runs take all of them. A trial
    # itself only waits for its training run: it stays on the driver's node, where everything is installed.
    own = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    here = next(name for name in own["Resources"] if name.startswith("node:") and name != "node:__internal_head__")
    # Nodes have credentials of their own; handed on by Ray Tune, the driver's would stand in Ray's logs.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update([name for name in os.environ if name.startswith("AWS_")])
    # Ctrl-C ends the driver, as a kill does, instead of making a search look finished.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    numbers = [number for number, _ in searcher.left]
    with tempfile.TemporaryDirectory(prefix="kp_ray-tune-", ignore_cleanup_errors=True) as notes:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trial, {"memory": 1, here: 0.001}),
            tune_config=ray.tune.TuneConfig(
                num_samples=len(numbers), search_alg=searcher, scheduler=_scheduler(config)
            ),
            run_config=ray.tune.RunConfig(
                name="search",
                storage_path=notes,
                verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=config.train.max_failures),
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),  # a trial's state: its folder
                callbacks=[_Listener(config, progress)],
            ),
        )
        try:
            tuner.fit()
        except (ray.exceptions.RayError, ray.tune.TuneError) as error:
            raise InputError(
                f"{folder}: the search stopped: {reason_of(error)}; run the same command to go on"
            ) from error
    if not all(_end(_home(config, number)) for number in numbers):  # Ray Tune ends so on some signals
        raise StoppedError(f"{folder}: the search was stopped; run the same command to go on")


def _scheduler(config: Config) -> TrialScheduler:
    """The scheduler; of trials that have ended it knows what they had reported."""
    section = config.tune
    trial = apply_params(config, point_of(config.train, config), recipe_sets(config))
    solver = _applied_cfg(trial)
    total, grace = solver.SOLVER.MAX_ITER, max(1, min(solver.SOLVER.MAX_ITER, solver.TEST.EVAL_PERIOD))
    told: dict[str, Any] = {"metric": section.metric, "mode": section.mode, "time_attr": "iteration"}
    if section.scheduler == "none":
        return FIFOScheduler()
    if section.scheduler == "asha":
        scheduler = _Asha(**told, max_t=total, grace_period=grace, reduction_factor=REDUCTION)
    else:  # by default it would also pause trials for each other, which costs new workers
        scheduler = _Median(**told, grace_period=grace, min_time_slice=math.inf)
    scheduler.reports = _reports(config)
    for number in range(section.num_trials):
        if _end(_home(config, number)).get("lasting"):
            scheduler.on_trial_add(None, Trial("ended", config={"number": number}, trial_id=_name(number), stub=True))
    return scheduler


class _Recalling(TrialScheduler):
    """Knows what a trial had reported before a restart; it was decided on then."""

    reports: Mapping[str, Sequence[dict[str, Any]]]
    recall: Callable[..., Any]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for one in self.reports.get(_name(trial.config["number"]), ()):
            self.recall(tune_controller, trial, one)


class _Asha(_Recalling, ASHAScheduler):
    recall = ASHAScheduler.on_trial_result


class _Median(_Recalling, MedianStoppingRule):
    recall = MedianStoppingRule.on_trial_complete  # its on_trial_result takes none after it has decided to stop


def _reports(config: Config) -> dict[str, list[dict[str, Any]]]:
    """What each trial has reported so far, in order: `iteration` and the tuned metric, of a failure the worst. Of a
    trial that has ended and is not in the log, somebody having deleted that, what it evaluated."""
    metric, told = config.tune.metric, dict[str, list[dict[str, Any]]]()
    for line in _read_log(config):
        value = _worst(config.tune) if line[metric] is None else line[metric]
        told.setdefault(line["trial"], []).append({"iteration": line["iteration"], metric: value})
    for number in range(config.tune.num_trials):
        home = _home(config, number)
        if _name(number) not in told and _end(home).get("lasting"):
            known = [one for one in _evaluations(_metrics(home)) if math.isfinite(one.get(metric, math.nan))]
            told[_name(number)] = [{"iteration": one["iteration"], metric: one[metric]} for one in known]
    return told


def _worst(section: TuneConfig) -> float:
    return math.inf if section.mode == "min" else -math.inf


def _name(number: int) -> str:
    return f"trial-{number:03d}"


def _home(config: Config, number: int) -> str:
    return config.path("tune", "trials", _name(number))


class _Searcher(Searcher):
    """What each trial tries, by its number: one that was begun goes on with its parameters; the first ones take the
    points to try first, the others what the sampler draws from the results so far. As many at once as the cluster can
    train now: it may grow and shrink.

    Every draw has a seed of its own, so that after a restart none comes a second time.
    """

    def __init__(self, config: Config) -> None:
        section = config.tune
        super().__init__(metric=section.metric, mode=section.mode)
        sets = recipe_sets(config)
        points = first_points(config, sets)
        self.config, self.distributions = config, space(config, sets)
        self.study = optuna.create_study(direction="minimize" if section.mode == "min" else "maximize")
        self.left: list[tuple[int, dict[str, Any] | None]] = []
        """The trials that have not ended: their numbers and parameters, None if they are to be drawn."""
        self.asked: dict[str, optuna.trial.Trial] = {}
        """Those that run, by Ray Tune's own names."""
        reports = _reports(config)
        for number in range(len(points) if section.sampler == "grid" else section.num_trials):
            home = _home(config, number)
            begun = _facts(home)
            if begun and (end := _end(home)).get("lasting"):
                told = [] if end["reason"] else [one[section.metric] for one in reports.get(_name(number), ())]
                value = told[-1] if told else _worst(section)
                self.study.add_trial(
                    optuna.trial.create_trial(params=begun["params"], distributions=self.distributions, value=value)
                )
            else:
                first = points[number] if number < len(points) else None
                self.left.append((number, begun["params"] if begun else first))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        try:
            fits = runs_at_once(self.config)[0]
        except InputError:  # a node left: wait for one
            fits = 0
        if len(self.asked) >= min(fits, self.config.tune.max_concurrent or fits):
            return None
        number, params = self.left.pop(0)
        self.study.sampler = self._sampler(number)
        if params:
            self.study.enqueue_trial(params)
        self.asked[trial_id] = self.study.ask(self.distributions)
        return {"number": number, "params": self.asked[trial_id].params}

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        section = self.config.tune
        seed = int(np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0])
        if section.sampler == "tpe":  # its default, ten random trials first, would leave a short search random
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, section.num_trials // 4))
        return optuna.samplers.RandomSampler(seed=seed)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self.asked.pop(trial_id, None)
        if trial and result and not error and result.get("lasting", True):
            self.study.tell(trial, result[self.metric])
        elif trial:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the trials' folders hold all."""

    def __getstate__(self) -> dict[str, Any]:  # Ray Tune keeps a copy that nobody reads
        return {}


# The search space: shares of the iterations, so that it serves a trial and a full run.


def recipe_sets(config: Config) -> dict[str, tuple[str, ...] | None]:
    """The named sets of recipes to choose from; `own` is the config's, None: all of the store."""
    own = config.train.recipes
    if config.tune.recipes is not None:
        return {"own": own, **config.tune.recipes}
    stored = [recipe.name for recipe in read_manifest(config.path("store")).recipes]
    known = [name for name in stored if own is None or name in own]
    upright = tuple(name for name in known if name not in RECIPES or not RECIPES[name].rotate_deg)
    return {"own": own, "upright": upright} if 0 < len(upright) < len(known) else {"own": own}


def _check_sets(config: Config, sets: Mapping[str, Any]) -> None:
    needed = config.train.ims_per_batch * config.train.worker_range[1]
    for name in sets:
        chosen = _with_recipes(config, name, sets)
        found = len(usable_rows(chosen, chosen.train.members[0]))
        if found < needed:
            raise InputError(f"tune.recipes.{name}: {found} training rows, a step needs {needed}: name more recipes")


def space(config: Config, sets: Mapping[str, Any]) -> dict[str, optuna.distributions.BaseDistribution]:
    """Each parameter's distribution, by its name."""
    section, of = config.tune, optuna.distributions
    return {
        "base_lr": of.FloatDistribution(*section.base_lr, log=True),
        "weight_decay": of.FloatDistribution(*section.weight_decay, log=True),
        "warmup": of.FloatDistribution(*section.warmup),
        "schedule": of.CategoricalDistribution(section.schedules),
        "num_steps": of.IntDistribution(*section.num_steps),
        "first_step": of.FloatDistribution(*section.first_step),
        "step_spacing": of.FloatDistribution(*section.step_spacing),
        "gamma": of.FloatDistribution(*section.gamma),
        "flip": of.CategoricalDistribution(section.flips),
        "recipes": of.CategoricalDistribution(list(sets)),
    }


def point_of(train: TrainConfig, config: Config) -> dict[str, Any]:
    """A training section's setting as a point of the config's search space, moved into its ranges.

    Steps are taken as evenly spaced between their first and last.
    """
    section = config.tune
    steps = [step / train.max_iter for step in train.steps if step < train.max_iter]
    wanted = {
        "base_lr": train.base_lr,
        "weight_decay": train.weight_decay,
        "warmup": train.warmup_iters / train.max_iter,
        "num_steps": len(steps),
        "first_step": steps[0] if steps else 0.0,
        "step_spacing": (steps[-1] - steps[0]) / (len(steps) - 1) if len(steps) > 1 else 0.0,
        "gamma": train.gamma,
    }
    ends = {name: getattr(section, name) for name in wanted}
    return {
        **{name: min(max(value, ends[name][0]), ends[name][1]) for name, value in wanted.items()},
        "schedule": train.schedule if train.schedule in section.schedules else section.schedules[0],
        "flip": config.train.flip if config.train.flip in section.flips else section.flips[0],
        "recipes": "own",
    }


def first_points(config: Config, sets: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is tried before anything is drawn: the config's own setting, the published schedule, `tune.points`; with
    `sampler: grid` then the whole grid.

    Raises:
        InputError: a point names what is not searched or lies outside its range, or the grid is larger than num_trials.
    """
    distributions = space(config, sets)
    own, published = point_of(config.train, config), point_of(TrainConfig(), config)
    points = [own, published]
    for number, given in enumerate(config.tune.points):
        for name, value in given.items():
            if name not in distributions:
                known = ", ".join(distributions)
                raise InputError(f"tune.points.{number}: {name} is not searched; what is: {known}")
            if not _contains(distributions[name], value):
                raise InputError(f"tune.points.{number}: {name} {value} is not in its range: {distributions[name]}")
        points.append({**own, **given})
    if config.tune.sampler == "grid":
        points += _grid(distributions)
    by_effect: dict[str, dict[str, Any]] = {}
    for point in points:
        by_effect.setdefault(json.dumps(_effective(point), sort_keys=True), point)
    different = list(by_effect.values())
    if config.tune.sampler == "grid" and len(different) > config.tune.num_trials:
        raise InputError(
            f"the grid has {len(different)} points, tune.num_trials is {config.tune.num_trials}: fix parameters, e.g. "
            "tune.base_lr=[0.001, 0.001], or raise tune.num_trials"
        )
    return different


def _contains(distribution: optuna.distributions.BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return value in distribution.choices
    whole = isinstance(distribution, optuna.distributions.FloatDistribution) or isinstance(value, int)
    return whole and not isinstance(value, bool | str) and bool(distribution.low <= value <= distribution.high)


def _grid(distributions: Mapping[str, Any]) -> list[dict[str, Any]]:
    axes = {}
    for name, one in distributions.items():
        if isinstance(one, optuna.distributions.CategoricalDistribution):
            axes[name] = list(one.choices)
        else:
            spread = np.geomspace if name in LOGARITHMIC else np.linspace
            between = spread(one.low, one.high, GRID_VALUES)[1:-1].tolist()
            if isinstance(one, optuna.distributions.IntDistribution):
                between = [round(value) for value in between]
            axes[name] = list(dict.fromkeys([one.low, *between, one.high]))
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _effective(point: Mapping[str, Any]) -> dict[str, Any]:
    """The point without what its schedule does not use."""
    unused = {"num_steps", "first_step", "step_spacing", "gamma"} if point["schedule"] == "cosine" else set()
    return {name: value for name, value in point.items() if name not in unused}


def steps_of(params: Mapping[str, Any], max_iter: int) -> list[int]:
    """The iterations at which a multi-step schedule of a run of `max_iter` steps; none is at or past its end."""
    places = (params["first_step"] + index * params["step_spacing"] for index in range(params["num_steps"]))
    return sorted({step for place in places if 0 < (step := round(place * max_iter)) < max_iter})


def apply_params(
    config: Config, params: Mapping[str, Any], sets: Mapping[str, Any], max_iter: int | None = None
) -> Config:
    """The config of a trial, or with `max_iter` of a full run with the trial's setting."""
    total = max_iter or config.tune.max_iter or config.train.max_iter
    values = _with_recipes(config, params["recipes"], sets).to_dict()
    values["train"] |= {
        "base_lr": params["base_lr"],
        "weight_decay": params["weight_decay"],
        "schedule": params["schedule"],
        "steps": steps_of(params, total),
        "gamma": params["gamma"],
        "flip": params["flip"],
        "max_iter": total,
        "warmup_iters": round(params["warmup"] * total),
    }
    if max_iter is None:
        values["train"]["eval_period"] = config.tune.eval_period or max(1, total // 8)
    return build(values)


def _with_recipes(config: Config, name: str, sets: Mapping[str, Any]) -> Config:
    """`own` leaves all as it is; another set is that of every member."""
    values = config.to_dict()
    if name != "own":
        values["train"]["recipes"] = list(sets[name])
        for member in values["train"]["members"]:
            member["recipes"] = None
    return build(values)


def best_config(config: Config, best: Mapping[str, Any]) -> Config:
    """The config that trains the best trial's setting in full, its members named beside those trained before."""
    sets = recipe_sets(config)
    values = apply_params(config, json.loads(best["params"]), sets, max_iter=config.train.max_iter).to_dict()
    for member in values["train"]["members"]:
        member["name"] = f"{member['name']}-tuned"
    if isinstance(values["predict"]["weights"], dict):
        values["predict"]["weights"] = {f"{name}-tuned": one for name, one in values["predict"]["weights"].items()}
    values["tune"]["num_trials"] = 0  # `run` takes it as it is
    return build(values)


# A trial: what runs in it, and what it leaves.


def _skeleton(config: Config) -> Skeleton:
    manifest = read_manifest(config.path("store"))
    return config.skeleton_of(manifest.skeleton)


def _applied_cfg(config: Config) -> Any:
    return scale_cfg(build_cfg(config, _skeleton(config), "cpu"), config.train.worker_range[1])


def applied(config: Config, recipes: str) -> dict[str, Any]:
    """A training run's parameters as Detectron2's solver has them: after scaling by the number of workers.

    Returns:
        `APPLIED` and `max_iter`. `steps` is a JSON list; `gamma` is None and there are no steps in a cosine schedule.
    """
    cfg = _applied_cfg(config)
    solver = cfg.SOLVER
    multistep = config.train.schedule == "multistep"
    steps = list(solver.STEPS) if multistep else []
    return {
        "base_lr": float(solver.BASE_LR),
        "warmup_iters": int(solver.WARMUP_ITERS),
        "schedule": config.train.schedule,
        "num_steps": len(steps),
        "steps": json.dumps(steps),
        "gamma": float(solver.GAMMA) if multistep else None,
        "weight_decay": float(solver.WEIGHT_DECAY),
        "flip": cfg.INPUT.RANDOM_FLIP != "none",
        "recipes": recipes,
        "max_iter": int(solver.MAX_ITER),
    }


class _Trial(ray.tune.Trainable):
    """What Ray Tune runs: it trains, and reports every evaluation once, in order, the last one again after a restart.

    The last evaluation is reported when training has ended, so that no scheduler stops a run while it writes its
    weights. A trial that diverges is told to the sampler as the worst result; of one that something else ended, workers
    lost too often, say, the sampler learns nothing.
    """

    values: Mapping[str, Any]
    use_gpu: bool

    def setup(self, config: dict[str, Any]) -> None:
        self.base = build(self.values)
        chosen = apply_params(self.base, config["params"], recipe_sets(self.base))
        self.home = _home(self.base, config["number"])
        self.began = time.time()
        facts = {"began": self.began, "params": config["params"], **applied(chosen, config["params"]["recipes"])}
        if not exists(join(self.home, "trial.json")):
            write_bytes(join(self.home, "trial.json"), json.dumps(facts).encode())
        self.total: int = facts["max_iter"]
        own = [line for line in _read_log(self.base) if line["trial"] == _name(config["number"])]
        self.seconds = max((line["seconds"] for line in own), default=0.0)
        self.told = min(max((line["iteration"] for line in own), default=0), self.total - 1)
        end = _end(self.home)
        ended = end.get("lasting") or exists(join(self.home, "model_final.pth"))
        if end and not end["lasting"]:
            fs, path = filesystem(join(self.home, "end.json"))
            fs.delete_file(path)
        # A task, so that the run can be ended in order, as by Ctrl-C. To clean up after a run whose driver is killed,
        # Ray Train asks for the cluster's state, and asks another cluster if there are several on a machine.
        fit = ray.remote(num_cpus=0, max_retries=0)(_fit)
        self.training = None if ended else fit.remote(chosen.to_dict(), self.home, self.use_gpu)

    def step(self) -> dict[str, Any]:
        while True:
            ended = self.training is None or bool(ray.wait([self.training], timeout=POLL_S)[0])
            for one in _evaluations(_metrics(self.home)):
                known = math.isfinite(one.get(self.base.tune.metric, math.nan))
                if self.told < one["iteration"] and known and (ended or one["iteration"] < self.total):
                    self.told = one["iteration"]
                    return self._report(one, done=self.told == self.total)
            if ended:
                why, lasting = self._why()
                _note_end(self.home, why, lasting=lasting)
                worst = {self.base.tune.metric: _worst(self.base.tune), "iteration": 0, "lasting": lasting}
                return self._report(worst, done=True)

    def _report(self, values: Mapping[str, float], *, done: bool) -> dict[str, Any]:
        return {**values, "seconds": round(self.seconds + time.time() - self.began, 1), "done": done}

    def _why(self) -> tuple[str, bool]:
        """Why training failed, and whether the setting is at fault. That its task died is raised, and Ray Tune tries
        again; lost workers Ray Train has replaced, as often as it may.
        """
        try:
            if self.training is not None:
                ray.get(self.training)
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, InputError):
                raise
            return str(error.cause), isinstance(error.cause, DivergedError)
        return f"its last evaluation has no {self.base.tune.metric}", True

    def cleanup(self) -> None:
        if self.training is not None and not ray.wait([self.training], timeout=0)[0]:
            ray.cancel(self.training)
            ray.wait([self.training], timeout=STOP_S)


def _fit(values: Mapping[str, Any], home: str, use_gpu: bool) -> None:
    config = build(values)
    fit_member(config, config.train.members[0], use_gpu=use_gpu, folder=home)


def _note_end(home: str, reason: str = "", *, lasting: bool = True) -> None:
    """Say that a trial ended, and why if it failed; one whose end is not `lasting` is tried again with the search."""
    if not exists(join(home, "end.json")):
        told = {"reason": one_line(reason)[-300:], "lasting": lasting}
        write_bytes(join(home, "end.json"), json.dumps(told).encode())


def _end(home: str) -> dict[str, Any]:
    return _read_note(home, "end.json", ("reason", "lasting"))


def _facts(home: str) -> dict[str, Any]:
    return _read_note(home, "trial.json", ("began", "params", "max_iter", *APPLIED))


def _read_note(home: str, name: str, keys: Sequence[str]) -> dict[str, Any]:
    """A note in a trial's folder; empty if there is none.

    Raises:
        InputError: it is damaged.
    """
    path = join(home, name)
    return _with_keys(read_json(path, _anew(home)), path, keys, _anew(home)) if exists(path) else {}


def _anew(home: str) -> str:
    return f"delete {home}, and tune/best.yaml if it is there, and run the same command"


class _Listener(ray.tune.Callback):
    """Writes the log, notes why trials died, and tells whoever listens."""

    def __init__(self, config: Config, progress: Progress | None) -> None:
        self.config, self.progress = config, progress
        self.live: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:  # Ray Tune keeps a copy that nobody reads
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self.live.add(_name(trial.config["number"]))

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        name, metric = _name(trial.config["number"]), self.config.tune.metric
        known = {(line["trial"], line["iteration"]) for line in _read_log(self.config)}
        if (name, result["iteration"]) not in known:
            line = {"time": round(time.time(), 1), "trial": name, "iteration": result["iteration"]}
            line |= {"seconds": result["seconds"], metric: result[metric] if math.isfinite(result[metric]) else None}
            path = self.config.path("tune", "log.jsonl")
            write_bytes(path, (read_bytes(path) if exists(path) else b"") + (json.dumps(line) + "\n").encode())
            self._tell(name)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        _note_end(_home(self.config, trial.config["number"]))
        self._ended(trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        told = Path(trial.error_file).read_text()  # Ray's own get_error finds it only when it has been copied
        _note_end(_home(self.config, trial.config["number"]), reason_of(RuntimeError(told)), lasting=False)
        self._ended(trial)

    def _ended(self, trial: Any) -> None:
        name = _name(trial.config["number"])
        self.live.discard(name)
        self._tell(name)

    def _tell(self, name: str) -> None:
        rows = read_trials(self.config, self.live)
        write_tables(self.config, rows)
        if self.progress:
            self.progress(name, rows)


def _read_log(config: Config) -> list[dict[str, Any]]:
    keys = ("trial", "iteration", "seconds", config.tune.metric)
    return _json_lines(config.path("tune", "log.jsonl"), keys, "delete this file and run the same command")


def _json_lines(path: str, keys: Sequence[str], fix: str) -> list[dict[str, Any]]:
    """The lines of a JSON lines file, each with these keys; none if there is no file.

    Raises:
        InputError: it is damaged.
    """
    lines = read_bytes(path).splitlines() if exists(path) else []
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path}: damaged ({one_line(error)}): {fix}") from error
    return [_with_keys(row, path, keys, fix) for row in rows]


def _with_keys(row: Any, path: str, keys: Sequence[str], fix: str) -> dict[str, Any]:
    missing = [key for key in keys if key not in row] if isinstance(row, dict) else ["JSON object"]
    if missing:
        raise InputError(f"{path}: damaged (no {missing[0]}): {fix}")
    return dict(row)


def _metrics(home: str) -> list[dict[str, Any]]:
    return _json_lines(join(home, "metrics.json"), ("iteration",), _anew(home))


def _evaluations(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a trial's own log says of its evaluations: `iteration` (counted from 1) and each metric, in order."""
    rows = []
    for line in log:
        found = {key.removeprefix("val/"): value for key, value in line.items() if key.startswith("val/")}
        if found:
            rows.append({"iteration": line["iteration"] + 1, **found})
    return rows


def read_trials(config: Config, live: Sequence[str] | set[str] = ()) -> list[dict[str, Any]]:
    """Every trial of the run folder's search, in the order they began, from the trials' own folders.

    Args:
        live: the trials that are running now.

    Returns:
        The columns of `write_tables`, each trial a dict; one that never came to an evaluation or a failure, and is not
        running, is left out.
    """
    folder = config.path("tune", "trials")
    names = {path.split("/")[0] for path in file_sizes(folder) if path.count("/") == 1} if exists(folder) else set()
    seconds: dict[str, float] = {}
    for line in _read_log(config):
        seconds[line["trial"]] = max(line["seconds"], seconds.get(line["trial"], 0.0))
    rows = []
    for name in names:
        home = join(folder, name)
        facts = _facts(home)
        if not facts:
            continue
        log, failed = _metrics(home), _end(home).get("reason", "")
        evaluations = _evaluations(log)
        done = evaluations[-1]["iteration"] if evaluations else 0
        status = "failed" if failed else "finished" if done == facts["max_iter"] else "stopped"
        if name in live and status == "stopped":
            status = "running"
        if evaluations or failed or name in live:
            last = {} if failed or not evaluations else evaluations[-1]
            rows.append(
                {
                    "trial": name,
                    "status": status,
                    "iterations": done,
                    "trained": log[-1]["iteration"] + 1 if log else 0,
                    "max_iter": facts["max_iter"],
                    config.tune.metric: last.get(config.tune.metric),
                    **{key: facts[key] for key in APPLIED},
                    "seconds": seconds.get(name),
                    "reason": failed,
                    "began": facts["began"],
                    "params": json.dumps(facts["params"]),
                    "evaluations": evaluations,
                }
            )
    return sorted(rows, key=lambda row: row["began"])


def choose_best(rows: Sequence[Mapping[str, Any]], section: TuneConfig) -> Mapping[str, Any] | None:
    """The best of the trials that went farthest: others were not measured at the same iteration. None: none was."""
    known = [row for row in rows if row[section.metric] is not None and math.isfinite(row[section.metric])]
    farthest = max((row["iterations"] for row in known), default=0)
    sign = 1 if section.mode == "min" else -1
    level = [row for row in known if row["iterations"] == farthest]
    return min(level, key=lambda row: sign * row[section.metric], default=None)


def write_tables(config: Config, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `tune/trials.parquet` and `tune/trials.csv`, a row a trial.

    Columns: `trial`; `status` (finished, stopped, failed, running); `iterations` at the last evaluation, and those
    `trained` as the log has them, of `max_iter`; the tuned metric by its name, at the last evaluation (empty for a
    failed trial); as applied by Detectron2's solver, after scaling by the workers: `base_lr`, `warmup_iters`,
    `schedule`, `num_steps`, `steps` (a JSON list), `gamma` (empty for cosine), `weight_decay`, `flip`, `recipes` (the
    name of the set); `seconds` of the trial; `reason` of a failure.
    Parquet alone: `began` (Unix time), `params` (JSON: what was drawn), `evaluations` (list of {iteration, METRICS}).
    """
    evaluation = pa.struct([("iteration", pa.int64()), *((name, pa.float64()) for name in METRICS)])
    number, text = pa.float64(), pa.string()
    schema = pa.schema(
        [
            ("trial", text), ("status", text), ("iterations", pa.int64()), ("trained", pa.int64()),
            ("max_iter", pa.int64()), (config.tune.metric, number), ("base_lr", number), ("warmup_iters", pa.int64()),
            ("schedule", text), ("num_steps", pa.int64()), ("steps", text), ("gamma", number),
            ("weight_decay", number), ("flip", pa.bool_()), ("recipes", text), ("seconds", number), ("reason", text),
            ("began", number), ("params", text), ("evaluations", pa.list_(evaluation)),
        ]
    )  # fmt: skip
    table = pa.Table.from_pylist(list(rows), schema=schema)
    write_parquet(config.path("tune", "trials.parquet"), table)
    plain = table.drop_columns(["began", "params", "evaluations"]).to_pandas()
    write_bytes(config.path("tune", "trials.csv"), plain.to_csv(index=False).encode())


def importance(params: Sequence[Mapping[str, Any]], values: Sequence[float]) -> dict[str, float]:
    """How much of the ranks of n results each parameter explains alone, in [0, 1]; one that did not vary is left out.

    A number's share is the adjusted R^2 of a parabola through it (logarithm for `LOGARITHMIC`), a choice's that of its
    group means. Below five results all is 0: nothing can be said.
    """
    ranks = pd.Series(list(values), dtype=float).rank().to_numpy()
    shares = {}
    for name in params[0] if params else ():
        column = [point[name] for point in params]
        if len(set(column)) < 2:
            continue
        if isinstance(column[0], str | bool):
            fit = np.stack([np.array([value == other for value in column], float) for other in sorted(set(column))], 1)
        else:
            x = np.log(column) if name in LOGARITHMIC else np.array(column, dtype=float)
            x = (x - x.mean()) / x.std()
            fit = np.stack([np.ones_like(x), x, x**2], axis=1)
        free = len(ranks) - int(np.linalg.matrix_rank(fit))
        left = ranks - fit @ np.linalg.lstsq(fit, ranks, rcond=None)[0]
        whole = ranks.var() / (len(ranks) - 1) if len(ranks) > 1 else 0.0
        enough = len(ranks) >= 5 and free > 0 and whole > 0
        shares[name] = float(np.clip(1 - (left.var() / free) / whole, 0, 1)) if enough else 0.0
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def write_plots(config: Config, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write `tune/{learning_rate,curves,parallel,importance}.svg`; returns their paths."""
    metric = config.tune.metric
    done = [row for row in rows if row[metric] is not None]
    points, values = [json.loads(row["params"]) for row in done], [row[metric] for row in done]
    best = choose_best(rows, config.tune)
    curves = {}
    for row in rows:
        known = [(one["iteration"], one[metric]) for one in row["evaluations"] if one.get(metric) is not None]
        curves[row["trial"]] = ([iteration for iteration, _ in known], [value for _, value in known])
    cut = {row["trial"] for row in rows if row["status"] != "finished"}
    shares = importance(points, values)
    varied = {name: [_text(point[name]) for point in points] for name in shares}
    plots = {
        "learning_rate": draw.plot_points(
            [row["base_lr"] for row in done], values, "base learning rate", metric,
            "Learning rate, the best trial circled", log_x=True,
            best=next((index for index, row in enumerate(done) if row is best), None),
        ),
        "curves": draw.plot_curves(curves, "iteration", metric, "Trials, a cross where one was stopped", stopped=cut),
        "parallel": draw.plot_parallel(
            varied, values, metric, "A line a trial, the best green", more_is_better=config.tune.mode == "max"
        ),
        "importance": draw.plot_bars(
            list(shares), list(shares.values()), f"share of the order by {metric}",
            "What each parameter alone explains" if any(shares.values()) else "Too few trials to explain",
        ),
    }  # fmt: skip
    for name, content in plots.items():
        write_bytes(config.path("tune", f"{name}.svg"), content)
    return [config.path("tune", f"{name}.svg") for name in plots]


def _text(value: Any) -> float | str:
    return str(value) if isinstance(value, bool | str) else float(value)


# The settings of a search, and its end.


def _settings(config: Config) -> dict[str, Any]:
    """What decides the search's results, as plain values."""
    values = config.to_dict()
    return {
        **{part: values[part] for part in ("seed", "model", "skeleton")},
        "augment": {"min_visible": config.augment.min_visible},
        "tune": {key: value for key, value in values["tune"].items() if key != "max_concurrent"},
        "train": {key: value for key, value in values["train"].items() if key not in NOT_DECIDING},
        "train.members.0": {key: value for key, value in values["train"]["members"][0].items() if key != "name"},
        "store": store_digest(config.path("store")),
    }


def _check_settings(config: Config) -> None:
    path = config.path("tune", "settings.json")
    if not exists(path):
        return
    before = read_json(path, "delete this file and go on with the settings that the search began with")
    now = json.loads(json.dumps(_settings(config)))
    for part in now:
        for key in now[part] if isinstance(now[part], dict) else ():
            if before.get(part, {}).get(key) != now[part][key]:
                _refuse(config, f"{part}.{key}", before.get(part, {}).get(key), now[part][key])
        if before.get(part) != now[part]:
            _refuse(config, part, before.get(part), now[part])


def _refuse(config: Config, key: str, before: Any, now: Any) -> None:
    raise InputError(
        f"{config.path('tune')}: holds a search with {key} {before}, now {now}: put it back, choose a new run_dir, or "
        "delete this folder to search anew"
    )


def _delete_checkpoints(config: Config, rows: Sequence[Mapping[str, Any]]) -> None:
    """Gigabytes for a large model, and a search that is over is not gone on with."""
    for row in rows:
        fs, inner = filesystem(config.path("tune", "trials", row["trial"]))
        for name in {path.split("/")[0] for path in file_sizes(config.path("tune", "trials", row["trial"]))}:
            if name.startswith("checkpoint_0"):
                with contextlib.suppress(FileNotFoundError):
                    fs.delete_dir(f"{inner}/{name}")
