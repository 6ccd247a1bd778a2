"""The best checkpoint is kept, and a stopped run resumes from its last checkpoint with the same results."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray.cluster_utils import Cluster

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import StorageError
from kp_ray.training.run import train
from tests.helpers.clusters import list_leftovers
from tests.helpers.processes import (
    RAY,
    finish,
    last_json,
    run_command,
    run_kp_ray,
    set_options,
    start_kp_ray,
    wait_until,
)
from tests.helpers.training import (
    TWO_WORKERS,
    TrainedMember,
    assert_same_training,
    count_log_lines,
    find_train_workers,
    read_log_lines,
    read_weights,
)

MakeConfig = Callable[..., Config]


def test_the_best_checkpoint_is_kept_beside_the_last(trained_member: TrainedMember) -> None:
    rmse_by_iteration = {
        line["iteration"] + 1: line["val/rmse"] for line in read_log_lines(trained_member.config) if "val/rmse" in line
    }
    folder = Path(trained_member.config.member_dir("a"))
    best_checkpoint = torch.load(folder / "model_best.pth", weights_only=True)
    assert rmse_by_iteration[best_checkpoint["iteration"]] == min(rmse_by_iteration.values())
    kept_checkpoints = {int(path.name.removeprefix("checkpoint_")) for path in folder.glob("checkpoint_0*")}
    # A checkpoint's folder is named by the iterations that one worker alone would need. Two workers trained this member
    # for 8 iterations, so its last checkpoint is number 16.
    assert kept_checkpoints == {2 * best_checkpoint["iteration"], 16}


def test_a_run_without_its_final_weights_resumes_from_the_last_checkpoint(trained_member: TrainedMember) -> None:
    config = trained_member.config
    earlier_weights = read_weights(config)
    Path(config.member_dir("a"), "model_final.pth").unlink()
    (member,) = train(config).members
    assert member.result is not None
    assert member.result.resumed_from == member.result.iterations == 8
    assert "8 iterations (from the checkpoint at 8), validation RMSE " in member.line()
    assert [line["iteration"] for line in read_log_lines(config)] == list(range(8))  # no iteration ran twice
    assert all(torch.equal(value, earlier_weights[name]) for name, value in read_weights(config).items())


@pytest.mark.parametrize("damage", ["record", pytest.param("checkpoint", marks=pytest.mark.slow)])
def test_a_damaged_record_and_a_missing_checkpoint_are_named_with_what_to_delete(
    trained_member: TrainedMember, tmp_path: Path, damage: str
) -> None:
    run_dir = shutil.copytree(trained_member.config.run_dir, tmp_path / "run")
    config = build_config({**trained_member.config.to_dict(), "run_dir": str(run_dir)})
    folder = Path(config.member_dir("a"))
    (folder / "model_final.pth").unlink()
    if damage == "record":
        (folder / "checkpoint_manager_snapshot.json").write_text("")
    else:
        shutil.rmtree(next(folder.glob("checkpoint_0*")))
    with pytest.raises(
        StorageError, match=rf"{folder}/checkpoint_manager_snapshot\.json: .*, or delete {folder} to train"
    ):
        train(config)


@pytest.mark.slow
def test_a_killed_worker_costs_at_most_a_checkpoint_period_and_changes_no_result(
    make_config: MakeConfig, trained_member: TrainedMember
) -> None:
    config = make_config(train=TWO_WORKERS)
    with ThreadPoolExecutor() as executor:
        training = executor.submit(train, config)
        wait_until(lambda: count_log_lines(config) >= 5)
        num_logged = count_log_lines(config)
        workers = find_train_workers(psutil.Process())
        assert len(workers) == 2
        workers[1].kill()
        result = training.result().members[0].result
    assert result is not None
    assert result.iterations == 8
    assert 0 < result.resumed_from < 8
    assert result.resumed_from >= num_logged - config.train.checkpoint_period
    assert_same_training(config, trained_member.config)
    wait_until(lambda: not list_leftovers(), timeout_s=60, poll_s=0.5)


@pytest.mark.slow
def test_after_a_killed_driver_the_same_command_resumes(make_config: MakeConfig) -> None:
    # Train for 60 iterations: the workers outlive the driver by seconds, and must not finish in that time.
    settings = {"max_iter": 60, "eval_period": 20, "checkpoint_period": 4}
    uninterrupted_config, killed_config = make_config(train=settings), make_config(train=settings)
    for config in (uninterrupted_config, killed_config):
        Path(config.run_dir, "c.yaml").write_text(config.to_yaml())
    command = ("train", "c.yaml", "--json")
    finish(start_kp_ray(*command, cwd=uninterrupted_config.run_dir))
    process = start_kp_ray(*command, cwd=killed_config.run_dir)
    wait_until(lambda: count_log_lines(killed_config) >= 5, process)
    num_logged = count_log_lines(killed_config)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # Make incomplete checkpoints like those of interrupted uploads, which Ray Train has not recorded.
    saved_iterations = [
        int(path.name.removeprefix("checkpoint_")) for path in Path(killed_config.member_dir("a")).glob("checkpoint_0*")
    ]
    for iteration in range(max(saved_iterations) + 1, 60):
        folder = Path(killed_config.member_dir("a"), f"checkpoint_{iteration:07d}")
        folder.mkdir(exist_ok=True)  # workers outlive the driver by seconds
        (folder / "checkpoint.pth").write_bytes(b"cut off")
    resumed_process = run_kp_ray(*command, cwd=killed_config.run_dir)
    assert resumed_process.returncode == 0, resumed_process.stderr
    result = last_json(resumed_process.stdout)["a"]
    assert result["iterations"] == 60
    assert num_logged - 4 <= result["resumed_from"] < 60
    assert f"from the checkpoint at {result['resumed_from']}" in resumed_process.stderr
    assert_same_training(killed_config, uninterrupted_config)


@dataclass
class ElasticRun:
    """`kp-ray train` with one or two workers, on a cluster of two nodes that hold a worker each."""

    config: Config
    cluster: Cluster
    node: Any
    """The node that is not the head."""
    process: subprocess.Popen[str]

    def finish_without_node(self) -> dict[str, Any]:
        """Remove the node, wait for the end of the run, and return the member's summary."""
        self.cluster.remove_node(self.node, allow_graceful=False)
        return dict(finish(self.process)["a"])


@pytest.fixture
def start_elastic_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[dict[str, Any]], ElasticRun]]:
    """Return a function that starts an elastic run with `train` settings and waits until both workers train."""
    # Just after a node is lost, Ray still counts the node and tries to start two workers, so limit the wait for them.
    # The cluster's nodes inherit this variable.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    clusters: list[Cluster] = []

    def start(settings: dict[str, Any]) -> ElasticRun:
        config = make_config(train={**settings, "num_workers": {"min": 1, "max": 2}, "cpus_per_worker": 1.5})
        Path(config.run_dir, "c.yaml").write_text(config.to_yaml())
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        clusters.append(cluster)
        node = cluster.add_node(num_cpus=2)
        address = set_options(f"cluster.address={cluster.address}")
        process = start_kp_ray("train", "c.yaml", "--json", *address, cwd=config.run_dir)
        wait_until(lambda: count_log_lines(config) >= 5, process)
        assert {line["workers"] for line in read_log_lines(config)} == {2}
        return ElasticRun(config, cluster, node, process)

    yield start
    for cluster in clusters:
        cluster.shutdown()


@pytest.mark.slow
def test_an_elastic_run_resumes_with_fewer_workers_when_a_node_is_lost(
    start_elastic_run: Callable[[dict[str, Any]], ElasticRun],
) -> None:
    run = start_elastic_run(
        {"max_iter": 48, "steps": [36], "eval_period": 0, "checkpoint_period": 4, "ims_per_batch": 1}
    )
    result = run.finish_without_node()
    assert result["iterations"] == 48  # of one worker; two workers would have 24
    assert 0 < result["resumed_from"] < 48
    lines = read_log_lines(run.config)
    assert {line["workers"] for line in lines} == {1}
    iterations = [line["iteration"] for line in lines]
    assert iterations == sorted(iterations)
    assert iterations[-1] == 47
    train = run.config.train
    assert lines[-1]["lr"] == pytest.approx(train.base_lr * train.gamma)  # as after the step at 36


@pytest.mark.slow
def test_a_checkpoint_is_saved_when_the_loss_of_a_node_is_announced(
    start_elastic_run: Callable[[dict[str, Any]], ElasticRun],
) -> None:
    # No checkpoint is due, so a checkpoint before the end was saved because of the announcement.
    run = start_elastic_run(
        {"max_iter": 240, "steps": [200], "eval_period": 0, "checkpoint_period": 1000, "ims_per_batch": 1}
    )
    announcement = run_command(
        RAY,
        "drain-node",
        f"--address={run.cluster.address}",
        f"--node-id={run.node.node_id}",
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=spot",
        "--deadline-remaining-seconds=120",
    )
    assert announcement.returncode == 0, announcement.stderr
    record = Path(run.config.member_dir("a"), "checkpoint_manager_snapshot.json")  # Ray Train's record of checkpoints
    wait_until(lambda: record.exists() and "checkpoint_0" in record.read_text(), run.process)
    result = run.finish_without_node()
    assert result["iterations"] == 240
    assert 0 < result["resumed_from"] < 240
