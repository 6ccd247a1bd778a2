"""The search algorithm that Ray Tune asks for trials: Optuna's samplers, resumable from the trials' folders."""

from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
from ray.tune.search import Searcher

from kp_ray.cluster.resources import runs_at_once
from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError
from kp_ray.tuning.records import read_end, read_reports, read_start, trial_dir, trial_name, worst_value
from kp_ray.tuning.space import Point, add_result, build_space, build_study, first_points, recipe_sets


class TrialSearcher(Searcher):
    """Decide what each trial tries, and when it starts.

    A resumed trial reuses its recorded point. New trials use `first_points` first, then points that the sampler draws
    from the results so far. The number of concurrent trials follows the capacity of the cluster, which may change.

    Ray's `OptunaSearch` is not used because it resumes only from Ray Tune's own snapshot: after a killed driver it
    would draw other points. Here the sampler is seeded per trial number, so a resumed search draws the same points as
    an uninterrupted search with the same results.
    """

    def __init__(self, config: Config) -> None:
        section = config.tune
        super().__init__(metric=section.metric, mode=section.mode)
        sets = recipe_sets(config)
        points = first_points(config, sets)
        self.config, self.space, self.study = config, build_space(config, sets), build_study(section.mode)
        self.waiting: list[tuple[int, Point | None]] = []
        """(number, point) of each trial still to start or resume; the point is None until it is drawn."""
        self.running: dict[str, optuna.trial.Trial] = {}
        """Optuna's trials by Ray Tune's trial id."""
        reports = read_reports(config)
        for number in range(len(points) if section.sampler == "grid" else section.num_trials):
            name = trial_name(number)
            start, end = read_start(trial_dir(config, name)), read_end(trial_dir(config, name))
            if start and end and end.lasting:
                values = [] if end.reason else [report.value for report in reports.get(name, ())]
                last = values[-1] if values else None
                add_result(self.study, self.space, start.params, worst_value(section) if last is None else last)
            else:
                first = points[number] if number < len(points) else None
                self.waiting.append((number, start.params if start else first))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next trial's `number` and `params` (its point as a dict), or None if no trial can start now."""
        try:
            capacity, _ = runs_at_once(self.config)
        except ClusterError:  # a node was lost: wait for a replacement
            capacity = 0
        if len(self.running) >= min(capacity, self.config.tune.max_concurrent or capacity):
            return None
        number, point = self.waiting.pop(0)
        self.study.sampler = self._sampler(number)
        if point:
            self.study.enqueue_trial(asdict(point))
        self.running[trial_id] = self.study.ask(self.space)
        return {"number": number, "params": self.running[trial_id].params}

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        section = self.config.tune
        seed = int(np.random.SeedSequence([self.config.seed, number]).generate_state(1)[0])
        if section.sampler == "tpe":  # Optuna's default of ten random trials would leave a short search random
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, section.num_trials // 4))
        return optuna.samplers.RandomSampler(seed=seed)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report a trial's final value to the study; a trial that an infrastructure failure ended is marked FAIL."""
        trial = self.running.pop(trial_id, None)
        if trial and result and not error and result.get("lasting", True):
            self.study.tell(trial, result[self.metric])
        elif trial:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a search resumes from its trials' folders."""

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state: Ray Tune's snapshot is not used."""
        return {}
