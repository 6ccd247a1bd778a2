"""Carry the reports of a training run to its trial; `departures.TrainingRun` explains why Ray's own way is not used.

The module imports no torch, because the queue runs in its own process, which should start fast and stay small.
"""

import asyncio
from typing import Any

import ray.train


class ReportQueue:
    """A Ray actor that holds the iteration of each report until the trial fetches it; its size has no limit."""

    def __init__(self) -> None:
        self._iterations: asyncio.Queue[int] = asyncio.Queue()

    async def put(self, iteration: int) -> None:
        """Add the iteration of a report."""
        await self._iterations.put(iteration)

    async def get(self) -> int:
        """Wait for the next report and return its iteration."""
        return await self._iterations.get()


class ReportCallback(ray.train.UserCallback):
    """Sends the iteration of each report of a training run to a queue; runs in Ray Train's controller."""

    def __init__(self, reports: Any) -> None:
        """Send to `reports`, the handle of a `ReportQueue`."""
        self._reports = reports

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Send the iteration that all workers have reported."""
        self._reports.put.remote(metrics[0]["iteration"])
