"""Searches that finish, resume, are refused or lose processes, and searches on a cluster that changes."""

import contextlib
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from kp_ray.config.load import build_config, load_config
from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError, ConfigError, KpRayError, RunStateError, StoppedError, StorageError, StoreError
from kp_ray.storage import writer_lock
from kp_ray.store.plan import make_plan
from kp_ray.store.write import write_store
from kp_ray.training.run import train
from kp_ray.training.search_result import SearchResult, apply_result, read_member_search, read_result, write_result
from kp_ray.training.tuned import apply_search, record_search
from kp_ray.tuning.search import TuneSummary, _refuse_unfinished_trials, has_matching_result, tune
from kp_ray.tuning.trials import read_trials
from tests.helpers.clusters import free_port, list_leftovers
from tests.helpers.data import tiny_config
from tests.helpers.processes import file_times, finish, finish_with_error, wait_until
from tests.helpers.searches import (
    FIXED_RANGES,
    FULL_TRIALS,
    assert_all_finished,
    read_lines,
    start_search,
    wait_for_table,
    write_search_log,
    write_trial,
)

TRIAL_PROCESS = r"ray::(Trial|ResourceTrainable)"
"""Pattern of the two names of a trial's process, which Ray renames during its start."""
MakeConfig = Callable[..., Config]
ProgressCall = tuple[str, int, int, str]
FinishedSearch = tuple[Config, TuneSummary, list[ProgressCall]]


@pytest.fixture(scope="module")
def finished_search(make_search_config: MakeConfig) -> FinishedSearch:
    """Search with four trials, one of which diverges; return config, summary and progress calls."""
    section = {
        "num_trials": 4,
        "max_iter": 4,
        "eval_period": 2,
        "metric": "pck_0.1",
        "min_gain": 0,  # so that the best trial is chosen
        "base_lr": [1e-4, 1e12],
        "points": [{"base_lr": 1e12, "warmup": 0}],
    }
    config = make_search_config(tune=section, train={"optimizer": "sgd", "checkpoint_period": 3})
    calls: list[ProgressCall] = []
    summary = tune(config, lambda name, done, total, note="": calls.append((name, done, total, note)))
    return config, summary, calls


@pytest.mark.slow
def test_the_tables_agree_with_the_training_logs_and_the_reports(finished_search: FinishedSearch) -> None:
    config, summary, calls = finished_search
    table = pd.read_parquet(config.path("tune", "trials.parquet"))
    assert len(table) == summary.trials == 4
    assert set(table.status) <= {"finished", "stopped", "failed"}
    for row in table[table.status != "failed"].itertuples():
        log = read_lines(config, "trials", row.trial, "metrics.json")
        assert len(log) == row.trained
        assert row.trained == row.iterations or row.status == "stopped"  # training continues until the stop arrives
        assert [evaluation["iteration"] for evaluation in row.evaluations] == list(range(2, row.iterations + 1, 2))
        assert max(line["lr"] for line in log) <= row.base_lr * (1 + 1e-9)
    log = read_lines(config, "log.jsonl")
    for row in table[table.status != "failed"].itertuples():
        reported = [line["iteration"] for line in log if line["trial"] == row.trial]
        evaluated = [evaluation["iteration"] for evaluation in row.evaluations]
        # A trial can train on, even to its last iteration, before the scheduler's stop arrives.
        num_missing = len(evaluated) - len(reported)
        assert reported
        assert reported == evaluated[: len(reported)]
        assert num_missing == 0 or row.trial != "trial-000"  # the config's own settings are never stopped
    assert summary.iterations == table.trained.sum() <= summary.iterations_without_stops == 16
    assert {name for name, _, _, _ in calls} == set(table.trial)
    assert all(done <= total == 4 for _, done, total, _ in calls)
    assert any(note.startswith("running pck_0.1 ") for _, _, _, note in calls)
    assert not list(Path(config.path("tune", "trials")).glob("*/checkpoint_0*"))


@pytest.mark.slow
def test_a_trial_that_diverges_is_recorded_with_its_reason_and_the_search_continues(
    finished_search: FinishedSearch,
) -> None:
    config, summary, _ = finished_search
    table = pd.read_csv(config.path("tune", "trials.csv"))
    failed_rows = table[table.status == "failed"]
    assert 1e12 in set(failed_rows.base_lr)
    assert all("no longer finite" in reason for reason in failed_rows.reason)
    assert summary.failed == len(failed_rows) < 4


@pytest.mark.slow
def test_best_yaml_is_a_config_with_the_best_trials_settings(finished_search: FinishedSearch) -> None:
    config, summary, _ = finished_search
    table = pd.read_csv(config.path("tune", "trials.csv"))
    assert summary.best == pytest.approx(table[table.iterations == 4]["pck_0.1"].max())
    best_config = load_config(summary.config)
    assert best_config.train.base_lr == pytest.approx(summary.params.base_lr)
    assert (best_config.train.max_iter, best_config.train.eval_period) == (
        config.train.max_iter,
        config.train.eval_period,
    )
    assert best_config.train.members == config.train.members
    assert (best_config.train.tuned, best_config.tune.num_trials) == (False, 0)
    result = read_result(config)
    assert (result.trial, result.value, result.own_value) == (summary.trial, summary.best, summary.own)
    assert apply_search(config) == (apply_result(config, result), result)
    assert table.set_index("trial").status["trial-000"] == "finished"  # the config's own settings are never stopped


@pytest.mark.slow
def test_train_uses_the_settings_that_the_search_found(finished_search: FinishedSearch) -> None:
    config, _, _ = finished_search
    result = read_result(config)
    assert train(config).search == result
    assert read_member_search(config.member_dir("a")) == result
    log = [json.loads(line) for line in Path(config.member_dir("a"), "metrics.json").read_text().splitlines()]
    base_lr = result.train.get("base_lr", config.train.base_lr)
    assert base_lr / 1000 <= max(line["lr"] for line in log) <= base_lr * (1 + 1e-9)  # warm-up begins at a thousandth
    assert load_config(config.path("config.yaml")) == config


@pytest.mark.slow
def test_a_finished_search_is_not_repeated_and_other_settings_are_refused(finished_search: FinishedSearch) -> None:
    config, summary, _ = finished_search
    files = list(Path(config.path("tune", "trials")).rglob("*"))
    times = file_times(*files)
    assert tune(config) == summary
    assert list(Path(config.path("tune", "trials")).rglob("*")) == files
    assert file_times(*files) == times
    values = config.to_dict()
    values["tune"]["base_lr"] = [0.001, 0.01]
    with pytest.raises(RunStateError, match=r"tune\.base_lr \[0.0001, 1000000000000.0\], now"):
        tune(build_config(values))
    values = config.to_dict()
    values["train"]["cpus_per_worker"] = 1
    assert has_matching_result(build_config(values))  # CPUs per worker do not change the result


@pytest.mark.slow
def test_a_finished_search_leaves_no_actor_and_no_placement_group(finished_search: FinishedSearch) -> None:
    wait_until(lambda: not list_leftovers(), timeout_s=60, poll_s=0.5)


ONE_AXIS = {
    "num_trials": 4,
    "max_iter": 4,
    "eval_period": 2,
    **FIXED_RANGES,
    "warmup": [0.25, 0.25],
    "schedules": ["cosine"],
    "gamma": [0.8, 0.8],
    "base_lr": [1e-4, 1e-2],
}
"""Values of a `tune` section that searches the base learning rate alone; the tiny config with a cosine is inside."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "section",
    [{"sampler": "random", "scheduler": "median"}, {"sampler": "grid", "scheduler": "none"}, {"scheduler": "asha"}],
    ids=lambda section: section["scheduler"],
)
def test_every_sampler_and_scheduler_finishes_a_search(section: dict[str, str], make_search_config: MakeConfig) -> None:
    config = make_search_config(tune={**ONE_AXIS, **section}, train={"schedule": "cosine"})
    summary = tune(config)
    table = pd.read_csv(config.path("tune", "trials.csv"))
    is_grid = section.get("sampler") == "grid"  # three learning rates, the config's in the middle
    assert summary.trials == len(table) == len(set(table.base_lr.round(9))) == (3 if is_grid else 4)
    assert set(table.status) <= {"finished", "stopped"}
    if is_grid:
        assert sorted(table.base_lr.round(9)) == [1e-4, 1e-3, 1e-2]
        assert list(table.status) == ["finished"] * 3
    load_config(summary.config)


@pytest.mark.slow
def test_trials_that_lost_their_processes_are_retried_by_the_same_command(make_search_config: MakeConfig) -> None:
    config = make_search_config(
        tune={**FULL_TRIALS, "num_trials": 2, "max_iter": 12, "max_concurrent": 1}, train={"max_failures": 0}
    )
    search = start_search(config)
    for number, pattern in enumerate(("RayTrainWorker", TRIAL_PROCESS)):
        wait_for_table(config, lambda table, row=number: len(table) > row and table.iterations[row] >= 2, search)
        kill_process(pattern, search.pid)
    assert "no trial reported rmse; the first reason: " in finish_with_error(search)
    table = pd.read_csv(config.path("tune", "trials.csv"))
    assert list(table.status) == ["failed"] * 2
    assert table.reason[0].startswith("member a: training stopped: ")
    assert all(table.reason.str.contains("died"))
    finish(start_search(config))
    final_table = assert_all_finished(config, 2, 12)
    assert list(final_table.trial) == list(table.trial)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_search_over_damaged_parts_resumes_when_they_are_repaired(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(sample_data, tmp_path / "run", tune={**FULL_TRIALS, "num_trials": 1})
    write_store(make_plan(config))
    contents = {part: part.read_bytes() for part in Path(config.path("store")).rglob("*.parquet")}
    for part, content in contents.items():
        middle = len(content) // 2  # this byte belongs to the images
        part.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(KpRayError, match=r"no trial reported rmse; the first reason: .*\.parquet: damaged"):
        tune(config)
    for part, content in contents.items():
        part.write_bytes(content)
    summary = tune(config)
    assert (summary.trials, summary.failed) == (1, 0)
    assert_all_finished(config, 1, 6)


DAMAGED_FILES = [
    *((f"trials/trial-001/{name}", content) for name in ("trial.json", "end.json") for content in ("", "5", "{}")),
    *(("trials/trial-001/metrics.json", content) for content in ('{"cut', "5", "{}")),
    *(("log.jsonl", content) for content in ('{"cut', "5", "{}")),
    *(("settings.json", content) for content in ("", '{"cut', "5")),
]


@pytest.mark.parametrize(("name", "content"), DAMAGED_FILES)
def test_the_error_about_a_damaged_file_of_a_search_names_the_file(
    name: str, content: str, make_config: MakeConfig
) -> None:
    config = make_config(tune=FULL_TRIALS)
    write_trial(config, "trial-001", 1.0, {2: 1.0}, end={})
    write_search_log(config, ("trial-001", 2, 1.0))
    path = Path(config.path("tune", name))
    path.write_text(content)
    fix = f"delete {path.parent}, and " if "trials" in name else "delete this file and "
    with pytest.raises(StorageError, match=rf"{path}: damaged \(.*\): {fix}"):
        tune(config)


def test_a_finished_search_without_its_chosen_trial_is_refused_and_its_tables_are_kept(make_config: MakeConfig) -> None:
    config = make_config(tune=FULL_TRIALS)
    record_search(config)
    write_result(config, SearchResult("trial-001", "rmse", 6, 1.0, 2.0, {"base_lr": 0.002}))
    table = Path(config.path("tune", "trials.csv"))
    table.write_text("kept")
    with pytest.raises(RunStateError, match=r"tune/trials/trial-001: the chosen trial is missing: restore"):
        tune(config)
    assert table.read_text() == "kept"


def test_a_finished_search_keeps_the_settings_that_its_trials_were_scored_with(make_config: MakeConfig) -> None:
    config = make_config(tune=FULL_TRIALS)
    write_trial(config, "trial-000", 1.0, {6: 1.0}, end={})
    write_search_log(config, ("trial-000", 6, 1.0))
    record_search(config)
    write_result(config, SearchResult("trial-000", "rmse", 6, 1.0, 1.0, {}))
    path = Path(config.path("tune", "settings.json"))
    content = path.read_text()
    tune(build_config({**config.to_dict(), "predict": {**config.to_dict()["predict"], "decode": "argmax"}}))
    assert path.read_text() == content


@pytest.mark.parametrize("folder", ["tune", "store"])
def test_a_search_is_refused_while_another_process_searches_or_augments(make_config: MakeConfig, folder: str) -> None:
    config = make_config(tune=FULL_TRIALS)
    with (
        writer_lock(config.path(folder)),
        pytest.raises(RunStateError, match=rf"{config.path(folder)}: another process is using this folder"),
    ):
        tune(config)


@pytest.mark.usefixtures("ray_cluster")
def test_a_search_that_cannot_begin_is_refused(
    make_search_config: MakeConfig, sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(sample_data, tmp_path / "run", split={"fraction": 0})
    write_store(make_plan(config))
    with pytest.raises(StoreError, match=r"raise split\.fraction and run augment"):
        tune(config)
    with pytest.raises(ClusterError, match=r"the cluster has 4 CPUs .* lower train\.num_workers"):
        tune(make_search_config(train={"num_workers": 6, "cpus_per_worker": 1}, tune={"recipes": {}}))
    with pytest.raises(KpRayError, match=r"holds no recipe 'Rotate46'"):
        tune(make_search_config(tune={"recipes": {"odd": ["Rotate46"]}}))
    with pytest.raises(ConfigError, match=r"train\.num_workers"):
        tune(make_search_config(train={"num_workers": {"min": 1, "max": 2}}))


@pytest.mark.slow
def test_the_same_command_resumes_a_search_whose_driver_was_killed(make_search_config: MakeConfig) -> None:
    config = make_search_config(tune={**FULL_TRIALS, "max_concurrent": 1})
    search = start_search(config)
    table = wait_for_table(
        config, lambda table: len(table) > 1 and table.status[0] == "finished" and table.iterations[1] >= 2, search
    )
    search.kill()
    search.wait()
    folder = Path(config.path("tune", "trials", table.trial[0]))
    times = file_times(*(path for path in folder.rglob("*") if path.is_file()))
    summary_json = finish(start_search(config, "tune.max_concurrent=2"))  # the number of concurrent trials may change
    assert summary_json["trials"] == 3
    final_table = assert_all_finished(config, 3, 6)
    assert list(final_table.trial[:2]) == list(table.trial[:2])
    kept_files = {path for path in times if path.exists()}
    assert set(times) - kept_files == {path for path in times if "checkpoint_0" in str(path)}
    assert file_times(*kept_files) == {path: times[path] for path in kept_files}
    log = read_lines(config, "log.jsonl")
    assert len({(line["trial"], line["iteration"]) for line in log}) == len(log) == 9


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_trial_are_replaced(make_search_config: MakeConfig) -> None:
    config = make_search_config(tune={**FULL_TRIALS, "num_trials": 1, "max_iter": 12})
    summaries: list[TuneSummary] = []
    thread = threading.Thread(target=lambda: summaries.append(tune(config)))
    thread.start()
    for iterations, pattern in ((2, "RayTrainWorker"), (6, TRIAL_PROCESS)):
        wait_for_table(config, lambda table, minimum=iterations: bool(len(table)) and table.iterations[0] >= minimum)
        kill_process(pattern)
    thread.join()
    assert summaries[0].trials == 1
    assert_all_finished(config, 1, 12)
    wait_until(lambda: not list_leftovers(), timeout_s=60, poll_s=0.5)


def kill_process(pattern: str, parent_pid: int | None = None) -> None:
    """Kill the only process whose name or command matches a pattern.

    Args:
        pattern: a regular expression.
        parent_pid: id of the process whose descendants are searched; None: the id of this process.
    """
    processes = []
    for process in psutil.Process(parent_pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if re.search(pattern, " ".join([process.name(), *process.cmdline()])):
                processes.append(process)
    assert len(processes) == 1, processes
    processes[0].kill()


@pytest.mark.slow
def test_trials_of_two_workers_that_need_every_cpu_run_one_after_the_other(make_search_config: MakeConfig) -> None:
    workers = {"num_workers": 2, "cpus_per_worker": 0.75, "ims_per_batch": 2}
    config = make_search_config(
        tune={**FULL_TRIALS, "num_trials": 2, "max_iter": 12}, train=workers, cluster={"num_cpus": 2}
    )
    summary_json = finish(start_search(config))
    table = assert_all_finished(config, 2, 6)  # Detectron2's rule: twice the batch, half the iterations, twice the LR
    assert table.base_lr[0] == pytest.approx(2 * config.train.base_lr)
    assert load_config(summary_json["config"]).train.base_lr in [pytest.approx(lr / 2) for lr in table.base_lr]


@pytest.mark.slow
def test_more_trials_run_when_a_node_joins_and_all_finish_when_it_leaves(make_search_config: MakeConfig) -> None:
    from ray.cluster_utils import Cluster

    config = make_search_config(tune={**FULL_TRIALS, "num_trials": 4, "max_iter": 16})
    # The test session's cluster uses the default port of the dashboard.
    head_args = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head_args)
    try:
        search = start_search(config, f"cluster.address={cluster.address}")
        table = wait_for_table(config, lambda table: bool(len(table)) and table.iterations[0] >= 2, search)
        assert list(table.status) == ["running"]
        node = cluster.add_node(num_cpus=1)
        wait_for_table(config, lambda table: len(table) > 1 and 2 <= table.iterations[1] < 16, search)
        first, second = read_trials(config)[:2]
        assert first.seconds is not None
        assert second.start.began < first.start.began + first.seconds  # so it runs on the new node
        cluster.remove_node(node, allow_graceful=False)
        assert finish(search)["trials"] == 4
    finally:
        cluster.shutdown()
    assert_all_finished(config, 4, 16)


@pytest.mark.slow
def test_workers_that_fit_the_cluster_but_not_its_nodes_are_refused(make_search_config: MakeConfig) -> None:
    from ray.cluster_utils import Cluster

    config = make_search_config(tune=FULL_TRIALS, train={"num_workers": 4, "cpus_per_worker": 2, "ims_per_batch": 1})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=3)
        message = finish_with_error(start_search(config, f"cluster.address={cluster.address}"))
    finally:
        cluster.shutdown()
    assert "needs 4 workers of 2 CPUs each, the nodes have room for 3" in message


def test_trials_that_failed_for_a_cause_that_may_pass_keep_the_search_unfinished(
    make_config: Callable[..., Config],
) -> None:
    config = make_config(tune={"num_trials": 2})
    write_trial(config, "trial-000", 1.0, {2: 50.0}, end={})
    _refuse_unfinished_trials(config, read_trials(config))
    write_trial(config, "trial-001", 1.0, {}, end={"reason": "the disk is full", "lasting": False})
    with pytest.raises(StoppedError, match=r"1 of 2 trials failed, first trial-001: the disk is full: correct"):
        _refuse_unfinished_trials(config, read_trials(config))
