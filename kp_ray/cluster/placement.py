"""Place work on nodes: labels that keep work away from some nodes, and the memory of the processes beside workers."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from kp_ray.cluster.ray_internals import node_resource

AUGMENT_NODES = {"kp-ray/augment": "!no"}
"""`label_selector` of augmentation. cluster.yaml labels GPU nodes `kp-ray/augment: no`, because they cost too much."""
MODEL_NODES = {"kp-ray/models": "!no"}
"""`label_selector` of training and prediction. cluster.yaml labels spot nodes `kp-ray/models: no`: they have no torch,
and their loss would interrupt a training run."""

RUN_BYTES = 3 << 29
"""Memory of a training run's processes beside its workers: the task that calls `fit`, and Ray Train's controller,
coordinator of data and watchers (measured: 1.4 GB in seven processes)."""
TRIAL_BYTES = 1 << 29
"""Memory of a trial's actor, which waits for its training run (measured: 0.5 GB)."""


def model_nodes() -> list[Mapping[str, Any]]:
    """Return the nodes that are alive and on which `MODEL_NODES` allows training and prediction."""
    return _allowed_nodes("kp-ray/models")


def augment_nodes() -> list[Mapping[str, Any]]:
    """Return the nodes that are alive and on which `AUGMENT_NODES` allows augmentation."""
    return _allowed_nodes("kp-ray/augment")


def _allowed_nodes(label: str) -> list[Mapping[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and node.get("Labels", {}).get(label) != "no"]


def max_runs_in_memory(nodes: Sequence[Mapping[str, Any]]) -> int:
    """Count the training runs, each with a trial's actor, that fit the nodes' memory; at least 1."""
    return max(1, sum(int(node["Resources"].get("memory", 0) // (RUN_BYTES + TRIAL_BYTES)) for node in nodes))


def fit_task_options() -> dict[str, Any]:
    """Return the options of the Ray task that calls `fit` of a training run.

    The task needs no CPU while it waits. It is not retried: the caller resumes the run.
    """
    largest = max((node["Resources"].get("memory", 0) for node in model_nodes()), default=0)
    # Half of a small node's memory, because a task that no node can hold would wait forever.
    memory = min(RUN_BYTES, int(largest / 2))
    return {"num_cpus": 0, "max_retries": 0, "memory": memory, "label_selector": MODEL_NODES}


def trial_resources() -> dict[str, float]:
    """Return the resources of a trial's actor: memory on the driver's node, where every package is installed.

    The actor gets no share of a CPU, because training may need all CPUs.
    """
    own_id = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == own_id)
    memory = min(TRIAL_BYTES, int(node["Resources"].get("memory", 0) / 4))
    return {"memory": memory, node_resource(node): 0.001}
