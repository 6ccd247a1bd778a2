"""Resources of the cluster: how many training runs it holds, and whether a node holds a worker."""

from collections.abc import Mapping
from typing import NamedTuple

import ray

from kp_ray.config.schema import ClusterConfig, Config
from kp_ray.config.training import TrainConfig, WorkerRange
from kp_ray.errors import ClusterError

DATA_CPUS = 0.5
"""CPUs that a training run leaves free, beside its workers', for Ray Data's tasks."""
_ROUNDING = 1e-9
"""Added before rounding down, so that 0.3 / 0.1 is 3."""


class Capacity(NamedTuple):
    """The training runs that a cluster holds.

    Attributes:
        num_runs: how many run at the same time, at least 1.
        use_gpu: whether each worker gets a GPU.
    """

    num_runs: int
    use_gpu: bool


def runs_at_once(config: Config) -> Capacity:
    """Compute how many training runs of the config's size the running cluster holds at the same time.

    A cluster that grows (`cluster.num_cpus`, `cluster.num_gpus`) may have no node yet: it is counted at its full size.

    Raises:
        ClusterError: not even one run fits.
    """
    train = config.train
    fewest, most = train.worker_range
    total = _total_resources(config.cluster)
    use_gpu = total["GPU"] > 0 if train.use_gpu is None else train.use_gpu
    if _count_runs(total, train, fewest, use_gpu) < 1:
        raise ClusterError(
            f"the cluster has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs; training asks for "
            f"{fewest * train.cpus_per_worker + DATA_CPUS:g} CPUs{f' and {fewest} GPUs' if use_gpu else ''}: lower "
            "train.num_workers or train.cpus_per_worker"
        )
    per_worker = f"{train.cpus_per_worker:g} CPUs{' and a GPU' if use_gpu else ''}"
    if not fits_a_node(config, train.cpus_per_worker, 1 if use_gpu else 0):
        raise ClusterError(f"no node has {per_worker} for a worker: lower train.cpus_per_worker")
    num_runs = _count_runs(total, train, most, use_gpu)
    if not (config.cluster.num_cpus or config.cluster.num_gpus):  # nothing is known of nodes that are yet to come
        num_places = sum(_count_workers(node, train.cpus_per_worker, use_gpu) for node in _living_nodes())
        if num_places < fewest:  # Ray would wait for the missing ones without end
            raise ClusterError(
                f"the nodes have room for {num_places} workers of {per_worker} each, training asks for {fewest}: "
                "lower train.num_workers or train.cpus_per_worker"
            )
        num_runs = min(num_runs, num_places // most)
    # Ray sizes an elastic run by the whole cluster, as if it were alone.
    return Capacity(1 if isinstance(train.num_workers, WorkerRange) else num_runs, use_gpu)


def fits_a_node(config: Config, num_cpus: float, num_gpus: float) -> bool:
    """Return whether a node has these CPUs and GPUs; a cluster that grows may still get its largest node."""
    nodes = _living_nodes()
    final_size = {"CPU": config.cluster.num_cpus, "GPU": config.cluster.num_gpus}
    largest = {name: final_size[name] or max(node.get(name, 0) for node in nodes) for name in final_size}
    return any(node.get("CPU", 0) >= num_cpus and node.get("GPU", 0) >= num_gpus for node in [*nodes, largest])


def _total_resources(cluster: ClusterConfig) -> dict[str, float]:
    """Return the cluster's CPUs and GPUs, now or when it has grown."""
    present = ray.cluster_resources()
    return {
        "CPU": max(present.get("CPU", 0), cluster.num_cpus or 0),
        "GPU": max(present.get("GPU", 0), cluster.num_gpus or 0),
    }


def _living_nodes() -> list[dict[str, float]]:
    """Return the resources of each node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _count_workers(node: Mapping[str, float], cpus_per_worker: float, use_gpu: bool) -> int:
    """Count the workers that a node holds."""
    num_workers = int(node.get("CPU", 0) / cpus_per_worker + _ROUNDING)
    return min(num_workers, int(node.get("GPU", 0))) if use_gpu else num_workers


def _count_runs(total: Mapping[str, float], train: TrainConfig, num_workers: int, use_gpu: bool) -> int:
    """Count the training runs of `num_workers` workers that the total resources hold."""
    num_runs = int(total["CPU"] / (num_workers * train.cpus_per_worker + DATA_CPUS) + _ROUNDING)
    return min(num_runs, int(total["GPU"] // num_workers)) if use_gpu else num_runs
