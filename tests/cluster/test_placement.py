"""Placement: labels of nodes are respected, and no request is larger than the cluster."""

from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from kp_ray.cluster.placement import (
    AUGMENT_NODES,
    MODEL_NODES,
    RUN_BYTES,
    TRIAL_BYTES,
    fit_task_options,
    max_runs_in_memory,
    model_nodes,
)


def make_node(memory: float, **labels: str) -> dict[str, Any]:
    return {"Alive": True, "Resources": {"memory": memory}, "Labels": {f"kp-ray/{key}": labels[key] for key in labels}}


def test_nodes_without_labels_run_everything_and_labelled_ones_no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, spot, gpu = make_node(8e9), make_node(8e9, models="no"), make_node(8e9, augment="no")
    monkeypatch.setattr(ray, "nodes", lambda: [plain, spot, gpu, {**plain, "Alive": False}])
    assert model_nodes() == [plain, gpu]


def test_the_task_that_fits_a_model_requests_its_memory_or_half_of_a_small_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [make_node(64e9), make_node(1e9)])
    assert fit_task_options()["memory"] == RUN_BYTES
    monkeypatch.setattr(ray, "nodes", lambda: [make_node(1e9)])
    assert fit_task_options()["memory"] == 5e8


def test_memory_limits_the_number_of_runs_to_at_least_one() -> None:
    per_run = RUN_BYTES + TRIAL_BYTES
    assert max_runs_in_memory([make_node(2.5 * per_run), make_node(3 * per_run)]) == 5
    assert max_runs_in_memory([make_node(0.5 * per_run)]) == 1


@pytest.mark.slow
def test_tasks_stay_off_the_nodes_that_are_labelled_no() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    spot = cluster.add_node(num_cpus=2, labels={"kp-ray/models": "no"})
    gpu = cluster.add_node(num_cpus=2, labels={"kp-ray/augment": "no"})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:

        def find_node(row: dict[str, Any]) -> dict[str, Any]:
            return {"node": ray.get_runtime_context().get_node_id()}

        for selector, expected in ((AUGMENT_NODES, spot), (MODEL_NODES, gpu)):
            rows = ray.data.from_items([{"a": a} for a in range(8)], override_num_blocks=8)
            nodes = rows.map(find_node, num_cpus=1, label_selector=selector).take_all()
            assert {row["node"] for row in nodes} == {expected.node_id}
    finally:
        ray.shutdown()
        cluster.shutdown()
