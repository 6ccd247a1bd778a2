"""Test prediction on a Ray cluster: complete results, resumed runs, and failures."""

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from ray.util.state import list_actors

from kp_ray.cluster.errors import PROCESS_DIED
from kp_ray.config.schema import Config
from kp_ray.data.submission import read_sample_submission, read_submission
from kp_ray.errors import ClusterError, ModelError, RunStateError, StoppedError
from kp_ray.keypoints import DACON24
from kp_ray.prediction import run as run_module
from kp_ray.prediction.evaluate import evaluate_run
from kp_ray.prediction.images import ImageRef
from kp_ray.prediction.pool import PoolPlan
from kp_ray.prediction.predictor import BatchResult
from kp_ray.prediction.run import predict
from kp_ray.prediction.task import PredictionTask
from kp_ray.stage import no_progress
from kp_ray.storage import writer_lock
from tests.helpers.folds import predict_in_process
from tests.helpers.linked_runs import NUM_LINKS, configure_run, link_run
from tests.helpers.processes import run_command, run_kp_ray


def list_parts(config: Config) -> list[Path]:
    """List the parts in a run folder."""
    return sorted(Path(config.path("predictions")).rglob("*.parquet"))


def test_every_image_has_a_row_per_member_and_the_submission_is_valid(predicted_run: Config) -> None:
    sample = read_sample_submission(predicted_run.require_input("sample_submission"))
    table = pq.read_table(predicted_run.path("predictions.parquet")).to_pandas()
    expected_rows = [[image, member] for image in sample.images for member in ("a", "b")]
    assert table[["image", "member"]].to_numpy().tolist() == expected_rows
    assert (table["found"] == (table["score"] >= predicted_run.predict.score_threshold)).all()
    assert (table["num_people"] > 0).tolist() == (table["score"] > 0).tolist()
    scores_a, scores_b = (table[table["member"] == member]["score"].to_numpy() for member in ("a", "b"))
    assert not np.array_equal(scores_a, scores_b), "members with different seeds are different models"
    points = read_submission(predicted_run.path("submission.csv"), sample, DACON24, size=None)
    assert np.isfinite(points).all()


def test_each_part_holds_consecutive_images(predicted_run: Config) -> None:
    """A resumed run must make the same batches, because the last bits of a model's output depend on the batch."""
    images = read_sample_submission(predicted_run.require_input("sample_submission")).images
    parts = [set(pq.read_table(part)["image"].to_pylist()) for part in list_parts(predicted_run)]
    size = predicted_run.predict.batch_size
    assert sorted(map(sorted, parts)) == sorted(sorted(images[i : i + size]) for i in range(0, 10, size))


def test_an_evaluation_is_deleted_if_a_setting_changes_its_scores_but_not_the_submission(
    predicted_run: Config, tmp_path: Path
) -> None:
    shutil.copytree(predicted_run.run_dir, tmp_path / "copied")
    copied_run = configure_run(predicted_run, tmp_path / "copied")
    path = Path(copied_run.path("evaluation.json"))
    evaluate_run(copied_run)
    predict(copied_run)
    assert path.exists()
    submission = Path(copied_run.path("submission.csv")).read_bytes()
    section = copied_run.predict.model_copy(update={"missing": "zeros"})
    changed_config = copied_run.model_copy(update={"predict": section})
    predict(changed_config)
    assert Path(copied_run.path("submission.csv")).read_bytes() == submission
    assert not path.exists()
    path.write_text("{cut")
    predict(changed_config)
    assert not path.exists(), "a damaged file"


def test_a_pool_that_may_fill_the_cluster_leaves_cpus_for_decoding(run_with_store: Config, tmp_path: Path) -> None:
    details, cost = predict(link_run(run_with_store, tmp_path / "run", actors=[2, 8], batch_size=1))
    assert (details.images, cost.compute, cost.gpus_per_actor) == (10, "cpu, fp32", 0)


def test_with_gpus_each_actor_takes_a_gpu_and_the_batches_are_the_same_as_on_cpus(
    run_with_store: Config, tmp_path: Path
) -> None:
    """The GPU is a logical resource: the actor reserves it and computes on a CPU."""
    config = link_run(run_with_store, tmp_path / "run", batch_size=3)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    result = run_kp_ray("predict", str(path), "--set", "cluster.num_gpus=1", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(Path(config.path("predict.json")).read_text())["took"]["gpus_per_actor"] == 1
    images = read_sample_submission(config.require_input("sample_submission")).images
    parts = [set(pq.read_table(part)["image"].to_pylist()) for part in list_parts(config)]
    assert sorted(map(sorted, parts)) == sorted(sorted(images[i : i + 3]) for i in range(0, 10, 3))


def test_predicting_again_predicts_nothing_and_keeps_predict_json(predicted_run: Config) -> None:
    path = Path(predicted_run.path("predict.json"))
    earlier_values = json.loads(path.read_text())
    assert earlier_values["took"]["predicted"] == earlier_values["images"] == 10
    assert earlier_values["took"]["seconds"] > 0
    details, cost = predict(predicted_run)
    assert cost.predicted == 0
    assert details.took.predicted == 10
    assert json.loads(path.read_text()) == earlier_values
    assert len(earlier_values["filled"]) == sum(earlier_values["fallbacks"].values())
    assert earlier_values["people"]["rule"] == "track"


def test_only_missing_and_changed_images_are_predicted_again_and_unusable_images_are_listed(
    predicted_run: Config, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(predicted_run.require_input("test_images"), images)
    config = link_run(predicted_run, tmp_path / "run", {"test_images": str(images)}, batch_size=2)
    shutil.copytree(predicted_run.path("predictions"), config.path("predictions"))
    shutil.copy(predicted_run.path("predictions.parquet"), config.run_dir)
    assert not PredictionTask(config).find_missing_images()
    lost_part, copied_part, *_ = list_parts(config)
    lost_images = set(pq.read_table(lost_part)["image"].to_pylist())
    lost_part.unlink()
    copied_part.with_name(f"copy-{copied_part.name}").write_bytes(copied_part.read_bytes())
    sample = read_sample_submission(config.require_input("sample_submission"))
    invalid_name, deleted_name = [name for name in sample.images if name not in lost_images][:2]
    (images / invalid_name).write_bytes(b"not an image")
    (images / deleted_name).unlink()
    details, cost = predict(config)
    assert cost.predicted == len(lost_images) + 2
    reasons = {row.image: row.reason for row in details.unusable}
    assert reasons.keys() == {invalid_name, deleted_name}
    assert "not an image" in reasons[invalid_name]
    assert "no such file" in reasons[deleted_name]
    expected_rows, rows = (
        [row for row in pq.read_table(run.path("predictions.parquet")).to_pylist() if row["image"] not in reasons]
        for run in (predicted_run, config)
    )
    assert str(rows) == str(expected_rows), "a duplicate part adds no row"  # as text, because NaN is not equal to NaN
    points = read_submission(config.path("submission.csv"), sample, DACON24, size=None)
    assert len(points) == len(sample.images)
    shutil.copy2(Path(predicted_run.require_input("test_images"), deleted_name), images)
    changed_name = next(name for name in reversed(sample.images) if name not in reasons)
    (images / changed_name).write_bytes((images / deleted_name).read_bytes())
    names = [ref.image for ref in PredictionTask(config).find_missing_images()]
    assert names == [changed_name, invalid_name], "changed images come first; a restored image keeps its earlier part"


def test_a_second_driver_of_a_run_folder_is_refused(predicted_run: Config) -> None:
    with writer_lock(predicted_run.path("predictions")), pytest.raises(RunStateError, match="another process"):
        predict(predicted_run)


def test_images_of_the_store_are_not_predicted_while_another_process_augments(
    predicted_run: Config, tmp_path: Path
) -> None:
    config = link_run(predicted_run, tmp_path / "run", images="store:val")
    with writer_lock(config.path("store")), pytest.raises(RunStateError, match="store: another process"):
        predict(config)


Batches = Iterator[BatchResult]


@pytest.fixture
def crashing_task(run_with_members: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PredictionTask:
    """Make a task of the 10 test images, for a cluster of one node with 4 CPUs that is not started."""
    monkeypatch.setattr(run_module, "model_nodes", lambda: [{"Resources": {"CPU": 4.0}}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    return PredictionTask(link_run(run_with_members, tmp_path / "run"))


def record_runs(monkeypatch: pytest.MonkeyPatch, *runs: Callable[[], Batches]) -> list[list[ImageRef]]:
    """Replace the runs of Ray Data by functions; return a list that receives the images of each run."""
    images_by_run: list[list[ImageRef]] = []

    def predict_batches(task: PredictionTask, plan: PoolPlan, images: Sequence[ImageRef]) -> Batches:
        images_by_run.append(list(images))
        yield from runs[len(images_by_run) - 1]()

    monkeypatch.setattr(run_module, "predict_batches", predict_batches)
    return images_by_run


def predict_part(task: PredictionTask, num_images: int) -> Batches:
    """Write the part of the first missing images, and yield its result."""
    predict_in_process(task, num_images)
    yield BatchResult(num_images, time.time(), "cpu, fp32")


def crash() -> Batches:
    """Fail as a run of Ray Data does whose worker processes die."""
    raise ray.exceptions.WorkerCrashedError
    yield


def test_after_a_crash_the_remaining_images_are_predicted_in_another_run(
    crashing_task: PredictionTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, counts = crashing_task, list[int]()
    images = task.find_missing_images()
    images_by_run = record_runs(
        monkeypatch, lambda: chain(predict_part(task, 2), crash()), lambda: predict_part(task, 8)
    )
    cost = run_module.predict_images(task, images, lambda name, done, total, note="": counts.append(done))
    assert images_by_run == [images, images[2:]]
    assert not task.find_missing_images()
    assert (cost.predicted, cost.compute, counts) == (10, "cpu, fp32", [0, 2, 10])


def test_a_run_that_crashes_without_a_finished_image_is_the_last(
    crashing_task: PredictionTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = crashing_task
    images = task.find_missing_images()
    images_by_run = record_runs(monkeypatch, lambda: chain(predict_part(task, 2), crash()), crash)
    message = (
        f"predicting stopped with 8 images left, first {images[2].image}: {PROCESS_DIED}; finished images are kept"
    )
    with pytest.raises(StoppedError, match=re.escape(message)):
        run_module.predict_images(task, images, no_progress)
    assert images_by_run == [images, images[2:]]


KILLED_DRIVER = """
import os, sys
import ray
from kp_ray.config.load import load_config
from kp_ray.prediction.run import predict

def progress(name, done, total, note=""):
    if done >= 3:
        os.kill(os.getpid(), 9)

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
predict(load_config(sys.argv[2]), progress)
"""


@pytest.mark.slow
def test_after_kills_of_the_driver_and_an_actor_only_missing_images_are_predicted(
    run_with_store: Config, linked_data: dict[str, Any], expected_predictions: bytes, tmp_path: Path
) -> None:
    config = link_run(run_with_store, tmp_path / "run", linked_data, batch_size=1)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    address = ray.get_runtime_context().gcs_address
    result = run_command(sys.executable, "-c", KILLED_DRIVER, address, str(tmp_path / "config.yaml"), timeout_s=300)
    assert result.returncode == -signal.SIGKILL, result.stderr[-2000:]
    assert not Path(config.path("predictions.parquet")).exists()
    num_finished = len(list_parts(config))
    assert 3 <= num_finished < 10 * NUM_LINKS
    actor_pids: list[int] = []

    def kill_actor(name: str, done: int, total: int, note: str = "") -> None:
        if not actor_pids and done >= 2:
            actors = list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True)
            actor_pids.extend(actor.pid for actor in actors if "Predictor" in actor.class_name)
            os.kill(actor_pids[0], signal.SIGKILL)

    _, cost = predict(config, kill_actor)
    assert cost.predicted <= 10 * NUM_LINKS - num_finished
    assert actor_pids
    assert Path(config.path("predictions.parquet")).read_bytes() == expected_predictions


LOST_NODE_DRIVER = """
import sys
import ray
from ray.cluster_utils import Cluster
from kp_ray.config.load import load_config
from kp_ray.prediction.run import predict

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second_node = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)

def progress(name, done, total, note=""):
    global second_node
    if second_node and len([node for node in ray.nodes() if node["Alive"]]) == 2 and done >= 4:
        cluster.remove_node(second_node, allow_graceful=False)
        second_node = None

details, _ = predict(load_config(sys.argv[1]), progress)
print("lost a node:", second_node is None, "images:", details.images)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_after_the_loss_of_a_node_no_row_is_missing_or_duplicated(
    run_with_store: Config, linked_data: dict[str, Any], expected_predictions: bytes, tmp_path: Path
) -> None:
    config = link_run(run_with_store, tmp_path / "run", linked_data, batch_size=1, actors=[2, 2])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    result = run_command(sys.executable, "-c", LOST_NODE_DRIVER, str(tmp_path / "config.yaml"), timeout_s=500)
    assert f"lost a node: True images: {10 * NUM_LINKS}" in result.stdout, result.stderr[-3000:]
    assert Path(config.path("predictions.parquet")).read_bytes() == expected_predictions


def test_a_damaged_member_stops_the_prediction_and_the_error_names_the_damaged_file(
    run_with_store: Config, tmp_path: Path
) -> None:
    config = link_run(run_with_store, tmp_path / "run")
    (tmp_path / "run" / "members").unlink()
    shutil.copytree(run_with_store.path("members"), tmp_path / "run" / "members")
    weights_path = Path(config.member_dir("b"), "model_final.pth")
    weights_path.write_bytes(weights_path.read_bytes()[:100_000])
    with pytest.raises(ModelError, match=r"stopped with 10 images left, .*model_final\.pth: damaged") as caught:
        predict(config)
    assert isinstance(caught.value.__cause__, ModelError)


def test_an_actor_that_fits_no_node_is_refused(run_with_store: Config, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"no node has .* for an actor: lower predict\.cpus_per_actor"):
        predict(link_run(run_with_store, tmp_path / "run", gpus_per_actor=1))


GPU_DRIVER = """
import sys
import ray
from ray.util.state import list_actors
from kp_ray.config.load import load_config
from kp_ray.prediction.run import predict

ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=True, logging_level="ERROR", log_to_driver=False)
gpus_of_actors = []

def progress(name, done, total, note=""):
    address = ray.get_runtime_context().gcs_address
    actors = [actor for actor in list_actors(address=address, detail=True) if actor.state == "ALIVE"]
    resources = [actor.required_resources for actor in actors]
    gpus_of_actors.append(sorted(numbers["GPU"] for numbers in resources if "GPU" in numbers))

details, cost = predict(load_config(sys.argv[1]), progress)
print(details.images, max(gpus_of_actors, key=len), cost.compute)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("gpus_per_actor", "expected_gpus"), [(None, [1.0, 1.0]), (0.5, [0.5, 0.5])])
def test_each_actor_takes_one_gpu_or_the_number_of_gpus_that_the_config_sets(
    run_with_store: Config,
    linked_data: dict[str, Any],
    tmp_path: Path,
    gpus_per_actor: float | None,
    expected_gpus: list[float],
) -> None:
    """The GPUs are logical resources: the actors reserve them and compute on CPUs."""
    config = link_run(
        run_with_store, tmp_path / "run", linked_data, gpus_per_actor=gpus_per_actor, actors=[2, 3], batch_size=2
    )
    (tmp_path / "gpu.yaml").write_text(config.to_yaml())
    result = run_command(sys.executable, "-c", GPU_DRIVER, str(tmp_path / "gpu.yaml"), timeout_s=300)
    expected_line = f"{10 * NUM_LINKS} {expected_gpus} cpu, fp32"
    assert result.stdout.strip().splitlines()[-1:] == [expected_line], result.stderr[-2000:]
