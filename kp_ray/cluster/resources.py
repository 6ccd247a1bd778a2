"""What a cluster has room for."""

from collections.abc import Mapping

import ray

from kp_ray.config.schema import Config, TrainConfig, WorkerRange
from kp_ray.errors import ClusterError

FEED_CPUS = 0.5
"""What a training run leaves free, beside its workers, for Ray Data's tasks."""


def runs_at_once(config: Config) -> tuple[int, bool]:
    """How many training runs the cluster holds at once, beside what feeds them, and whether they use GPUs.

    Raises:
        ClusterError: not even one fits.
    """
    now, later = ray.cluster_resources(), config.cluster  # a cluster that grows may have no node yet
    have = {"CPU": max(now.get("CPU", 0), later.num_cpus or 0), "GPU": max(now.get("GPU", 0), later.num_gpus or 0)}
    train = config.train
    use_gpu = have["GPU"] > 0 if train.use_gpu is None else train.use_gpu
    fewest, most = (_fitting(have, train, workers, use_gpu) for workers in train.worker_range)
    if fewest < 1:
        least, _ = train.worker_range
        gpus = f" and {least} GPUs" if use_gpu else ""
        raise ClusterError(
            f"the cluster has {have['CPU']:g} CPUs and {have['GPU']:g} GPUs; training asks for "
            f"{least * train.cpus_per_worker + FEED_CPUS:g} CPUs{gpus}: lower train.num_workers or "
            "train.cpus_per_worker"
        )
    if not fits_a_node(config, train.cpus_per_worker, 1 if use_gpu else 0):
        raise ClusterError(
            f"no node has {train.cpus_per_worker:g} CPUs{' and a GPU' if use_gpu else ''} for a worker: lower "
            "train.cpus_per_worker, or train.num_workers' share of each node"
        )
    if not (later.num_cpus or later.num_gpus):  # of nodes that are still to come, nothing is known
        places = sum(_places(node, train.cpus_per_worker, use_gpu) for node in _nodes())
        least, wanted = train.worker_range
        if places < least:  # Ray would wait for them without end
            raise ClusterError(
                f"the nodes have room for {places} workers of {train.cpus_per_worker:g} CPUs"
                f"{' and a GPU' if use_gpu else ''} each, training asks for {least}: lower train.num_workers or "
                "train.cpus_per_worker"
            )
        most = min(most, places // wanted)
    # Ray counts the whole cluster for each elastic run.
    return 1 if isinstance(train.num_workers, WorkerRange) else most, use_gpu


def _nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _places(node: Mapping[str, float], cpus: float, use_gpu: bool) -> int:
    """How many workers of so many CPUs, and a GPU, a node holds."""
    places = int(node.get("CPU", 0) / cpus + 1e-9)
    return min(places, int(node.get("GPU", 0))) if use_gpu else places


def fits_a_node(config: Config, cpus: float, gpus: float) -> bool:
    """Whether some node holds this at once; of a cluster that grows, the largest node may still come."""
    nodes = _nodes()
    later = {"CPU": config.cluster.num_cpus, "GPU": config.cluster.num_gpus}
    grown = {name: later[name] or max(node.get(name, 0) for node in nodes) for name in later}
    return any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in [*nodes, grown])


def _fitting(have: Mapping[str, float], train: TrainConfig, workers: int, use_gpu: bool) -> int:
    """How many runs of so many workers these resources hold."""
    fits = int(have["CPU"] / (workers * train.cpus_per_worker + FEED_CPUS) + 1e-9)
    return min(fits, int(have["GPU"] // workers)) if use_gpu else fits
