"""Test the plan of actors and decoding tasks for a cluster."""

from typing import Any

import pytest

from kp_ray.config.load import build_config
from kp_ray.errors import ClusterError, ConfigError
from kp_ray.prediction.pool import PoolPlan, plan_pool

TWO_CPUS = {"CPU": 2.0}
GPU_NODE = {"CPU": 16.0, "GPU": 4.0}


def plan(*nodes: dict[str, float], cluster: dict[str, Any] | None = None, **section: Any) -> PoolPlan:
    """Plan the pool of a config with this `predict` section."""
    num_cpus = sum(node["CPU"] for node in nodes)
    return plan_pool(build_config({"predict": section, "cluster": cluster or {}}), nodes, num_cpus)


def test_without_a_setting_an_actor_takes_a_gpu_if_the_cluster_has_gpus() -> None:
    assert plan(TWO_CPUS).gpus_per_actor == 0
    assert plan(TWO_CPUS, GPU_NODE).gpus_per_actor == 1
    assert plan(TWO_CPUS, cluster={"num_gpus": 8}).gpus_per_actor == 1, "an autoscaling cluster grows to GPUs"
    assert plan(GPU_NODE, gpus_per_actor=0).gpus_per_actor == 0
    assert plan(GPU_NODE, gpus_per_actor=0.5).gpus_per_actor == 0.5


@pytest.mark.parametrize(
    ("nodes", "cpus_per_actor"),
    [
        (nodes, cpus_per_actor)
        for nodes in ([TWO_CPUS], [{"CPU": 3.0}], [{"CPU": 1.0}] * 2, [{"CPU": 1.5}] * 2, [GPU_NODE])
        for cpus_per_actor in (0.3, 0.5, 1.0, 1.5)
        if any(node["CPU"] >= cpus_per_actor for node in nodes)
    ],
)
@pytest.mark.parametrize("gpus_per_actor", [None, 0])
def test_a_full_pool_leaves_cpus_for_decoding_on_every_cluster(
    nodes: list[dict[str, float]], cpus_per_actor: float, gpus_per_actor: float | None
) -> None:
    """A decoding task must fit after the actors are placed in the worst way: each node is filled before the next."""
    pool = plan(*nodes, actors=[9, 9], cpus_per_actor=cpus_per_actor, gpus_per_actor=gpus_per_actor)
    free_cpus, num_left = [node["CPU"] for node in nodes], pool.max_actors
    for i, node in enumerate(nodes):
        num_placed = min(num_left, int(free_cpus[i] / pool.cpus_per_actor + 1e-9))
        if pool.gpus_per_actor:
            num_placed = min(num_placed, int(node["GPU"] / pool.gpus_per_actor))
        free_cpus[i] -= num_placed * pool.cpus_per_actor
        num_left -= num_placed
    assert max(free_cpus) >= pool.cpus_per_decode_task - 1e-9
    assert pool.cpus_per_actor > 0


def test_the_pool_is_no_larger_than_the_cluster() -> None:
    pool = plan(TWO_CPUS, actors=[4, 8])
    assert (pool.min_actors, pool.max_actors) == (2, 2)
    assert plan(GPU_NODE, actors=[1, 8]).max_actors == 4
    pool = plan(TWO_CPUS, actors=[4, 8], cluster={"num_cpus": 64})
    assert (pool.min_actors, pool.max_actors, pool.max_decode_tasks) == (2, 8, 64), "the cluster grows to 64 CPUs"


def test_decoding_also_uses_nodes_without_actors() -> None:
    assert plan_pool(build_config({}), [GPU_NODE], num_cpus=64).max_decode_tasks == 64


def test_a_decoding_task_reserves_at_most_one_cpu() -> None:
    pool = plan({"CPU": 16.0}, cpus_per_actor=8)
    assert (pool.cpus_per_actor, pool.cpus_per_decode_task) == (7, 1)


@pytest.mark.parametrize(
    ("nodes", "section"),
    [
        ([TWO_CPUS], {"gpus_per_actor": 1}),
        ([TWO_CPUS], {"cpus_per_actor": 64}),
        ([{"CPU": 1.0}] * 2, {"cpus_per_actor": 1.5}),
    ],
)
def test_an_actor_that_fits_no_node_is_refused(nodes: list[dict[str, float]], section: dict[str, float]) -> None:
    with pytest.raises(ClusterError, match=r"no node has .* for an actor: lower predict\.cpus_per_actor"):
        plan(*nodes, **section)


def test_mixed_precision_without_gpus_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"predict\.precision: mixed precision needs GPUs \(got bf16"):
        plan(TWO_CPUS, precision="bf16")
    assert plan(GPU_NODE, precision="bf16").gpus_per_actor == 1
