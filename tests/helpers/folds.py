"""Predict the images of a fold without a cluster."""

from kp_ray.prediction.decode import decode_batch, refs_table
from kp_ray.prediction.predictor import Predictor
from kp_ray.prediction.task import PredictionTask


def predict_in_process(task: PredictionTask, num_images: int | None = None) -> None:
    """Predict at most `num_images` missing images in this process; write the results as one part."""
    predictor = Predictor(**task.predictor_arguments(has_gpu=False))
    predictor.write_part(decode_batch(refs_table(task.find_missing_images()[:num_images]), task.input_sizes))
