"""Predict images with every member, over a Ray Data actor pool, and fuse the result.

Every actor holds all members. The people that they find in a few images are a part file under `<run_dir>/predictions/`,
so a stopped run resumes with the images that are missing. The parts are merged into `predictions.parquet`; fusing and
evaluating start from that file and need no model.
"""

import time
from collections.abc import Iterator, Sequence

import ray

from kp_ray.cluster.errors import describe_ray_error
from kp_ray.cluster.placement import MODEL_NODES
from kp_ray.cluster.ray_internals import bounded_actor_retries
from kp_ray.cluster.resources import fits_a_node
from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError, KpRayError, StoppedError
from kp_ray.prediction.fuse import write_fused
from kp_ray.prediction.images import ImageRef
from kp_ray.prediction.predictor import BatchResult, Predictor, encode_batch
from kp_ray.prediction.records import PredictionDetails, PredictionTime
from kp_ray.prediction.task import PredictionTask
from kp_ray.stage import Progress, no_progress
from kp_ray.storage import writer_lock


def predict(config: Config, progress: Progress = no_progress) -> tuple[PredictionDetails, PredictionTime]:
    """Predict the images, fuse, and write `predictions.parquet`, `submission.csv` and `predict.json`.

    Images that an earlier run finished with the same members and settings are not predicted again.

    Args:
        config: with finished members in its run folder; a Ray cluster must be running unless every image is predicted.
        progress: called as progress("", images done, images in all).

    Returns:
        The content of `predict.json`, and the cost of this run.

    Raises:
        RunStateError: another process predicts in this run folder.
        KpRayError: a member is not trained, no image can be used, nobody was found, or the work stopped.
    """
    task = PredictionTask(config)
    with writer_lock(config.path("predictions")):
        config.save()
        began = time.time()
        first_began, done, missing = time.time(), 0, task.find_missing()
        for result in _predict_with_retries(task, missing):
            first_began = result.began if done == 0 else min(first_began, result.began)
            done = min(done + result.num_images, len(missing))
            progress("", done, len(missing))
        took = PredictionTime(
            predicted=len(missing), seconds=time.time() - first_began, start_up_s=max(0.0, first_began - began)
        )
        task.merge()
        return write_fused(config, took), took


def _predict_with_retries(task: PredictionTask, missing: Sequence[ImageRef]) -> Iterator[BatchResult]:
    """Predict images; start another actor pool for those that a lost pool left, as long as each finishes some.

    A lost node can end a whole Ray Data run: calls to its actors fail several times a second, and their retries must be
    bounded, because an image that kills its actor would hang the run.

    Raises:
        ClusterError: no node is large enough for an actor.
        StoppedError: actors died, and no image was finished since the last try.
        KpRayError: an actor failed with it.
    """
    section = task.config.predict
    if missing and not fits_a_node(task.config, section.cpus_per_actor, section.gpus_per_actor):
        raise ClusterError(
            f"no node has {section.cpus_per_actor:g} CPUs and {section.gpus_per_actor:g} GPUs for an actor: lower "
            "predict.cpus_per_actor or predict.gpus_per_actor, or set cluster.num_cpus and num_gpus if it grows"
        )
    while missing:
        try:
            for result in _predict_with_pool(task, missing):
                result.raise_error()
                yield result
            return
        except KpRayError as error:
            message = _describe_stop(task, task.find_missing(), str(error))
            raise type(error)(message) from error
        except ray.exceptions.RayError as error:
            left = task.find_missing()
            if left and len(left) >= len(missing):
                raise StoppedError(_describe_stop(task, left, describe_ray_error(error))) from error
            missing = left


def _describe_stop(task: PredictionTask, left: Sequence[ImageRef], reason: str) -> str:
    first = f", first {left[0].image}" if left else ""
    return (
        f"{task.folder}: predicting stopped with {len(left)} images left{first}: {reason}; "
        "what is finished is kept, run predict again to resume"
    )


def _predict_with_pool(task: PredictionTask, missing: Sequence[ImageRef]) -> Iterator[BatchResult]:
    """Predict images with one actor pool; each batch becomes a part.

    Raises:
        ray.exceptions.RayError: actors died, or failed with an error that is not a `KpRayError`.
    """
    section = task.config.predict
    # Batches are slices of the images' order, so a resumed run makes the same ones.
    batches = [missing[i : i + section.batch_size] for i in range(0, len(missing), section.batch_size)]
    smallest, largest = section.actors
    with ray_data_settings():
        rows = ray.data.from_items(
            [{"batch": encode_batch(batch)} for batch in batches], override_num_blocks=len(batches)
        ).map(
            Predictor,
            fn_constructor_args=(task.config.to_dict(), task.members, task.skeleton.names, task.folder),
            compute=ray.data.ActorPoolStrategy(
                min_size=min(smallest, len(batches)),
                max_size=min(largest, len(batches)),
                max_tasks_in_flight_per_actor=2,  # few, so that the last batches spread over the pool
            ),
            num_cpus=section.cpus_per_actor,
            num_gpus=section.gpus_per_actor or None,
            label_selector=MODEL_NODES,
            **bounded_actor_retries(),
        )
    for row in rows.iter_rows():
        yield BatchResult(**row)
