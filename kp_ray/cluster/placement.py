"""Choose the nodes for Ray's tasks and actors: by labels, and by the memory that a training run's processes need."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from kp_ray.cluster.ray_internals import node_resource

AUGMENT_LABEL = "kp-ray/augment"
MODEL_LABEL = "kp-ray/models"
AUGMENT_NODE_SELECTOR = {AUGMENT_LABEL: "!no"}
"""`label_selector` of augmentation: any node that is not labelled `kp-ray/augment: no`. cluster.yaml gives this label
to GPU nodes, which cost too much for work that needs only CPUs."""
MODEL_NODE_SELECTOR = {MODEL_LABEL: "!no"}
"""`label_selector` of training and prediction: any node that is not labelled `kp-ray/models: no`. cluster.yaml gives
this label to spot nodes, which have no torch and whose loss would interrupt a training run."""

RUN_OVERHEAD_BYTES = 1536 << 20
"""Memory of a training run's processes other than its workers: the task that calls `fit`, and Ray Train's controller,
data coordinator and watchers (measured: 1.4 GB in seven processes)."""
TRIAL_ACTOR_BYTES = 512 << 20
"""Memory of a trial's actor, which waits for its training run (measured: 0.5 GB)."""


def model_nodes() -> list[Mapping[str, Any]]:
    """Return the elements of `ray.nodes()` that are alive and match `MODEL_NODE_SELECTOR`."""
    return _allowed_nodes(MODEL_LABEL)


def augment_nodes() -> list[Mapping[str, Any]]:
    """Return the elements of `ray.nodes()` that are alive and match `AUGMENT_NODE_SELECTOR`."""
    return _allowed_nodes(AUGMENT_LABEL)


def _allowed_nodes(label: str) -> list[Mapping[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"] and not is_excluded(node, label)]


def is_excluded(node: Mapping[str, Any], label: str) -> bool:
    """Return whether a label, AUGMENT_LABEL or MODEL_LABEL, keeps its work off an element of `ray.nodes()`."""
    return bool(node.get("Labels", {}).get(label) == "no")


def describe_excluded_nodes(label: str) -> str:
    """Return a clause for messages that names the nodes off which a label keeps its work; "" if there are none."""
    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"] and is_excluded(node, label)]
    return f" without the nodes labelled {label}=no ({', '.join(addresses)})" if addresses else ""


def max_runs_in_memory(nodes: Sequence[Mapping[str, Any]]) -> int:
    """Count the training runs, each with a trial's actor, that fit into the nodes' memory; return at least 1."""
    return max(
        1, sum(int(node["Resources"].get("memory", 0) // (RUN_OVERHEAD_BYTES + TRIAL_ACTOR_BYTES)) for node in nodes)
    )


def fit_task_options() -> dict[str, Any]:
    """Return the options of the Ray task that calls a training run's `fit`.

    The task takes no CPU, because it only waits. Ray does not retry it, because the caller resumes the run.
    """
    largest_node_bytes = max((node["Resources"].get("memory", 0) for node in model_nodes()), default=0)
    # On small nodes request half of the largest node's memory, because a task that fits no node would wait forever.
    memory = min(RUN_OVERHEAD_BYTES, int(largest_node_bytes / 2))
    return {"num_cpus": 0, "max_retries": 0, "memory": memory, "label_selector": MODEL_NODE_SELECTOR}


def trial_resources() -> dict[str, float]:
    """Return the resources of a trial's actor.

    The actor takes no CPU, because training may need all CPUs. It requests a tiny amount of the resource that only the
    driver's node has, and so runs there: other nodes may lack the packages of a search.
    """
    driver_node_id = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == driver_node_id)
    memory = min(TRIAL_ACTOR_BYTES, int(node["Resources"].get("memory", 0) / 4))
    return {"memory": memory, node_resource(node): 0.001}
