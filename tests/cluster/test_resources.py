"""The number of training runs that fit a cluster."""

from typing import Any

import pytest
import ray

from kp_ray.cluster import placement
from kp_ray.cluster.resources import SMALLEST_CPU_FRACTION, Capacity, fits_a_node, require_cpus, training_capacity
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError
from kp_ray.stage import no_progress
from kp_ray.store import stage as store_stage


def make_config(cluster: dict[str, Any] | None = None, **train: Any) -> Config:
    """Build a config from its sections `cluster` and `train`; a worker needs half a CPU by default."""
    return build_config({"train": {"cpus_per_worker": 0.5, **train}, "cluster": cluster or {}})


@pytest.fixture
def set_nodes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that replaces the nodes that Ray reports."""

    def apply(*nodes: dict[str, float]) -> None:
        monkeypatch.setattr(
            ray, "nodes", lambda: [{"Alive": True, "Resources": {"memory": 64e9} | node} for node in nodes]
        )

    return apply


@pytest.mark.usefixtures("ray_cluster")
def test_four_runs_of_one_small_worker_fit_a_running_cluster_of_four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    # The CPUs of the cluster must decide, not this machine's free memory.
    monkeypatch.setattr(placement, "RUN_OVERHEAD_BYTES", 1)
    monkeypatch.setattr(placement, "TRIAL_ACTOR_BYTES", 1)
    assert training_capacity(make_config()) == Capacity(num_runs=4, use_gpu=False)
    with pytest.raises(ClusterError, match=r"^train\.num_workers: .*the cluster has 4 CPUs and 0 GPUs"):
        training_capacity(make_config(num_workers=50))


def test_an_elastic_run_runs_alone(set_nodes: Any) -> None:
    set_nodes({"CPU": 16})
    assert training_capacity(make_config(num_workers={"min": 1, "max": 4})).num_runs == 1


def test_gpus_are_used_by_default_and_limit_the_number_of_runs(set_nodes: Any) -> None:
    set_nodes({"CPU": 16, "GPU": 2})
    assert training_capacity(make_config()) == Capacity(num_runs=2, use_gpu=True)
    assert training_capacity(make_config(num_workers=2)) == Capacity(num_runs=1, use_gpu=True)
    assert training_capacity(make_config(use_gpu=False)) == Capacity(num_runs=16, use_gpu=False)
    with pytest.raises(ClusterError, match=r"and 3 GPUs, .*: lower train\.num_workers"):
        training_capacity(make_config(num_workers=3))


def test_a_machine_without_gpus_is_told_to_train_on_cpus(set_nodes: Any) -> None:
    set_nodes({"CPU": 4})
    with pytest.raises(ClusterError, match=r"and 1 GPUs, .*: set train\.use_gpu=false, or cluster\.num_gpus"):
        training_capacity(make_config(use_gpu=True))


def test_a_worker_must_fit_a_single_node(set_nodes: Any) -> None:
    set_nodes({"CPU": 2}, {"CPU": 2})
    with pytest.raises(ClusterError, match=r"^train\.cpus_per_worker: no node has 3 CPUs for a worker"):
        training_capacity(make_config(cpus_per_worker=3))


def test_workers_are_counted_per_node(set_nodes: Any) -> None:
    set_nodes({"CPU": 3}, {"CPU": 3})
    assert training_capacity(make_config(cpus_per_worker=2)).num_runs == 2
    set_nodes({"CPU": 3}, {"CPU": 3}, {"CPU": 1})
    with pytest.raises(ClusterError, match=r"needs 3 workers of 2 CPUs each, the nodes have room for 2"):
        training_capacity(make_config(cpus_per_worker=2, num_workers=3))
    set_nodes(*[{"CPU": 3}] * 5)  # 15 CPUs, which one node could divide into six runs of 2.5 CPUs
    assert training_capacity(make_config(cpus_per_worker=2)).num_runs == 5
    set_nodes({"CPU": 16}, {"CPU": 0.5, "GPU": 4})  # the GPUs and the CPUs are on different nodes
    with pytest.raises(ClusterError, match=r"no node has 1 CPUs and a GPU for a worker: lower"):
        training_capacity(make_config(cpus_per_worker=1, use_gpu=True))


def test_memory_limits_the_number_of_runs(set_nodes: Any) -> None:
    set_nodes({"CPU": 16, "memory": 5e9})
    assert training_capacity(make_config()).num_runs == 2
    assert training_capacity(make_config({"num_cpus": 16})).num_runs == 2, "a local cluster of this size does not grow"


def test_an_autoscaling_cluster_is_counted_at_its_full_size(set_nodes: Any) -> None:
    set_nodes({"CPU": 0})
    config = make_config({"num_cpus": 8, "num_gpus": 2}, num_workers=2, cpus_per_worker=2)
    assert training_capacity(config) == Capacity(num_runs=1, use_gpu=True)
    assert fits_a_node(config, 8, 2)
    assert not fits_a_node(config, 9, 0)


NO_CPU = r"^cluster: no node has enough CPUs for {} \(got 1 nodes with at most {} CPUs\): start Ray with CPUs"


def test_a_cluster_without_cpus_is_refused_unless_it_grows(set_nodes: Any) -> None:
    set_nodes({"CPU": 0})
    with pytest.raises(ClusterError, match=NO_CPU.format("training", 0)):
        training_capacity(make_config())
    with pytest.raises(ClusterError, match=NO_CPU.format("predict", 0)):
        require_cpus(
            make_config().cluster,
            placement.model_nodes(),
            label=placement.MODEL_LABEL,
            num_cpus=SMALLEST_CPU_FRACTION,
            purpose="predict",
        )
    assert training_capacity(make_config({"num_cpus": 4})).num_runs == 4, "a cluster that grows has CPUs later"


EXCLUDED = (
    r"^cluster: the label {}=no keeps {} off every node with enough CPUs \(got 10\.0\.0\.7\): start Ray on a node"
)


def test_a_label_that_excludes_every_node_is_named_unless_the_cluster_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Alive": True, "Resources": {"CPU": 4, "memory": 64e9}, "Labels": {"kp-ray/models": "no"}}
    head = {"Alive": True, "Resources": {"CPU": 0}, "NodeManagerAddress": "10.0.0.1"}
    monkeypatch.setattr(ray, "nodes", lambda: [head, node | {"NodeManagerAddress": "10.0.0.7"}])
    with pytest.raises(ClusterError, match=EXCLUDED.format("kp-ray/models", "training")):
        training_capacity(make_config())
    assert training_capacity(make_config({"num_cpus": 4})).num_runs == 4


def test_the_error_about_too_few_cpus_names_the_nodes_that_a_label_excludes(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Alive": True, "Resources": {"CPU": 4, "memory": 64e9}, "NodeManagerAddress": "10.0.0.1"}
    spot_node = node | {"Labels": {"kp-ray/models": "no"}, "NodeManagerAddress": "10.0.0.7"}
    monkeypatch.setattr(ray, "nodes", lambda: [node, spot_node])
    message = r"the cluster has 4 CPUs and 0 GPUs without the nodes labelled kp-ray/models=no \(10\.0\.0\.7\): lower"
    with pytest.raises(ClusterError, match=message):
        training_capacity(make_config(num_workers=10))


class StoreBegunError(Exception):
    """Raised instead of writing a store."""


def test_augment_needs_a_whole_cpu_of_a_node_on_which_it_may_run(
    sample_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin_store(*_: Any) -> None:
        raise StoreBegunError

    monkeypatch.setattr(store_stage, "write_store", begin_store)
    gpu_node = {"Alive": True, "Resources": {"CPU": 8}, "Labels": {"kp-ray/augment": "no"}}
    gpu_node["NodeManagerAddress"] = "10.0.0.7"
    small_node = {"Alive": True, "Resources": {"CPU": 0.5}}
    spot_node = {"Alive": True, "Resources": {"CPU": 1}, "Labels": {"kp-ray/models": "no"}}
    monkeypatch.setattr(ray, "nodes", lambda: [gpu_node, small_node])
    with pytest.raises(ClusterError, match=EXCLUDED.format("kp-ray/augment", "augment")):
        store_stage.AugmentStage().run(sample_config, no_progress)
    monkeypatch.setattr(ray, "nodes", lambda: [small_node])
    with pytest.raises(ClusterError, match=NO_CPU.format("augment", "0.5")):
        store_stage.AugmentStage().run(sample_config, no_progress)
    monkeypatch.setattr(ray, "nodes", lambda: [gpu_node, small_node, spot_node])
    with pytest.raises(StoreBegunError):
        store_stage.AugmentStage().run(sample_config, no_progress)
