"""Departures from Ray Tune's documented use (Ray 2.60), each with its reason; the other modules follow Ray's guide.

Ray's guide: a function trains with a trainer and `TuneReportCallback`; `OptunaSearch` and a scheduler steer the trials;
`Tuner.restore` resumes them from Ray Tune's own snapshot. The departures:

1. A trial is a class, and its training run is a task: `TrainingRun`.
2. A trial's actor takes no CPU, because training runs may need all CPUs: `cluster.placement.trial_resources`. With a
   CPU per trial, as in Ray's guide, trials hold the CPUs for which their training runs wait (two trials on two CPUs
   are a deadlock).
3. A search resumes from its trials' folders, not from a snapshot: `TrialSampler`, `ResumedSearch`,
   `ReplayingScheduler`.
4. The trial with the config's own settings is never stopped early: `ReplayingScheduler`.
5. The number of concurrent trials follows the capacity of the cluster: `ResumedSearch.suggest`.
6. Credentials are not copied into runtime environments, and Ctrl-C ends the driver: `prepare_environment`.
7. The cause of an error is read from the exception, not from Ray Tune's text: `read_trial_error`,
   `find_callback_error`.
"""

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import ray
import ray.train
import ray.tune
from optuna.distributions import BaseDistribution
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kp_ray.cluster.placement import fit_task_options
from kp_ray.cluster.ray_internals import keep_credentials_out_of_tune_logs
from kp_ray.cluster.resources import training_capacity
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError, KpRayError
from kp_ray.training.fit import fit_member
from kp_ray.tuning.records import OWN_TRIAL, trial_name
from kp_ray.tuning.reports import ReportCallback, ReportQueue

STOP_S = 60.0
"""Seconds that a stopped trial waits for its training run to end."""


class TrainingRun:
    """The training run of a trial: a task that can be cancelled, and a queue of the run's reports.

    Ray's guide calls the trainer in a function with `TuneReportCallback`. That fails in two ways:

    - Ray Tune ends a function's process without waiting for its training run. A helper of Ray Train must then remove
      the run's placement group (ray-project/ray#58515), but on a machine with several clusters this helper does not
      find its cluster (#25639; the fix #54468 was reverted by #54549): the CPUs stay reserved, and later trials wait
      for them forever. Here `stop` cancels the task and waits; Ray Train handles the interrupt and removes its workers.
    - Ray Tune uses one thread to put the reports of `TuneReportCallback` into a queue of size 1 and to take them out
      (#55556). If the function ends while the queue is full, the thread waits forever for room that only it could make.
      Here the queue of reports has no limit.
    """

    def __init__(self, config: Config, folder: str, *, use_gpu: bool) -> None:
        """Start the training run of the config's first member in a trial's folder, or resume the run."""
        same_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._reports = ray.remote(ReportQueue).options(num_cpus=0, scheduling_strategy=same_node).remote()
        self._next_report = self._reports.get.remote()
        # Without a strategy Ray would put the task into the trial's placement group, whose memory is too small for it.
        fit = ray.remote(**fit_task_options(), scheduling_strategy="DEFAULT")(_fit)
        self._task = fit.remote(config.to_dict(), folder, use_gpu, self._reports)

    def wait_for_report(self) -> bool:
        """Wait until the run reports, then return True; return False once the run has ended."""
        finished_refs, _ = ray.wait([self._next_report, self._task], num_returns=1)
        if self._next_report not in finished_refs:
            return False
        ray.get(self._next_report)
        self._next_report = self._reports.get.remote()
        return True

    def wait_for_end(self) -> None:
        """Wait for the end of the run, and raise its error if it failed.

        Raises:
            RayTaskError: the run failed; its attribute `cause` is a KpRayError unless kp_ray or Ray has a bug.
            RayError: the task's process or node died.
        """
        ray.get(self._task)

    def stop(self) -> None:
        """Cancel the run, and wait up to `STOP_S` until its workers are gone."""
        if not ray.wait([self._task], timeout=0)[0]:
            ray.cancel(self._task)
            ray.wait([self._task], timeout=STOP_S)


def _fit(values: Mapping[str, Any], folder: str, use_gpu: bool, reports: Any) -> None:
    config = build_config(values)
    fit_member(config, config.train.members[0], use_gpu=use_gpu, folder=folder, callbacks=[ReportCallback(reports)])


class TrialSampler(optuna.samplers.BaseSampler):
    """Samples each trial with its own sampler, whose seed follows from the trial's number.

    A single sampler for the whole search, as in Ray's guide, would sample other points after a resume, because the
    state of its random numbers is lost with the driver.
    """

    def __init__(self, create_sampler: Callable[[int], optuna.samplers.BaseSampler]) -> None:
        """Prepare to sample trial 0.

        Args:
            create_sampler: creates a trial's sampler from the trial's number.
        """
        self._create_sampler = create_sampler
        self.select_trial(0)

    def select_trial(self, number: int) -> None:
        """Prepare to sample the trial with this number."""
        self._sampler = self._create_sampler(number)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Delegate to the trial's sampler."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Delegate to the trial's sampler."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: optuna.trial.FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Delegate to the trial's sampler."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


class ResumedSearch(OptunaSearch):
    """Ray's Optuna search over a study that already has the search's earlier trials.

    `Tuner.restore` would resume from a snapshot that lags behind the trials when a driver is killed. Here the study is
    filled from the trials' folders. Ray's `points_to_evaluate` and `evaluated_rewards` cannot do this: together they
    take evaluated points only, but the study must also hold unfinished trials, in the order of their numbers.
    """

    def __init__(
        self,
        config: Config,
        space: Mapping[str, BaseDistribution],
        storage: optuna.storages.BaseStorage,
        study_name: str,
        sampler: TrialSampler,
        numbers: Sequence[int],
    ) -> None:
        """Continue a study.

        Args:
            config: the search's config.
            space: distribution of each parameter.
            storage: holds the study.
            study_name: the study's name in the storage.
            sampler: the study's sampler.
            numbers: numbers of the trials to run, in order. The first trials get the points that `enqueue_trial` put
                into the study.
        """
        super().__init__(
            dict(space),
            metric=config.tune.metric,
            mode=config.tune.mode,
            sampler=sampler,
            study_name=study_name,
            storage=storage,
        )
        self.numbers = list(numbers)
        self._config, self._trial_sampler = config, sampler
        self._running_ids: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next trial's `number` and `params` (its point as a dict), or None if no trial can start now.

        Ray's `ConcurrencyLimiter` has a fixed limit; here the limit follows the capacity of the cluster, which may
        change.
        """
        try:
            capacity, _ = training_capacity(self._config)
        except ClusterError:  # a node was lost, so the search waits for a replacement
            capacity = 0
        if len(self._running_ids) >= min(capacity, self._config.tune.max_concurrent or capacity):
            return None
        number = self.numbers.pop(0)
        self._trial_sampler.select_trial(number)
        self._running_ids.add(trial_id)
        return {"number": number, "params": super().suggest(trial_id)}

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a search resumes from its trials' folders."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record no intermediate value: samplers ignore these, and Optuna warns if a retried trial repeats one."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record a trial's final value; a trial that is tried again, e.g. after its node was lost, gets no value."""
        self._running_ids.discard(trial_id)
        has_value = result is not None and not error and result.get("is_final", True)
        super().on_trial_complete(trial_id, result if has_value else None, error=not has_value)


class ReplayingScheduler(TrialScheduler):
    """A scheduler for a search that may resume: when Ray Tune adds a trial, it records the trial's earlier reports.

    Earlier reports are those from before the resume. Later reports are compared with them, but they themselves stop no
    trial. Ray Tune's own schedulers resume only from Ray Tune's snapshot.

    The trial with the config's own settings is never stopped, so that it can be compared with the best trial after the
    same number of iterations.
    """

    earlier_results: Mapping[str, Sequence[dict[str, Any]]]
    """The reports of each trial from before the resume, as Ray Tune's results, by the trial's name."""
    record_result: Callable[..., Any]
    """The method that records a result; called with the controller, the trial and the result."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for result in self.earlier_results.get(trial_name(trial.config["number"]), ()):
            self.record_result(tune_controller, trial, result)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if trial_name(trial.config["number"]) != OWN_TRIAL:
            return str(super().on_trial_result(tune_controller, trial, result))
        self.record_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE

    def add_ended_trial(self, number: int) -> None:
        """Record the reports of a trial that is over and that Ray Tune does not run again."""
        self.on_trial_add(None, RayTrial("ended", config={"number": number}, trial_id=trial_name(number), stub=True))


class ReplayingAsha(ReplayingScheduler, ASHAScheduler):
    """ASHA for a search that may resume."""

    record_result = ASHAScheduler.on_trial_result


class ReplayingMedian(ReplayingScheduler, MedianStoppingRule):
    """The median stopping rule for a search that may resume."""

    # Unlike on_trial_result, this also records a result of a trial that the rule has decided to stop.
    record_result = MedianStoppingRule.on_trial_complete


def prepare_environment() -> None:
    """Keep credentials out of Ray's logs, and let Ctrl-C end the driver.

    Ray Tune copies the driver's AWS credentials into the runtime environment of each trial, and Ray writes runtime
    environments to its logs (ray-project/ray#40549). No trial needs the copy: each node has its own credentials.
    """
    keep_credentials_out_of_tune_logs([name for name in os.environ if name.startswith("AWS_")])
    # Ray Tune's own SIGINT handler would make an interrupted search look finished.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the trials' folders hold kp_ray's own logs


def read_trial_error(trial: Any) -> Exception:
    """Return the exception that ended one of Ray Tune's trials.

    Ray's own `get_pickled_error` reads from the storage path, to which the file has not been copied yet (Ray 2.60).
    """
    if trial.pickled_error_file:
        error: Exception = pickle.loads(Path(trial.pickled_error_file).read_bytes())  # noqa: S301  (Ray wrote it)
        return error
    return ray.tune.TuneError(Path(trial.error_file).read_text())


def find_callback_error(error: BaseException) -> BaseException:
    """Return the KpRayError that a callback of kp_ray raised; return `error` if there is none.

    Ray Tune raises a TuneError while it handles a callback's error, which is thus the TuneError's `__context__`.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KpRayError):
        cause = cause.__cause__ or cause.__context__
    return cause or error
