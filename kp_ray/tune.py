"""The search over learning rate and step schedule on Ray Tune: every trial is a real training run of `train.py`.

A trial's Ray Train run takes its own resources, so the trial itself asks for next to none and the number of trials at
once is what the cluster can train at once.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import ray
import ray.tune
import yaml
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from kp_ray.config import Config, InputError, build, exists, join, write_bytes
from kp_ray.store import read_manifest
from kp_ray.train import fit_member, runs_at_once

TRIAL_CPUS = 0.01
"""A trial only waits for its training run."""

FIRST_STEP, LAST_STEP = 0.3, 0.8
"""Where a schedule's first and last step lie, as a share of the iterations: the published 3000 and 8000 of 10000."""


def tune(config: Config, progress: Callable[[str, int, Mapping[str, Any]], None] | None = None) -> dict[str, Any]:
    """Search; go on with a search of this run folder that was stopped.

    Args:
        config: with a finished store that has validation rows; a Ray cluster must be running.
        progress: called with (trial, iteration, metrics) at each report.

    Returns:
        `trials`, `errors`, `metric`, `best` (value), `params`, `config` (path of `best.yaml`).

    Raises:
        InputError: no validation rows, a cluster too small for one trial, or every trial failed.
    """
    if not read_manifest(config.path("store")).num_rows_by_split["val"]:
        raise InputError("tune compares trials on validation scenes, the store has none: set split.fraction above 0")
    at_once, use_gpu = runs_at_once(config)
    folder = config.path("tune")
    values = config.to_dict()

    def trial(params: dict[str, Any]) -> None:
        trial_id = ray.tune.get_context().get_trial_id()
        chosen = apply_params(build(values), params)
        fit_member(
            chosen,
            chosen.train.members[0],
            use_gpu=use_gpu,
            folder=join(folder, "trials", trial_id),
            callbacks=[TuneReportCallback()],
        )

    trainable = ray.tune.with_resources(trial, {"CPU": TRIAL_CPUS})
    state = join(folder, "search")
    if ray.tune.Tuner.can_restore(state):
        tuner = ray.tune.Tuner.restore(state, trainable=trainable, resume_unfinished=True, restart_errored=False)
    else:
        tuner = _new_tuner(config, trainable, min(at_once, config.tune.max_concurrent or at_once), progress)
    results = tuner.fit()
    return _write_results(config, results)


def _new_tuner(
    config: Config,
    trainable: Any,
    at_once: int,
    progress: Callable[[str, int, Mapping[str, Any]], None] | None,
) -> ray.tune.Tuner:
    section = config.tune
    total = section.max_iter or config.train.max_iter
    return ray.tune.Tuner(
        trainable,
        param_space=search_space(config),
        tune_config=ray.tune.TuneConfig(
            metric=section.metric,
            mode=section.mode,
            num_samples=section.num_trials,
            max_concurrent_trials=at_once,
            search_alg=OptunaSearch(seed=config.seed, points_to_evaluate=[published_point(config)]),
            scheduler=ASHAScheduler(
                time_attr="iteration", max_t=total, grace_period=min(total, _eval_period(config)), reduction_factor=2
            ),
        ),
        run_config=ray.tune.RunConfig(
            name="search",
            storage_path=config.path("tune"),
            verbose=0,
            callbacks=[_Listener(progress)] if progress else [],
        ),
    )


class _Listener(ray.tune.Callback):
    def __init__(self, progress: Callable[[str, int, Mapping[str, Any]], None]) -> None:
        self.progress = progress

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self.progress(trial.trial_id, int(result.get("iteration", 0)), result)


def _eval_period(config: Config) -> int:
    total = config.tune.max_iter or config.train.max_iter
    return config.tune.eval_period or max(1, total // 4)


def search_space(config: Config) -> dict[str, Any]:
    """The search space as Ray Tune's domains."""
    section = config.tune
    return {
        "base_lr": ray.tune.loguniform(*section.base_lr),
        "gamma": ray.tune.uniform(*section.gamma),
        "num_steps": ray.tune.randint(section.num_steps[0], section.num_steps[1] + 1),
        "schedule": ray.tune.choice(list(section.schedules)),
    }


def published_point(config: Config) -> dict[str, Any]:
    """The config's own setting, moved into the search space: the first trial."""
    train, section = config.train, config.tune
    return {
        "base_lr": min(max(train.base_lr, section.base_lr[0]), section.base_lr[1]),
        "gamma": min(max(train.gamma, section.gamma[0]), section.gamma[1]),
        "num_steps": min(max(len(train.steps), section.num_steps[0]), section.num_steps[1]),
        "schedule": train.schedule if train.schedule in section.schedules else section.schedules[0],
    }


def steps_of(num_steps: int, max_iter: int) -> list[int]:
    """`num_steps` iterations spread evenly from FIRST_STEP to LAST_STEP of `max_iter`."""
    width = (LAST_STEP - FIRST_STEP) / max(1, num_steps - 1)
    return sorted({max(1, round(max_iter * (FIRST_STEP + i * width))) for i in range(num_steps)})


def apply_params(config: Config, params: Mapping[str, Any], max_iter: int | None = None) -> Config:
    """The config of a trial, or with `max_iter` of a full run with the trial's setting."""
    total = max_iter or config.tune.max_iter or config.train.max_iter
    values = config.to_dict()
    values["train"] |= {
        "base_lr": params["base_lr"],
        "gamma": params["gamma"],
        "schedule": params["schedule"],
        "steps": steps_of(params["num_steps"], total),
        "max_iter": total,
        "warmup_iters": round(config.train.warmup_iters * total / config.train.max_iter),
    }
    if max_iter is None:
        values["train"]["eval_period"] = _eval_period(config)
    return build(values)


def _write_results(config: Config, results: ray.tune.ResultGrid) -> dict[str, Any]:
    section = config.tune
    rows = []
    for result in results:
        metrics = result.metrics or {}
        params = result.config or {}
        status = "failed" if result.error else ("stopped" if _stopped_early(config, metrics) else "finished")
        rows.append(
            {
                "trial": metrics.get("trial_id", ""),
                "status": status,
                "iterations": metrics.get("iteration", 0),
                section.metric: metrics.get(section.metric),
                **{name: params.get(name) for name in search_space(config)},
                "steps": json.dumps(steps_of(params["num_steps"], section.max_iter or config.train.max_iter)),
                "seconds": metrics.get("time_total_s"),
                "reason": " ".join(str(result.error).split())[-300:] if result.error else "",
            }
        )
    table = pd.DataFrame(rows)
    write_bytes(config.path("tune", "trials.csv"), table.to_csv(index=False).encode())
    write_bytes(config.path("tune", "trials.parquet"), table.to_parquet(index=False))
    try:
        best = results.get_best_result(filter_nan_and_inf=True)
    except RuntimeError as error:
        raise InputError(
            f"{config.path('tune')}: no trial reported {section.metric}; see tune/trials.csv for why"
        ) from error
    winner = apply_params(config, best.config, max_iter=config.train.max_iter).to_dict()
    for member in winner["train"]["members"]:  # beside the members that were trained before the search
        member["name"] = f"{member['name']}-tuned"
    target = config.path("tune", "best.yaml")
    write_bytes(target, yaml.safe_dump(winner, sort_keys=False, allow_unicode=True).encode())
    return {
        "trials": len(rows),
        "errors": results.num_errors,
        "metric": section.metric,
        "best": best.metrics[section.metric],
        "params": dict(best.config),
        "config": target,
    }


def _stopped_early(config: Config, metrics: Mapping[str, Any]) -> bool:
    return (
        int(metrics.get("iteration", 0)) < (config.tune.max_iter or config.train.max_iter) // config.train.num_workers
    )


def is_finished(config: Config) -> bool:
    """Whether this run folder holds a finished search."""
    return exists(config.path("tune", "best.yaml"))
