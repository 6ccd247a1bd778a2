"""Write a member's log: `metrics.json` and TensorBoard with Detectron2's writers, and MLflow."""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from kp_ray.errors import shorten
from kp_ray.storage import URL_CREDENTIALS, exists, join, read_bytes, write_bytes
from kp_ray.training.logs import LOG_NAME, LogEntry, read_training_log
from kp_ray.training.worker import Worker

MLFLOW_EXPERIMENT = "kp_ray"


class TrainingLog:
    """The log of a member: `metrics.json` and `tensorboard/` in its folder, and MLflow if `train.mlflow` is set.

    A context manager. The writers write to a temporary local folder, which is copied to the member's folder, so that
    the member's folder may be on object storage. Only rank 0 logs.
    """

    def __init__(self, worker: Worker, start: int) -> None:
        """Prepare the log of a run that begins or resumes.

        Args:
            worker: this worker.
            start: the first iteration of this run. Entries from this iteration on are removed: an earlier attempt
                logged them after its last checkpoint.
        """
        self.worker, self.start = worker, start

    def __enter__(self) -> "TrainingLog":
        if self.worker.is_first:
            self.local_folder = tempfile.TemporaryDirectory(dir=self.worker.temp_dir)
            log_path = Path(self.local_folder.name, LOG_NAME)
            log_path.write_text("".join(entry.to_line() for entry in self._earlier_entries()))
            # A window of 1 writes each value unsmoothed. A longer window smooths over earlier values in the worker's
            # memory, which a resumed run does not have.
            self.writers: list[EventWriter] = [
                JSONWriter(str(log_path), window_size=1),
                TensorboardXWriter(f"{self.local_folder.name}/tensorboard", window_size=1, purge_step=self.start),
            ]
            if uri := self.worker.config.train.mlflow:
                with _warn_of_mlflow_errors():
                    self.writers.append(_MlflowWriter(uri, self.worker.folder))
        return self

    def __exit__(self, *exception: object) -> None:
        if self.worker.is_first:
            with self.local_folder:
                for writer in self.writers:
                    writer.close()
                self._copy()

    def write(self) -> None:
        """Write the values of the latest iteration."""
        if self.worker.is_first:
            for writer in self.writers:
                writer.write()
            self._copy()

    def finish(self) -> None:
        """Record that training reached its last iteration; MLflow shows a loop that ends earlier as failed."""
        for writer in self.writers if self.worker.is_first else ():
            if isinstance(writer, _MlflowWriter):
                writer.status = "FINISHED"

    def _earlier_entries(self) -> Iterator[LogEntry]:
        """Iterate over the entries before `start`, with iterations renumbered for the current number of workers."""
        num_workers = self.worker.world_size
        for entry in read_training_log(self.worker.folder) if self.start else ():
            batches_so_far = int((entry.iteration + 1) * entry.values.get("workers", 1))  # of all workers together
            num_iterations = round(batches_so_far / num_workers)  # rounded like `start`
            if num_iterations <= self.start:
                yield LogEntry(max(0, num_iterations - 1), {**entry.values, "workers": num_workers})

    def _copy(self) -> None:
        for path in Path(self.local_folder.name).rglob("*"):
            if path.is_file():
                name = path.relative_to(self.local_folder.name).as_posix()
                write_bytes(join(self.worker.folder, name), path.read_bytes())


class _MlflowWriter(EventWriter):
    """Writes to a run on an MLflow tracking server; `mlflow_run.txt` in the member's folder holds the run's id."""

    def __init__(self, uri: str, folder: str) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        # By default a call to a server that does not answer takes minutes, in which all workers wait.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self.client = MlflowClient(f"sqlite:///{folder}/mlflow.db" if uri == "local" else uri)
        id_path = join(folder, "mlflow_run.txt")
        if not (exists(id_path) and self._has_run(read_bytes(id_path).decode())):
            with contextlib.suppress(MlflowException):  # another member may have created the experiment
                self.client.create_experiment(MLFLOW_EXPERIMENT)
            experiment = self.client.get_experiment_by_name(MLFLOW_EXPERIMENT)
            run = self.client.create_run(experiment.experiment_id, run_name=folder.rstrip("/").rpartition("/")[2])
            write_bytes(id_path, run.info.run_id.encode())
        self.run_id = read_bytes(id_path).decode()
        self.status = "FAILED"

    def _has_run(self, run_id: str) -> bool:
        """Return whether the server has the run; `train.mlflow` may name another server when a member resumes."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_run(run_id)
        except MlflowException as error:  # a server that does not answer now may have the run
            return error.error_code != "RESOURCE_DOES_NOT_EXIST"
        return True

    def write(self) -> None:
        """Log the values of the latest iteration."""
        from mlflow.entities import Metric

        storage, now_ms = get_event_storage(), int(time.time() * 1000)
        latest = storage.latest().items()
        metrics = [Metric(name, value, now_ms, step) for name, (value, step) in latest if step == storage.iter]
        with _warn_of_mlflow_errors():
            self.client.log_batch(self.run_id, metrics)

    def close(self) -> None:
        """Mark the run as finished or failed."""
        with _warn_of_mlflow_errors():
            self.client.set_terminated(self.run_id, self.status)


@contextlib.contextmanager
def _warn_of_mlflow_errors() -> Iterator[None]:
    """Turn MLflow's errors into warnings: a tracking server that does not answer must not stop training."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        logging.getLogger(__name__).warning("train.mlflow: %s", URL_CREDENTIALS.sub("***@", shorten(error, 200)))
