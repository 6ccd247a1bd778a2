"""Tasks run only where the labels of nodes allow them, and request no more memory than a node has."""

import sys
from typing import Any

import pytest
import ray

from kp_ray.cluster.placement import (
    RUN_OVERHEAD_BYTES,
    TRIAL_ACTOR_BYTES,
    fit_task_options,
    max_runs_in_memory,
    model_nodes,
)
from tests.helpers.processes import last_json, run_command


def make_node(memory: float, **labels: str) -> dict[str, Any]:
    """Make an element of `ray.nodes()`."""
    return {"Alive": True, "Resources": {"memory": memory}, "Labels": {f"kp-ray/{key}": labels[key] for key in labels}}


def test_models_run_on_every_node_that_is_alive_and_whose_labels_allow_models(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_node, spot_node, gpu_node = make_node(8e9), make_node(8e9, models="no"), make_node(8e9, augment="no")
    monkeypatch.setattr(ray, "nodes", lambda: [plain_node, spot_node, gpu_node, {**plain_node, "Alive": False}])
    assert model_nodes() == [plain_node, gpu_node]


def test_a_training_task_requests_a_runs_memory_or_half_the_memory_of_a_small_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [make_node(64e9), make_node(1e9)])
    assert fit_task_options()["memory"] == RUN_OVERHEAD_BYTES
    monkeypatch.setattr(ray, "nodes", lambda: [make_node(1e9)])
    assert fit_task_options()["memory"] == 5e8


def test_the_memory_of_the_nodes_limits_the_number_of_runs_but_one_is_always_allowed() -> None:
    bytes_per_run = RUN_OVERHEAD_BYTES + TRIAL_ACTOR_BYTES
    assert max_runs_in_memory([make_node(2.5 * bytes_per_run), make_node(3 * bytes_per_run)]) == 5
    assert max_runs_in_memory([make_node(0.5 * bytes_per_run)]) == 1


FIND_NODES_OF_TASKS = """
import json, ray, ray.data
from ray.cluster_utils import Cluster
from kp_ray.cluster.placement import AUGMENT_NODE_SELECTOR, MODEL_NODE_SELECTOR

def find_node(row):
    return {"node": ray.get_runtime_context().get_node_id()}

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
spot = cluster.add_node(num_cpus=2, labels={"kp-ray/models": "no"})
gpu = cluster.add_node(num_cpus=2, labels={"kp-ray/augment": "no"})
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
names = {spot.node_id: "spot", gpu.node_id: "gpu"}
node_names = {}
for work, selector in (("augment", AUGMENT_NODE_SELECTOR), ("train", MODEL_NODE_SELECTOR)):
    rows = ray.data.from_items([{"a": a} for a in range(8)], override_num_blocks=8)
    nodes = rows.map(find_node, num_cpus=1, label_selector=selector).take_all()
    node_names[work] = sorted({names[row["node"]] for row in nodes})
print(json.dumps(node_names))
ray.shutdown()
cluster.shutdown()
"""


def test_tasks_run_only_on_nodes_whose_labels_allow_them() -> None:
    result = run_command(sys.executable, "-c", FIND_NODES_OF_TASKS, timeout_s=300)
    assert last_json(result.stdout) == {"augment": ["spot"], "train": ["gpu"]}, result.stderr[-3000:]
