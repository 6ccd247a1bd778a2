"""One trial: what Ray Tune runs, and the notes in the trial's folder."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.tune

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config, TuneConfig
from kp_ray.errors import DivergedError, KpRayError, one_line
from kp_ray.storage import exists, filesystem, join, read_json, read_json_lines, require_keys, write_bytes
from kp_ray.training.logs import LogEntry, read_training_log
from kp_ray.training.run import fit_member
from kp_ray.tuning.space import APPLIED, applied, apply_params, recipe_sets

POLL_S = 0.5
"""How often a trial looks for a new evaluation."""
STOP_S = 60.0
"""How long a trial that is stopped waits for its training run to end."""


def worst_value(section: TuneConfig) -> float:
    return math.inf if section.mode == "min" else -math.inf


def trial_name(number: int) -> str:
    return f"trial-{number:03d}"


def trial_dir(config: Config, number: int) -> str:
    return config.path("tune", "trials", trial_name(number))


class Trial(ray.tune.Trainable):
    """What Ray Tune runs: it trains, and reports every evaluation once, in order, the last one again after a restart.

    The last evaluation is reported when training has ended, so that no scheduler stops a run while it writes its
    weights. A trial that diverges is told to the sampler as the worst result; of one that something else ended, workers
    lost too often, say, the sampler learns nothing.
    """

    values: Mapping[str, Any]
    use_gpu: bool

    def setup(self, config: dict[str, Any]) -> None:
        self.base = build_config(self.values)
        chosen = apply_params(self.base, config["params"], recipe_sets(self.base))
        self.home = trial_dir(self.base, config["number"])
        self.began = time.time()
        facts = {"began": self.began, "params": config["params"], **applied(chosen, config["params"]["recipes"])}
        if not exists(join(self.home, "trial.json")):
            write_bytes(join(self.home, "trial.json"), json.dumps(facts).encode())
        self.total: int = facts["max_iter"]
        own = [line for line in read_log(self.base) if line["trial"] == trial_name(config["number"])]
        self.seconds = max((line["seconds"] for line in own), default=0.0)
        self.told = min(max((line["iteration"] for line in own), default=0), self.total - 1)
        end = read_end(self.home)
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
            for one in evaluations_of(read_trial_log(self.home)):
                known = math.isfinite(one.get(self.base.tune.metric, math.nan))
                if self.told < one["iteration"] and known and (ended or one["iteration"] < self.total):
                    self.told = one["iteration"]
                    return self._report(one, done=self.told == self.total)
            if ended:
                why, lasting = self._why()
                note_end(self.home, why, lasting=lasting)
                worst = {self.base.tune.metric: worst_value(self.base.tune), "iteration": 0, "lasting": lasting}
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
            if not isinstance(error.cause, KpRayError):
                raise
            return str(error.cause), isinstance(error.cause, DivergedError)
        return f"its last evaluation has no {self.base.tune.metric}", True

    def cleanup(self) -> None:
        if self.training is not None and not ray.wait([self.training], timeout=0)[0]:
            ray.cancel(self.training)
            ray.wait([self.training], timeout=STOP_S)


def _fit(values: Mapping[str, Any], home: str, use_gpu: bool) -> None:
    config = build_config(values)
    fit_member(config, config.train.members[0], use_gpu=use_gpu, folder=home)


def note_end(home: str, reason: str = "", *, lasting: bool = True) -> None:
    """Say that a trial ended, and why if it failed; one whose end is not `lasting` is tried again with the search."""
    if not exists(join(home, "end.json")):
        told = {"reason": one_line(reason)[-300:], "lasting": lasting}
        write_bytes(join(home, "end.json"), json.dumps(told).encode())


def read_end(home: str) -> dict[str, Any]:
    return _read_note(home, "end.json", ("reason", "lasting"))


def read_facts(home: str) -> dict[str, Any]:
    return _read_note(home, "trial.json", ("began", "params", "max_iter", *APPLIED))


def _read_note(home: str, name: str, keys: Sequence[str]) -> dict[str, Any]:
    """A note in a trial's folder; empty if there is none.

    Raises:
        RunStateError: it is damaged.
    """
    path = join(home, name)
    return require_keys(read_json(path, _anew(home)), path, keys, _anew(home)) if exists(path) else {}


def _anew(home: str) -> str:
    return f"delete {home}, and tune/best.yaml if it is there, and run the same command"


def read_log(config: Config) -> list[dict[str, Any]]:
    keys = ("trial", "iteration", "seconds", config.tune.metric)
    return read_json_lines(config.path("tune", "log.jsonl"), keys, "delete this file and run the same command")


def read_trial_log(home: str) -> list[LogEntry]:
    """Read the training log of a trial.

    Raises:
        StorageError: it is damaged.
    """
    return read_training_log(home, fix=_anew(home))


def evaluations_of(log: Sequence[LogEntry]) -> list[dict[str, Any]]:
    """What a trial's own log says of its evaluations: `iteration` (counted from 1) and each metric, in order."""
    return [{"iteration": entry.iteration + 1, **entry.evaluation} for entry in log if entry.evaluation]
