"""Predict images with every member on the Ray cluster, and fuse the result.

Two operators of Ray Data work on batches of images: tasks on CPUs read, decode and resize the images, and actors, each
of which holds all members, find the people. An actor writes the detections of a batch to a part under
`<run_dir>/predictions/`, so that a stopped run resumes with the images that have no part. The parts are merged into
`predictions.parquet`. Fusion and evaluation read only this file, and need no model.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence

import ray

from kp_ray.cluster.errors import describe_ray_error
from kp_ray.cluster.placement import MODEL_LABEL, MODEL_NODE_SELECTOR, model_nodes
from kp_ray.cluster.ray_internals import bounded_actor_retries, bounded_task_retries
from kp_ray.cluster.resources import SMALLEST_CPU_FRACTION, require_cpus
from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError, StoppedError
from kp_ray.prediction.decode import decode_batch, refs_table
from kp_ray.prediction.fuse import write_fused
from kp_ray.prediction.images import ImageRef, is_store_split
from kp_ray.prediction.pool import PoolPlan, plan_pool
from kp_ray.prediction.predictor import BatchResult, Predictor
from kp_ray.prediction.records import PredictionCost, PredictionDetails, delete_outdated_evaluation
from kp_ray.prediction.settings import describe_actors
from kp_ray.prediction.task import PredictionTask
from kp_ray.stage import Progress, no_progress
from kp_ray.storage import reader_lock, writer_lock


def predict(config: Config, progress: Progress = no_progress) -> tuple[PredictionDetails, PredictionCost]:
    """Predict the images, fuse, and write `predictions.parquet`, `submission.csv` and `predict.json`.

    Images that an earlier run finished with the same members and settings are not predicted again.

    Args:
        config: the run's configuration. The run folder must hold the trained members. If an image is not predicted
            yet, a Ray cluster must be running.
        progress: called with "", the number of predicted images, the number of images to predict, and a note that says
            whether the actors have GPUs.

    Returns:
        The content of `predict.json`, and the cost of this run.

    Raises:
        RunStateError: another process predicts in this run folder, or writes the store that holds the images.
        KpRayError: a member is not trained, no image could be used, nobody was found, or predicting was stopped.
    """
    with reader_lock(config.path("store")) if is_store_split(config) else contextlib.nullcontext():
        task = PredictionTask(config)
        with writer_lock(config.path("predictions")):
            config.save()
            cost = predict_images(task, task.find_missing_images(), progress)
            # Before a kill can leave it beside new predictions or a new submission.
            delete_outdated_evaluation(config, [] if cost.predicted else [ref.image for ref in task.images])
            task.merge()
            return write_fused(config, cost), cost


def predict_images(task: PredictionTask, images: Sequence[ImageRef], progress: Progress) -> PredictionCost:
    """Predict images of a task; if predicting is stopped, the parts of finished batches stay.

    Args:
        task: gives the members, the input sizes and the folder.
        images: images to predict, from `task.find_missing_images()`.
        progress: as in `predict`.

    Raises:
        KpRayError: as `predict`.
    """
    if not images:
        return PredictionCost(predicted=0, seconds=0.0, start_up_s=0.0)
    nodes = model_nodes()
    require_cpus(task.config.cluster, nodes, label=MODEL_LABEL, num_cpus=SMALLEST_CPU_FRACTION, purpose="predict")
    plan = plan_pool(task.config, [node["Resources"] for node in nodes], ray.cluster_resources().get("CPU", 0))
    note = describe_actors(plan.gpus_per_actor)
    progress("", 0, len(images), note)
    began, num_done, devices = time.time(), 0, set[str]()
    first_batch_began = float("inf")
    for result in _predict_with_retries(task, plan, images):
        first_batch_began = min(first_batch_began, result.began)
        # After a failed run of Ray Data, unusable images are tried, and so counted, a second time.
        num_done = min(num_done + result.num_images, len(images))
        devices.add(result.device_and_precision)
        progress("", num_done, len(images), note)
    # Without a result the time is infinite, and a node's clock may be fast: both would make `seconds` negative.
    first_batch_began = min(first_batch_began, time.time())
    return PredictionCost(
        predicted=len(images),
        seconds=time.time() - first_batch_began,
        start_up_s=max(0.0, first_batch_began - began),
        gpus_per_actor=plan.gpus_per_actor,
        compute="; ".join(sorted(devices)),
    )


def _predict_with_retries(task: PredictionTask, plan: PoolPlan, images: Sequence[ImageRef]) -> Iterator[BatchResult]:
    """Predict images; after a failed run of Ray Data, start another run for the remaining images.

    A lost node can end a whole run of Ray Data: the calls to the node's actors fail several times a second and use up
    their retries. Retries are limited, because an image that kills every process that reads it would hang a run with
    unlimited retries.

    Raises:
        StoppedError: processes died, and the failed run finished no image.
        KpRayError: an actor failed with this error.
    """
    while images:
        try:
            for result in predict_batches(task, plan, images):
                result.raise_if_failed()
                yield result
            return
        except KpRayError as error:
            message = _describe_stop(task, task.find_missing_images(), str(error))
            raise type(error)(message) from error
        except ray.exceptions.RayError as error:
            remaining_images = task.find_missing_images()
            if remaining_images and len(remaining_images) >= len(images):
                raise StoppedError(_describe_stop(task, remaining_images, describe_ray_error(error))) from error
            images = remaining_images


def _describe_stop(task: PredictionTask, remaining_images: Sequence[ImageRef], reason: str) -> str:
    first_image = f", first {remaining_images[0].image}" if remaining_images else ""
    return (
        f"{task.folder}: predicting stopped with {len(remaining_images)} images left{first_image}: {reason}; "
        "finished images are kept, run predict again to resume"
    )


def predict_batches(
    task: PredictionTask, plan: PoolPlan, images: Sequence[ImageRef], predictor: type[Predictor] = Predictor
) -> Iterator[BatchResult]:
    """Predict images in one run of Ray Data; each batch becomes a part.

    Args:
        task: gives the members, the input sizes and the folder.
        plan: gives the actors and the decoding tasks.
        images: images to predict.
        predictor: class of the actors; benchmarks/predict.py passes a class without a model.

    Raises:
        ray.exceptions.RayError: processes died, or failed with an error that is not a `KpRayError`.
    """
    # The last bits of a model's output depend on the batch, so a resumed run must make the same batches: each is a
    # slice of the ordered images.
    batch_size = task.config.predict.batch_size
    batches = [refs_table(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    max_actors = min(plan.max_actors, len(batches))
    with ray_data_settings():
        context = ray.data.DataContext.get_current()
        context.op_resource_reservation_enabled = True  # bounds the memory of decoded images that wait for an actor
        context.target_max_block_size = None  # keeps a batch of many or large images in one block
        # Without the order, the last block, which can be smaller, may come early and share a batch with another block.
        context.execution_options.preserve_order = True
        results = (
            ray.data.from_arrow(batches)
            .map_batches(
                decode_batch,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"sizes": task.input_sizes},
                compute=ray.data.TaskPoolStrategy(size=min(plan.max_decode_tasks, len(batches))),
                num_cpus=plan.cpus_per_decode_task,
                **bounded_task_retries(),
            )
            .map_batches(
                predictor,
                batch_size=batch_size,  # a block's size; with GPUs Ray refuses None, which would mean the same
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
