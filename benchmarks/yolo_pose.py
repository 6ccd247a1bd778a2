"""Train YOLO-pose and predict images, in an environment that has Ultralytics; `peer.py` runs this script.

    python yolo_pose.py REQUEST.json

The request's keys: `data` (path of the data file), `folder`, `images` (paths), `seconds` of training, `threads`, and
`settings` of Ultralytics' `train`. The last line of stdout is a JSON object: `points` (image path -> K pairs x, y in
pixels, or null), `cpu_s`, `seconds` and `epochs` of the training, and `versions`.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import ultralytics
from ultralytics import YOLO


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its finished child processes."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def train(request: dict[str, Any]) -> tuple[YOLO, dict[str, Any]]:
    """Train from random weights until the seconds are over; return the last model and figures about the training."""
    model = YOLO("yolo11n-pose.yaml")
    epochs = 0

    def set_threads(trainer: Any) -> None:
        torch.set_num_threads(request["threads"])  # Ultralytics has chosen one thread less than the machine has CPUs

    def count_epoch(trainer: Any) -> None:
        nonlocal epochs
        epochs += 1

    model.add_callback("on_train_start", set_threads)
    model.add_callback("on_train_epoch_end", count_epoch)
    cpu_before, began = cpu_seconds(), time.monotonic()
    model.train(
        data=request["data"],
        project=request["folder"],
        name="run",
        time=request["seconds"] / 3600,
        pretrained=False,
        device="cpu",
        workers=0,
        val=False,
        plots=False,
        verbose=False,
        seed=1,
        **request["settings"],
    )
    figures = {"cpu_s": cpu_seconds() - cpu_before, "seconds": time.monotonic() - began, "epochs": epochs}
    return YOLO(Path(request["folder"], "run", "weights", "last.pt")), figures


def predict(model: YOLO, images: list[str], imgsz: int) -> dict[str, list[list[float]] | None]:
    """Return the keypoints of the person with the best score in each image; None where nobody is found."""
    points: dict[str, list[list[float]] | None] = {}
    for image in images:
        (result,) = model.predict(image, imgsz=imgsz, conf=0.001, device="cpu", verbose=False)
        found = result.boxes is not None and len(result.boxes) > 0
        points[image] = result.keypoints.xy[int(result.boxes.conf.argmax())].tolist() if found else None
    return points


def main() -> None:
    """Read the request, train, predict and print the result."""
    request = json.loads(Path(sys.argv[1]).read_text())
    model, figures = train(request)
    points = predict(model, request["images"], request["settings"]["imgsz"])
    versions = {"ultralytics": ultralytics.__version__, "torch": torch.__version__}
    print()
    print(json.dumps({**figures, "points": points, "versions": versions}))


if __name__ == "__main__":
    main()
