"""The log that a training run writes: metrics.json, TensorBoard, MLflow."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import DivergedError
from kp_ray.training.run import train
from tests.helpers.training import TrainedMember, read_log_lines

MLFLOW_WARNING = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # SQLAlchemy 2.1


def test_tensorboard_has_the_values_of_the_log(trained_member: TrainedMember) -> None:
    board = EventAccumulator(str(Path(trained_member.config.member_dir("a"), "tensorboard"))).Reload()
    assert [event.step for event in board.Scalars("total_loss")] == list(range(8))
    logged_values = [line["val/rmse"] for line in read_log_lines(trained_member.config) if "val/rmse" in line]
    assert [event.value for event in board.Scalars("val/rmse")] == pytest.approx(logged_values)


@pytest.mark.slow
@MLFLOW_WARNING
def test_mlflow_has_the_values_of_the_log_in_one_run_after_a_restart(make_config: Callable[..., Config]) -> None:
    mlflow = pytest.importorskip("mlflow")
    config = make_config(train={"mlflow": "local"})
    folder = Path(config.member_dir("a"))
    for _ in range(2):
        (folder / "model_final.pth").unlink(missing_ok=True)
        train(config)
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("kp_ray").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a")
    for name in ("total_loss", "lr", "val/rmse"):
        history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        lines = [line for line in read_log_lines(config) if name in line]
        assert history == [(line["iteration"], pytest.approx(line[name])) for line in lines]


@pytest.mark.slow
@MLFLOW_WARNING
def test_a_member_that_resumes_with_another_mlflow_server_has_a_run_there(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow")
    config, uri = make_config(train={"mlflow": "local"}), f"sqlite:///{tmp_path}/other.db"
    train(config)
    Path(config.member_dir("a"), "model_final.pth").unlink()
    values = config.to_dict()
    train(build_config({**values, "train": {**values["train"], "mlflow": uri}}))
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("kp_ray").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a")


@pytest.mark.slow
@MLFLOW_WARNING
def test_mlflow_shows_a_run_that_diverged_as_failed(make_config: Callable[..., Config]) -> None:
    mlflow = pytest.importorskip("mlflow")
    diverging = {"optimizer": "sgd", "base_lr": 1e12, "warmup_iters": 0, "max_iter": 6}
    config = make_config(train={"mlflow": "local", **diverging})
    with pytest.raises(DivergedError):
        train(config)
    client = mlflow.MlflowClient(f"sqlite:///{config.member_dir('a')}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("kp_ray").experiment_id])
    assert run.info.status == "FAILED"
