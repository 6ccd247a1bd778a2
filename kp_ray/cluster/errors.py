"""Find the error that ended a task, an actor or a training worker inside Ray's errors, and describe it on one line."""

from collections.abc import Mapping
from typing import Any

import ray

from kp_ray import errors
from kp_ray.errors import KpRayError, describe_unknown_error, shorten

OUT_OF_MEMORY = "a node ran out of memory: lower cluster.num_cpus or start Ray with fewer CPUs per node"
PROCESS_DIED = "a process or a node of Ray died (killed, out of memory or crashed): see Ray's log on its node"

_DEATH_ERRORS = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.RayActorError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)


def describe_ray_error(error: BaseException) -> str:
    """Describe the cause of an error from Ray on one line.

    The message of a KpRayError is returned as it is. OUT_OF_MEMORY and PROCESS_DIED describe lack of memory and the
    death of a process; any other error is named by its class.
    """
    cause = root_cause(error)
    if isinstance(cause, KpRayError):
        return str(cause)
    if isinstance(cause, ray.exceptions.OutOfMemoryError):
        return OUT_OF_MEMORY
    if isinstance(cause, _DEATH_ERRORS):
        return PROCESS_DIED
    return shorten(describe_unknown_error(cause), 300)


def root_cause(error: BaseException) -> BaseException:
    """Return the innermost error that Ray's own errors wrap; the error itself if it wraps none."""
    inner_error = _wrapped_error(error)
    return root_cause(inner_error) if inner_error is not None and inner_error is not error else error


def _wrapped_error(error: BaseException) -> BaseException | None:
    if isinstance(error, ray.exceptions.RayTaskError):
        return error.cause
    if isinstance(error, ray.exceptions.ActorDiedError):
        # Ray 2.60 keeps the error of an actor's constructor only in `args`.
        argument = error.args[0] if error.args else None
        return argument if isinstance(argument, ray.exceptions.RayTaskError) else None
    # Ray Train's errors are recognized by their attributes, because a machine that only augments may lack Ray Train.
    if failures := getattr(error, "worker_failures", None):
        # When a worker dies, the others fail too ("Connection closed by peer"), so take the most specific cause.
        return min(map(root_cause, failures.values()), key=_cause_order)
    failure = getattr(error, "controller_failure", None) or getattr(error, "health_check_failure", None)
    return failure if isinstance(failure, BaseException) else None


def _cause_order(cause: BaseException) -> int:
    """Return a sort key by which the most specific causes come first."""
    ordered_classes = (KpRayError, ray.exceptions.OutOfMemoryError, _DEATH_ERRORS)
    for position, error_class in enumerate(ordered_classes):
        if isinstance(cause, error_class):
            return position
    return len(ordered_classes)


def error_row(error: KpRayError) -> dict[str, str]:
    """Encode an error as an output row of a Ray Data task, from which `raise_error_row` raises it in the driver.

    An exception that the task raises would lose its class or text: Ray Data 2.60 replaces it by a UserCodeException
    without a cause, or changes its message.
    """
    return {"error_class": type(error).__name__, "error_message": str(error)}


def raise_error_row(row: Mapping[str, Any]) -> None:
    """Raise the error that a row from `error_row` encodes; do nothing for any other row.

    Raises:
        KpRayError: the row encodes an error; the class is that of the task's error.
    """
    class_name = row.get("error_class")
    if class_name:
        raise getattr(errors, class_name)(row["error_message"])
