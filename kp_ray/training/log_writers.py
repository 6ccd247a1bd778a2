"""Writers of a member's log: metrics.json, TensorBoard, MLflow."""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from kp_ray.errors import one_line
from kp_ray.storage import exists, join, read_bytes, write_bytes
from kp_ray.training.logs import LOG_NAME, LogEntry, read_training_log


class _MlflowWriter(EventWriter):
    """Logs to a run of an MLflow tracking server; a member's folder remembers which."""

    def __init__(self, uri: str, folder: str) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        # By default each call to a server that is gone takes minutes, and all workers wait.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self.client = MlflowClient(f"sqlite:///{folder}/mlflow.db" if uri == "local" else uri)
        noted = join(folder, "mlflow_run.txt")
        if not exists(noted):
            with contextlib.suppress(MlflowException):  # it is there, perhaps since a moment ago
                self.client.create_experiment("kp_ray")
            experiment = self.client.get_experiment_by_name("kp_ray")
            run = self.client.create_run(experiment.experiment_id, run_name=folder.rstrip("/").rpartition("/")[2])
            write_bytes(noted, run.info.run_id.encode())
        self.run = read_bytes(noted).decode()

    def write(self) -> None:
        from mlflow.entities import Metric

        storage, now = get_event_storage(), int(time.time() * 1000)
        latest = storage.latest().items()
        metrics = [Metric(name, value, now, step) for name, (value, step) in latest if step == storage.iter]
        with _not_ending_training():
            self.client.log_batch(self.run, metrics)

    def close(self) -> None:
        with _not_ending_training():
            self.client.set_terminated(self.run)


@contextlib.contextmanager
def _not_ending_training() -> Iterator[None]:
    """A tracking server that does not answer is no reason to stop."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        logging.getLogger(__name__).warning("train.mlflow: %s", one_line(error)[:200])


class TrainingLog:
    """`metrics.json` and `tensorboard/` of a member, written by Detectron2's writers and copied to its folder."""

    def __init__(self, folder: str, start: int, *, rank: int, num_workers: int, mlflow: str | None) -> None:
        self.folder, self.start, self.active, self.workers = folder, start, rank == 0, num_workers
        self.mlflow = mlflow

    def __enter__(self) -> "TrainingLog":
        if self.active:
            self.work = tempfile.TemporaryDirectory()
            local = Path(self.work.name, LOG_NAME)
            if self.start:  # what a lost worker logged after its last checkpoint comes again
                kept = []
                for entry in read_training_log(self.folder):
                    done = int((entry.iteration + 1) * entry.values["workers"])  # as iterations of one worker
                    if done <= self.start * self.workers:
                        iteration = max(0, done // self.workers - 1)
                        kept.append(LogEntry(iteration, {**entry.values, "workers": self.workers}).to_line())
                local.write_text("".join(kept))
            # Windows of 1: a window of the last values would be lost with the worker.
            board = TensorboardXWriter(f"{self.work.name}/tensorboard", window_size=1, purge_step=self.start)
            self.writers: list[EventWriter] = [JSONWriter(str(local), window_size=1), board]
            if self.mlflow:
                with _not_ending_training():
                    self.writers.append(_MlflowWriter(self.mlflow, self.folder))
        return self

    def write(self) -> None:
        """Write the latest iteration."""
        if self.active:
            for writer in self.writers:
                writer.write()
            self._copy()

    def _copy(self) -> None:
        for path in Path(self.work.name).rglob("*"):
            if path.is_file():
                write_bytes(join(self.folder, path.relative_to(self.work.name).as_posix()), path.read_bytes())

    def __exit__(self, *exception: object) -> None:
        if self.active:
            with self.work:
                for writer in self.writers:
                    writer.close()
                self._copy()
