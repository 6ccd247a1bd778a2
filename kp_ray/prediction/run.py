"""Predict images with every member on the Ray cluster, and fuse the result.

Two operators of Ray Data work on batches of images: tasks on CPUs read, decode and resize the images, and actors, each
of which holds all members, find the people. An actor writes the detections of a batch to a part file under
`<run_dir>/predictions/`, so that a stopped run resumes with the images that are missing. The parts are merged into
`predictions.parquet`. Fusing and evaluating read only that file, and need no model.
"""

import time
from collections.abc import Iterator, Sequence

import ray

from kp_ray.cluster.errors import describe_ray_error
from kp_ray.cluster.placement import MODEL_NODE_SELECTOR, model_nodes
from kp_ray.cluster.ray_internals import bounded_actor_retries, bounded_task_retries
from kp_ray.cluster.resources import SMALLEST_SHARE, require_cpus
from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError, StoppedError
from kp_ray.prediction.decode import decode_batch, refs_table
from kp_ray.prediction.fuse import write_fused
from kp_ray.prediction.images import ImageRef
from kp_ray.prediction.pool import PoolPlan, plan_pool
from kp_ray.prediction.predictor import BatchResult, Predictor
from kp_ray.prediction.records import PredictionDetails, PredictionTime
from kp_ray.prediction.settings import describe_actors
from kp_ray.prediction.task import PredictionTask
from kp_ray.stage import Progress, no_progress
from kp_ray.storage import writer_lock


def predict(config: Config, progress: Progress = no_progress) -> tuple[PredictionDetails, PredictionTime]:
    """Predict the images, fuse, and write `predictions.parquet`, `submission.csv` and `predict.json`.

    Images that an earlier run finished with the same members and settings are not predicted again.

    Args:
        config: its run folder must hold the trained members. A Ray cluster must be running unless every image is
            predicted.
        progress: called as progress("", predicted images, images to predict), with the actors' device as the note.

    Returns:
        The content of `predict.json`, and the cost of this run.

    Raises:
        RunStateError: another process predicts in this run folder.
        KpRayError: a member is not trained, no image could be used, nobody was found, or predicting was stopped.
    """
    task = PredictionTask(config)
    with writer_lock(config.path("predictions")):
        config.save()
        took = predict_missing(task, task.find_missing(), progress)
        task.merge()
        return write_fused(config, took), took


def predict_missing(task: PredictionTask, missing: Sequence[ImageRef], progress: Progress) -> PredictionTime:
    """Predict the missing images of a task; the parts of each batch stay if it is stopped.

    Args:
        task: the images and members.
        missing: `task.find_missing()`.
        progress: as in `predict`.

    Raises:
        KpRayError: as `predict`.
    """
    if not missing:
        return PredictionTime(predicted=0, seconds=0.0, start_up_s=0.0)
    nodes = model_nodes()
    require_cpus(task.config.cluster, nodes, num_cpus=SMALLEST_SHARE, purpose="predict")
    plan = plan_pool(task.config, [node["Resources"] for node in nodes], ray.cluster_resources().get("CPU", 0))
    note = describe_actors(plan.gpus_per_actor)
    progress("", 0, len(missing), note)
    began, num_done, compute = time.time(), 0, set[str]()
    first_began = float("inf")
    for result in _predict_with_retries(task, plan, missing):
        first_began = min(first_began, result.began)
        num_done = min(num_done + result.num_images, len(missing))
        compute.add(result.compute)
        progress("", num_done, len(missing), note)
    first_began = min(first_began, time.time())
    return PredictionTime(
        predicted=len(missing),
        seconds=time.time() - first_began,
        start_up_s=max(0.0, first_began - began),
        gpus_per_actor=plan.gpus_per_actor,
        compute="; ".join(sorted(compute)),
    )


def _predict_with_retries(task: PredictionTask, plan: PoolPlan, missing: Sequence[ImageRef]) -> Iterator[BatchResult]:
    """Predict images; if a run of Ray Data fails, start another for the images left, as long as each finishes some.

    A lost node can end a whole run: calls to its actors fail several times a second, and their retries must be bounded,
    because an image that kills its process would hang the run.

    Raises:
        StoppedError: processes died, and no image was finished since the last attempt.
        KpRayError: an actor failed with this error.
    """
    while missing:
        try:
            for result in predict_batches(task, plan, missing):
                result.raise_error()
                yield result
            return
        except KpRayError as error:
            message = _describe_stop(task, task.find_missing(), str(error))
            raise type(error)(message) from error
        except ray.exceptions.RayError as error:
            remaining = task.find_missing()
            if remaining and len(remaining) >= len(missing):
                raise StoppedError(_describe_stop(task, remaining, describe_ray_error(error))) from error
            missing = remaining


def _describe_stop(task: PredictionTask, remaining: Sequence[ImageRef], reason: str) -> str:
    first_image = f", first {remaining[0].image}" if remaining else ""
    return (
        f"{task.folder}: predicting stopped with {len(remaining)} images left{first_image}: {reason}; "
        "finished images are kept, run predict again to resume"
    )


def predict_batches(
    task: PredictionTask, plan: PoolPlan, missing: Sequence[ImageRef], predictor: type[Predictor] = Predictor
) -> Iterator[BatchResult]:
    """Predict images in one run of Ray Data; each batch becomes a part.

    Args:
        task: gives the members, the input sizes and the folder.
        plan: gives the actors and the decoding tasks.
        missing: images to predict.
        predictor: class of the actors; benchmarks/predict.py passes one without a model.

    Raises:
        ray.exceptions.RayError: processes died, or failed with an error that is not a `KpRayError`.
    """
    # Batches are slices of the images' order, so that a resumed run makes the same ones.
    batch_size = task.config.predict.batch_size
    batches = [refs_table(missing[i : i + batch_size]) for i in range(0, len(missing), batch_size)]
    max_actors = min(plan.max_actors, len(batches))
    with ray_data_settings():
        context = ray.data.DataContext.get_current()
        context.op_resource_reservation_enabled = True  # bounds the memory of decoded images that wait for an actor
        context.target_max_block_size = None  # a batch of many or large images must remain one block
        context.execution_options.preserve_order = (
            True  # keeps the last block, which can be smaller, a batch of its own
        )
        results = (
            ray.data.from_arrow(batches)
            .map_batches(
                decode_batch,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"sizes": task.input_sizes},
                compute=ray.data.TaskPoolStrategy(size=min(plan.max_decodes, len(batches))),
                num_cpus=plan.cpus_per_decode,
                **bounded_task_retries(),
            )
            .map_batches(
                predictor,
                batch_size=batch_size,  # that of the blocks; Ray refuses None for an operator with GPUs
                batch_format="pyarrow",
                fn_constructor_kwargs=task.predictor_arguments(has_gpu=plan.gpus_per_actor > 0),
                compute=ray.data.ActorPoolStrategy(
                    min_size=min(plan.min_actors, max_actors),
                    max_size=max_actors,
                    max_tasks_in_flight_per_actor=2,  # few, so that the last batches are spread over the pool
                ),
                num_cpus=plan.cpus_per_actor,
                num_gpus=plan.gpus_per_actor or None,
                label_selector=MODEL_NODE_SELECTOR,
                **bounded_actor_retries(),
            )
        )
    for row in results.iter_rows():
        yield BatchResult(**row)
