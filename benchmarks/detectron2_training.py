"""Train keypoint R-CNN with Detectron2's own trainer and data loader; `gpu.py` runs this script as its baseline.

    python detectron2_training.py REQUEST.json

The request's keys: `config` (path of a member's config.yaml), `annotations` (a table of keypoints), `images` (their
folder), `device`, `iterations`, `start_up` (how many of them), `loader_processes`, `amp` (16-bit numbers with loss
scaling) and `folder` for the trainer's files. The last line of stdout is a JSON object: `seconds` per iteration after
the start-up and `wait_ms`, for which the trainer waits for images, both as means; `first_loss`, of the start-up's last
iteration, and `last_loss`.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import cv2
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.structures import BoxMode

from kp_ray.data.annotations import Annotations
from kp_ray.data.load import load_annotations

DATASET = "people"
KEYS = ("time", "data_time", "total_loss")
"""Values that the trainer records in every iteration."""


def list_people(labels: Annotations, images: str) -> list[dict[str, Any]]:
    """Return the labelled images and their people in Detectron2's format."""
    records = []
    for number, (name, points) in enumerate(zip(labels.images, labels.keypoints[..., :2], strict=True)):
        path = str(Path(images, name))
        height, width = cv2.imread(path).shape[:2]
        person = {
            "bbox": [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 0,
            "keypoints": [value for x, y in points.tolist() for value in (x, y, 2)],
        }
        records.append(
            {"file_name": path, "image_id": number, "height": height, "width": width, "annotations": [person]}
        )
    return records


def main() -> None:
    """Train as the request says."""
    request = json.loads(Path(sys.argv[1]).read_text())
    labels = load_annotations(request["annotations"])
    names, pairs = labels.skeleton.names, labels.skeleton.flip_pairs
    DatasetCatalog.register(DATASET, lambda: list_people(labels, request["images"]))
    MetadataCatalog.get(DATASET).set(thing_classes=["person"], keypoint_names=names, keypoint_flip_map=pairs)
    cfg = get_cfg()
    cfg.set_new_allowed(True)
    cfg.merge_from_file(request["config"])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (DATASET,), ()
    cfg.DATALOADER.NUM_WORKERS = request["loader_processes"]
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "", request["device"], request["folder"]
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.AMP.ENABLED = request["iterations"], request["amp"]
    cfg.TEST.EVAL_PERIOD = 0
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    # The trainer's own log holds medians of twenty iterations.
    values = {key: [value for value, _ in trainer.storage.history(key).values()] for key in KEYS}
    start_up = request["start_up"]
    result = {
        "seconds": statistics.mean(values["time"][start_up:]),
        "wait_ms": 1000 * statistics.mean(values["data_time"][start_up:]),
        "first_loss": values["total_loss"][start_up - 1],
        "last_loss": values["total_loss"][-1],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
