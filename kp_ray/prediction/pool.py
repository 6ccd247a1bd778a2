"""Divide the cluster between the two operators of `predict`: the actor pool and the decoding tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError
from kp_ray.prediction.settings import check_precision

DECODE_SHARE = 0.25
"""Share of an actor's CPUs that Ray reserves for a decoding task instead of the actor.

If actors reserved all CPUs, no decoding task could start, and the actors would wait for images forever. An actor still
has `predict.cpus_per_actor` torch threads.
"""
MAX_DECODE_CPUS = 1.0
"""Maximum number of CPUs that Ray reserves for a decoding task, which has one thread."""
_ROUNDING = 1e-9
"""Added before rounding down, so that 0.3 / 0.1 is 3."""


@dataclass(frozen=True)
class PoolPlan:
    """Number and resources of the actors and of the decoding tasks.

    Attributes:
        min_actors, max_actors: smallest and largest size of the actor pool.
        gpus_per_actor: GPUs that each actor takes.
        cpus_per_actor: CPUs that Ray reserves for each actor.
        cpus_per_decode_task: CPUs that Ray reserves for each decoding task.
        max_decode_tasks: maximum number of concurrent decoding tasks.
    """

    min_actors: int
    max_actors: int
    gpus_per_actor: float
    cpus_per_actor: float
    cpus_per_decode_task: float
    max_decode_tasks: int


def plan_pool(config: Config, nodes: Sequence[Mapping[str, float]], num_cpus: float) -> PoolPlan:
    """Size the actor pool and the decoding tasks for a cluster.

    The number of actors is limited as if each actor reserved `predict.cpus_per_actor` CPUs. In fact it reserves that
    many minus the CPUs of one decoding task, so that a full pool leaves CPUs for decoding.

    Args:
        config: the run's configuration; `cluster.num_cpus` and `cluster.num_gpus` are the size to which an autoscaling
            cluster grows.
        nodes: resources of each node on which actors may run.
        num_cpus: CPUs of all nodes; decoding tasks run on any node.

    Raises:
        ClusterError: no node is large enough for an actor.
        ConfigError: `predict.precision` needs a GPU, and the actors get none.
    """
    section, cluster = config.predict, config.cluster
    gpus_per_actor = _resolve_gpus(config, nodes)
    num_slots = sum(_count_slots(node, section.cpus_per_actor, gpus_per_actor) for node in nodes)
    max_slots = num_slots
    if cluster.num_cpus or cluster.num_gpus:
        num_cpus = max(num_cpus, cluster.num_cpus or 0)
        num_gpus = max(sum(node.get("GPU", 0) for node in nodes), cluster.num_gpus or 0)
        max_resources = {"CPU": num_cpus, "GPU": num_gpus}
        max_slots = max(num_slots, _count_slots(max_resources, section.cpus_per_actor, gpus_per_actor))
    if not max_slots:
        raise ClusterError(
            f"predict.cpus_per_actor: no node has {section.cpus_per_actor:g} CPUs and {gpus_per_actor:g} GPUs for an "
            "actor: lower predict.cpus_per_actor or predict.gpus_per_actor; if the cluster grows, set cluster.num_cpus "
            "and cluster.num_gpus"
        )
    check_precision(config, has_gpu=gpus_per_actor > 0)
    cpus_per_decode_task = min(MAX_DECODE_CPUS, DECODE_SHARE * section.cpus_per_actor)
    min_actors, max_actors = section.actors
    return PoolPlan(
        min_actors=max(1, min(min_actors, num_slots)),
        max_actors=min(max_actors, max_slots),
        gpus_per_actor=gpus_per_actor,
        cpus_per_actor=section.cpus_per_actor - cpus_per_decode_task,
        cpus_per_decode_task=cpus_per_decode_task,
        max_decode_tasks=max(1, int(num_cpus)),
    )


def _resolve_gpus(config: Config, nodes: Sequence[Mapping[str, float]]) -> float:
    """Return the GPUs of each actor: `predict.gpus_per_actor`; if null, 1 in a cluster with GPUs, else 0."""
    if config.predict.gpus_per_actor is not None:
        return config.predict.gpus_per_actor
    has_gpus = bool(config.cluster.num_gpus) or any(node.get("GPU", 0) >= 1 for node in nodes)
    return 1.0 if has_gpus else 0.0


def _count_slots(node: Mapping[str, float], cpus_per_actor: float, gpus_per_actor: float) -> int:
    """Return the number of actors that fit a node's CPUs and GPUs."""
    num_slots = int(node.get("CPU", 0) / cpus_per_actor + _ROUNDING)
    return min(num_slots, int(node.get("GPU", 0) / gpus_per_actor + _ROUNDING)) if gpus_per_actor else num_slots
