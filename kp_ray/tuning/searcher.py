"""What each trial tries."""

from typing import Any

import numpy as np
import optuna
from ray.tune.search import Searcher

from kp_ray.cluster.resources import runs_at_once
from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError
from kp_ray.tuning.schedulers import read_reports
from kp_ray.tuning.space import first_points, recipe_sets, space
from kp_ray.tuning.trial import read_end, read_facts, trial_dir, trial_name, worst_value


class TrialSearcher(Searcher):
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
        reports = read_reports(config)
        for number in range(len(points) if section.sampler == "grid" else section.num_trials):
            home = trial_dir(config, number)
            begun = read_facts(home)
            if begun and (end := read_end(home)).get("lasting"):
                told = [] if end["reason"] else [one[section.metric] for one in reports.get(trial_name(number), ())]
                value = told[-1] if told else worst_value(section)
                self.study.add_trial(
                    optuna.trial.create_trial(params=begun["params"], distributions=self.distributions, value=value)
                )
            else:
                first = points[number] if number < len(points) else None
                self.left.append((number, begun["params"] if begun else first))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        try:
            fits = runs_at_once(self.config)[0]
        except KpRayError:  # a node left: wait for one
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
