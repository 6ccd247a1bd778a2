"""Count the CPUs of this machine."""

import os


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use; outside Linux, all CPUs of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
