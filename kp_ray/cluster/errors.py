"""What ended a Ray task, in one line."""

import re

import ray

from kp_ray import errors
from kp_ray.errors import KpRayError, one_line


def describe_ray_error(error: Exception) -> str:
    """What ended a Ray task, on one line, from the text of its error: the task's own traceback stands in it, below
    Ray's around it."""
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "low on memory" in str(error):
        return "the nodes lack memory; lower cluster.num_cpus or start Ray with fewer CPUs a node"
    told = re.findall(r"^(?!ray\.)[\w.]*?(\w*(?:Error|Exception)): (.+)$", str(error), re.MULTILINE)
    if told:
        kind, text = told[-1]
        ours = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, KpRayError)}
        return str(text) if kind in ours else f"{kind}: {text}"
    if re.search(r"(actor|worker|worker process|node) (has )?died", str(error)):
        return "a process or a node of Ray died: killed, out of memory or crashed, its log may tell"
    return one_line(error)[-300:]
