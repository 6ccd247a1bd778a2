"""The search algorithm that Ray Tune asks for trials: Ray's Optuna search, filled from the trials' folders."""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import optuna

from kp_ray.config.schema import Config
from kp_ray.tuning.departures import ResumedSearch, TrialSampler
from kp_ray.tuning.records import read_end, read_reports, read_start, trial_dir, trial_name, worst_value
from kp_ray.tuning.space import add_result, build_recipe_sets, build_space, build_study, first_points

MIN_RANDOM_TRIALS = 4
"""Minimum number of trials that `tpe` samples at random before it learns; a long search samples a quarter of
`tune.num_trials` at random. With Optuna's default of 10, all trials of a short search would be random."""


def build_searcher(config: Config) -> ResumedSearch:
    """Build the algorithm that chooses points, with the results of the trials that are over.

    Trials that have begun resume with their recorded points. New trials take `first_points` first, then points that the
    sampler draws from the results so far.

    Raises:
        StorageError: a trial's file or the log is damaged.
    """
    section = config.tune
    recipe_sets = build_recipe_sets(config)
    points, space, reports = first_points(config, recipe_sets), build_space(config, recipe_sets), read_reports(config)
    storage = optuna.storages.InMemoryStorage()
    study = build_study(section.mode, storage)
    numbers_with_point: list[int] = []
    numbers_without_point: list[int] = []
    num_trials = len(points) if section.sampler == "grid" else section.num_trials
    for number in range(num_trials):
        name = trial_name(number)
        start, end = read_start(trial_dir(config, name)), read_end(trial_dir(config, name))
        if start and end and end.is_final:
            values = [] if end.reason else [report.value for report in reports.get(name, ())]
            last_value = values[-1] if values else None
            add_result(study, space, start.params, worst_value(section) if last_value is None else last_value)
        elif start or number < len(points):
            study.enqueue_trial(asdict(start.params if start else points[number]))
            numbers_with_point.append(number)
        else:
            numbers_without_point.append(number)
    sampler = TrialSampler(_sampler_factory(config))
    return ResumedSearch(config, space, storage, study.study_name, sampler, numbers_with_point + numbers_without_point)


def _sampler_factory(config: Config) -> Callable[[int], optuna.samplers.BaseSampler]:
    """Return a function that creates a trial's sampler from the trial's number."""

    def create_sampler(number: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
        if config.tune.sampler == "tpe":
            num_random = max(MIN_RANDOM_TRIALS, config.tune.num_trials // 4)
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=num_random)
        return optuna.samplers.RandomSampler(seed=seed)

    return create_sampler
