"""Run the published solution's augmentation loop: one Albumentations pipeline per recipe, cv2.imread, cv2.imwrite.

`benchmarks/augment.py` runs this file in an environment with older libraries and without kp_ray:

    python benchmarks/published_loop.py REQUEST.json

REQUEST.json holds `pipelines` (name -> list of [transform, arguments]), `images` (paths), `keypoints` (K pairs x, y per
image), `folder` (receives the variants) and `processes`; one process uses OpenCV's own threads, more use one thread
each. Prints one JSON object: `seconds` without start-up, and `versions`.
"""

import json
import multiprocessing
import os
import sys
import time

import albumentations as A  # noqa: N812
import cv2
import numpy as np

KEYPOINT_PARAMS = {"format": "xy", "label_fields": ["class_labels"], "remove_invisible": False}
_pipelines = {}


def build_pipelines(pipelines, single_thread, barrier=None):
    """Build the pipelines of this process, and wait at the barrier until every process has built its own."""
    if single_thread:
        cv2.setNumThreads(1)
    for name, steps in pipelines.items():
        transforms = [getattr(A, transform)(**arguments) for transform, arguments in steps]
        _pipelines[name] = A.Compose(transforms, keypoint_params=A.KeypointParams(**KEYPOINT_PARAMS))
    if barrier is not None:
        barrier.wait()


def augment(path, keypoints, folder):
    """Write every variant of one image."""
    image = cv2.imread(path)
    labels = [str(number) for number in range(len(keypoints))]
    for name, pipeline in _pipelines.items():
        result = pipeline(image=image, keypoints=keypoints, class_labels=labels)
        np.array(result["keypoints"]).flatten()  # the published loop does this too
        cv2.imwrite(os.path.join(folder, f"{name}_{os.path.basename(path)}"), result["image"])


def main():
    """Run the loop, and print the seconds and the versions."""
    with open(sys.argv[1]) as file:
        request = json.load(file)
    arguments = [(path, xy, request["folder"]) for path, xy in zip(request["images"], request["keypoints"])]  # noqa: B905
    if request["processes"] == 1:
        build_pipelines(request["pipelines"], single_thread=False)
        began = time.perf_counter()
        for item in arguments:
            augment(*item)
        seconds = time.perf_counter() - began
    else:
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(request["processes"] + 1)
        with context.Pool(request["processes"], build_pipelines, (request["pipelines"], True, barrier)) as pool:
            barrier.wait()
            began = time.perf_counter()
            pool.starmap(augment, arguments, chunksize=4)
            seconds = time.perf_counter() - began
    versions = {"albumentations": A.__version__, "OpenCV": cv2.__version__, "NumPy": np.__version__}
    print(json.dumps({"seconds": seconds, "versions": versions}))


if __name__ == "__main__":
    main()
