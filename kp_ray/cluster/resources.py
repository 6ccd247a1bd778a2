"""Compare the cluster's resources with a config: how many training runs fit, and whether a task fits a node."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ray

from kp_ray.cluster.placement import (
    MODEL_LABEL,
    describe_excluded_nodes,
    is_excluded,
    max_runs_in_memory,
    model_nodes,
)
from kp_ray.config.schema import ClusterConfig, Config
from kp_ray.config.training import TrainConfig, WorkerRange
from kp_ray.errors import ClusterError

DATA_CPUS = 0.5
"""CPUs that a training run needs for Ray Data's tasks, in addition to its workers' CPUs."""
SMALLEST_CPU_FRACTION = 1e-4
"""Smallest fraction of a CPU that Ray assigns; a node with less counts as a node without CPUs."""
_ROUNDING = 1e-9
"""Added before rounding down, so that 0.3 / 0.1 is 3."""


class Capacity(NamedTuple):
    """Number and kind of the training runs that fit the cluster.

    Attributes:
        num_runs: number of runs that fit at the same time, at least 1.
        use_gpu: whether each worker gets a GPU.
    """

    num_runs: int
    use_gpu: bool


def training_capacity(config: Config) -> Capacity:
    """Compute how many training runs of the config's size fit the running cluster at the same time.

    An autoscaling cluster may have no worker node yet: `cluster.num_cpus` and `cluster.num_gpus` give its full size.

    Raises:
        ClusterError: the cluster has no CPUs, or not even one run fits.
    """
    train, nodes = config.train, model_nodes()
    min_workers, max_workers = train.min_workers, train.max_workers
    require_cpus(config.cluster, nodes, label=MODEL_LABEL, num_cpus=SMALLEST_CPU_FRACTION, purpose="training")
    total = _total_resources(config.cluster, nodes)
    use_gpu = total["GPU"] > 0 if train.use_gpu is None else train.use_gpu
    if _count_runs(total, train, min_workers, use_gpu) < 1:
        num_cpus = min_workers * train.cpus_per_worker + DATA_CPUS
        requirement = f"{num_cpus:g} CPUs{f' and {min_workers} GPUs' if use_gpu else ''}"
        fix = "lower train.num_workers or train.cpus_per_worker"
        if use_gpu and total["GPU"] < min_workers:
            fewer_workers = "lower train.num_workers, " if total["GPU"] else ""
            fix = f"{fewer_workers}set train.use_gpu=false, or cluster.num_gpus if the cluster autoscales"
        raise ClusterError(
            f"train.num_workers: a training run needs {requirement}, the cluster has {total['CPU']:g} CPUs and "
            f"{total['GPU']:g} GPUs{describe_excluded_nodes(MODEL_LABEL)}: {fix}"
        )
    worker_size = f"{train.cpus_per_worker:g} CPUs{' and a GPU' if use_gpu else ''}"
    if not fits_a_node(config, train.cpus_per_worker, 1 if use_gpu else 0):
        raise ClusterError(
            f"train.cpus_per_worker: no node has {worker_size} for a worker{describe_excluded_nodes(MODEL_LABEL)}: "
            "lower this setting"
        )
    num_runs = _count_runs(total, train, max_workers, use_gpu)
    is_autoscaling = total != _total_resources(ClusterConfig(), nodes)
    if not is_autoscaling:  # the sizes of nodes that an autoscaler will add are unknown
        num_fitting_workers = sum(_count_workers(node["Resources"], train.cpus_per_worker, use_gpu) for node in nodes)
        if num_fitting_workers < min_workers:  # Ray Train would wait forever for room
            raise ClusterError(
                f"train.num_workers: a training run needs {min_workers} workers of {worker_size} each, the nodes have "
                f"room for {num_fitting_workers}{describe_excluded_nodes(MODEL_LABEL)}: lower train.num_workers or "
                "train.cpus_per_worker"
            )
        num_runs = min(num_runs, num_fitting_workers // max_workers, max_runs_in_memory(nodes))
    # With a range of workers, Ray Train lets a run grow to the whole cluster, so only one run fits.
    return Capacity(1 if isinstance(train.num_workers, WorkerRange) else num_runs, use_gpu)


def fits_a_node(config: Config, num_cpus: float, num_gpus: float) -> bool:
    """Return whether a node has this many CPUs and GPUs.

    An autoscaling cluster is assumed to have one node of its full size, because the sizes of its nodes are unknown.
    """
    nodes = [node["Resources"] for node in model_nodes()]
    full_size = {"CPU": config.cluster.num_cpus, "GPU": config.cluster.num_gpus}
    if any(full_size.values()):
        largest = {name: max((node.get(name, 0) for node in nodes), default=0) for name in full_size}
        nodes.append({name: full_size[name] or largest[name] for name in full_size})
    return any(node.get("CPU", 0) >= num_cpus and node.get("GPU", 0) >= num_gpus for node in nodes)


def require_cpus(
    cluster: ClusterConfig, nodes: Sequence[Mapping[str, Any]], *, label: str, num_cpus: float, purpose: str
) -> None:
    """Refuse a cluster on which no task of a stage could ever start, because Ray would wait for CPUs in silence.

    Args:
        cluster: `num_cpus` is the size to which an autoscaling cluster grows.
        nodes: nodes on which the stage's tasks are allowed.
        label: label that keeps these tasks off the other nodes.
        num_cpus: CPUs that one task needs on one node.
        purpose: name of the work, for the message.

    Raises:
        ClusterError: no node has `num_cpus` CPUs, and the cluster does not grow to that size.
    """
    max_cpus = max((node["Resources"].get("CPU", 0) for node in nodes), default=0)
    if max(max_cpus, cluster.num_cpus or 0) < num_cpus:
        large_nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= num_cpus]
        if excluded := [node["NodeManagerAddress"] for node in large_nodes if is_excluded(node, label)]:
            raise ClusterError(
                f"cluster: the label {label}=no keeps {purpose} off every node with enough CPUs (got "
                f"{', '.join(excluded)}): start Ray on a node without this label; set cluster.num_cpus if the cluster "
                "autoscales"
            )
        raise ClusterError(
            f"cluster: no node has enough CPUs for {purpose} (got {len(nodes)} nodes with at most {max_cpus:g} CPUs): "
            "start Ray with CPUs, e.g. by `ray start --num-cpus=4`, or add nodes; set cluster.num_cpus if the cluster "
            "autoscales"
        )


def _total_resources(cluster: ClusterConfig, nodes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the CPUs and GPUs of all nodes together, or of the config's full size where that is larger."""
    full_size = {"CPU": cluster.num_cpus or 0, "GPU": cluster.num_gpus or 0}
    return {name: max(full_size[name], sum(node["Resources"].get(name, 0) for node in nodes)) for name in full_size}


def _count_workers(node: Mapping[str, float], cpus_per_worker: float, use_gpu: bool) -> int:
    """Count the training workers that fit a node."""
    num_workers = int(node.get("CPU", 0) / cpus_per_worker + _ROUNDING)
    return min(num_workers, int(node.get("GPU", 0))) if use_gpu else num_workers


def _count_runs(total: Mapping[str, float], train: TrainConfig, num_workers: int, use_gpu: bool) -> int:
    """Count the training runs of `num_workers` workers each that fit the total resources."""
    num_runs = int(total["CPU"] / (num_workers * train.cpus_per_worker + DATA_CPUS) + _ROUNDING)
    return min(num_runs, int(total["GPU"] // num_workers)) if use_gpu else num_runs
