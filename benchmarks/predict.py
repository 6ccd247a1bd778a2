"""Compare `kp-ray predict` with the published way of predicting, in turns, on the same images with the same members.

    python benchmarks/predict.py RUN_DIR --images 100 --repeats 5

A  the published way: one process, one Detectron2 DefaultPredictor per member, one image at a time, torch on all cores
B  `kp-ray predict`: a pool of one actor per core with one torch thread each

RUN_DIR holds trained members and a config.yaml; the images of its data.test_images are repeated up to `--images`.
Start-up (loading members; for B also Ray) is counted separately. Then B alone predicts `--many` images, to show its
rate and memory. Results: benchmarks/results/predict.{md,json}.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import detectron2
import psutil
import ray
import torch
from measure import hardware, kp_ray_command, median_and_range, write_results

from kp_ray.config.load import load_config
from kp_ray.config.schema import Config

CORES = os.cpu_count() or 1

PUBLISHED = """
import json, sys, time
import cv2, torch
from pathlib import Path
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

began = time.perf_counter()
torch.set_num_threads(int(sys.argv[1]))
predictors = []
for member in sys.argv[3:]:
    cfg = get_cfg()
    cfg.set_new_allowed(True)
    cfg.merge_from_file(member + "/config.yaml")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = member + "/model_final.pth", "cpu"
    predictors.append(DefaultPredictor(cfg))
loaded = time.perf_counter()
for predictor in predictors:
    for path in sorted(Path(sys.argv[2]).iterdir()):
        people = predictor(cv2.imread(str(path)))["instances"]
        points = people.pred_keypoints[people.scores.argmax()].tolist() if len(people) else None
print(json.dumps({"start_up_s": loaded - began, "seconds": time.perf_counter() - loaded}))
"""


def published(images: Path, members: list[str]) -> dict[str, float]:
    """Predict in the published way and return its seconds, start-up counted separately."""
    command = [sys.executable, "-W", "ignore", "-c", PUBLISHED, str(CORES), str(images), *members]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def pool(config: Config, folder: Path, images: Path) -> dict[str, Any]:
    """Run `kp-ray predict` and return its figures, `process_s`, and the peak MiB of the driver and of an actor."""
    run_dir = Path(tempfile.mkdtemp(dir=folder))
    (run_dir / "members").symlink_to(config.path("members"))
    (run_dir / "store").symlink_to(config.path("store"))
    path = run_dir / "config.yaml"
    path.write_text(config.to_yaml())
    sets = {
        "run_dir": run_dir, "data.test_images": images, "data.sample_submission": "null", "predict.images": "null",
        "predict.weights": "equal", "predict.actors": f"[{CORES},{CORES}]",
    }  # fmt: skip
    began = time.perf_counter()
    command = kp_ray_command("predict", path, *(f"{key}={value}" for key, value in sets.items()))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peaks = {"driver": 0.0, "actor": 0.0}
    watcher = threading.Thread(target=watch, args=(process, peaks))
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"kp-ray predict ended with {process.returncode}")
    figures = dict(json.loads(out.splitlines()[-1]))
    return {**figures, "process_s": time.perf_counter() - began, "peak_mib": peaks}


def watch(process: subprocess.Popen[str], peaks: dict[str, float]) -> None:
    """Record the largest resident memory of the driver and of any actor, twice per second, until the process ends."""
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peaks["driver"] = max(peaks["driver"], parent.memory_info().rss / 2**20)
            for child in parent.children(recursive=True):
                if "Predictor" in "".join(child.cmdline()):
                    peaks["actor"] = max(peaks["actor"], child.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.5)


def copy_images(source: Path, target: Path, count: int) -> Path:
    """Fill a new folder with `count` images: those of `source`, repeated."""
    target.mkdir()
    images = sorted(source.iterdir())
    for number in range(count):
        (target / f"{number:05d}{images[0].suffix}").write_bytes(images[number % len(images)].read_bytes())
    return target


def main() -> None:
    """Run the turns and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    config = load_config(str(options.run_dir / "config.yaml"), [f"run_dir={options.run_dir}"])
    members = [config.member_dir(member.name) for member in config.train.members]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = copy_images(Path(config.require_input("test_images")), folder / "few", options.images)
        pairs: list[dict[str, Any]] = [
            {"published": published(few, members), "pool": pool(config, folder, few)} for _ in range(options.repeats)
        ]
        many = pool(config, folder, copy_images(few, folder / "many", options.many))
    rates = {way: [options.images / pair[way]["seconds"] for pair in pairs] for way in ("published", "pool")}
    ratios = [pair["published"]["seconds"] / pair["pool"]["seconds"] for pair in pairs]
    starts = [pair["published"]["start_up_s"] for pair in pairs]
    pool_starts = [pair["pool"]["process_s"] - pair["pool"]["seconds"] for pair in pairs]
    actor = statistics.median(pair["pool"]["peak_mib"]["actor"] for pair in pairs)
    driver = statistics.median(pair["pool"]["peak_mib"]["driver"] for pair in pairs)
    machine = hardware(torch, detectron2, ray, cv2)
    text = (
        f"# Prediction: the published way and kp_ray\n\n{machine}. {len(members)} members ({config.model.preset}), "
        f"{options.images} images of 1920x1080, {options.repeats} pairs; medians (smallest-largest).\n\n"
        "| | images/s, all members | start-up s |\n|---|---|---|\n"
        f"| A one DefaultPredictor per member, one image at a time, {CORES} threads | "
        f"{median_and_range(rates['published'])} | {median_and_range(starts, 1)} |\n"
        f"| B `kp-ray predict`, {CORES} actors of one thread | {median_and_range(rates['pool'])} | "
        f"{median_and_range(pool_starts, 1)} |\n\n"
        f"B/A: {median_and_range(ratios)}.\n\n"
        f"| B on | images/s | peak MiB of an actor | peak MiB of the driver |\n|---|---|---|---|\n"
        f"| {options.images} images | {statistics.median(rates['pool']):.2f} | {actor:.0f} | {driver:.0f} |\n"
        f"| {options.many} images | {options.many / many['seconds']:.2f} | {many['peak_mib']['actor']:.0f} | "
        f"{many['peak_mib']['driver']:.0f} |\n"
    )
    write_results("predict", text, {"hardware": machine, "pairs": pairs, "many": many})


if __name__ == "__main__":
    main()
