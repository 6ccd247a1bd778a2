"""Measure training and prediction of the published network on a GPU, beside Detectron2's own ways.

    python benchmarks/gpu.py --iterations 80 --images 480

A member of the preset `dacon` is trained from random weights on generated images of 1920x1080, with 32-bit numbers and
with `train.precision: auto`; Detectron2's DefaultTrainer trains the same network on the same images, with 32-bit
numbers and with its mixed precision. Then one member predicts `--images` images, each of them with ten people, with
`kp-ray predict` and with a loop over Detectron2's DefaultPredictor. Without a GPU all of this runs on CPUs.
Results: benchmarks/results/gpu.{md,json}.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import detectron2
import ray
import torch
import yaml
from measure import add_override_option, describe_options, hardware, run_kp_ray, run_script, write_results
from predict import copy_images, run_published_loop

from kp_ray.synthetic.dataset import SampleSummary, make_sample
from kp_ray.training.logs import read_training_log

KP_RAY, DETECTRON2 = "kp-ray", "Detectron2"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
THREADS = 4
"""Prefetch threads of `kp-ray train`, and worker processes of Detectron2's loader, which are 4 by default."""
PEOPLE_PER_IMAGE = 10
"""Number of people that a model finds per image, because every score counts."""
LOG_PERIOD = 20
"""Iterations between the entries of a log."""


def write_config(folder: Path, sample: SampleSummary, options: argparse.Namespace) -> Path:
    """Write a config of the preset `dacon` with one member that starts from random weights; return its path."""
    values = {
        "preset": "dacon",
        "run_dir": str(folder / "run"),
        "data": sample.data,
        "augment": {"recipes": ["Original"]},
        "model": {"preset": options.network, "weights": None, "cfg": {"TEST.DETECTIONS_PER_IMAGE": PEOPLE_PER_IMAGE}},
        "train": {
            "members": [{"name": "a", "seed": 1}],
            "max_iter": options.iterations,
            "eval_period": 0,
            "log_period": LOG_PERIOD,
            "threads_per_feed": THREADS,
            "use_gpu": DEVICE == "cuda",
        },
        "predict": {
            "gpus_per_actor": int(DEVICE == "cuda"),
            "actors": [1, 1],
            "score_threshold": 0.0,
            "fallback_threshold": 0.0,
        },
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    return config


def summarize_log(folder: Path) -> dict[str, float]:
    """Return seconds per iteration, of which waiting for images, and the first and the last loss in kp_ray's log.

    Entries hold the means of LOG_PERIOD iterations, and the loss of the last of these. The first entry is left out of
    the times, because it holds the start-up.
    """
    entries = [entry.values for entry in read_training_log(str(folder))]
    return {
        "seconds": statistics.mean(entry["time"] for entry in entries[1:]),
        "wait_ms": 1000 * statistics.mean(entry["data_time"] for entry in entries[1:]),
        "first_loss": entries[0]["total_loss"],
        "last_loss": entries[-1]["total_loss"],
    }


def train_with_kp_ray(folder: Path, config: Path, precision: str, *overrides: str) -> dict[str, float]:
    """Train the member in a run folder of its own, `folder/<precision>`; return the summary of its log."""
    run_dir = folder / precision
    run_dir.mkdir()
    (run_dir / "store").symlink_to(folder / "run" / "store")
    run_kp_ray("train", config, f"run_dir={run_dir}", f"train.precision={precision}", *overrides)
    return summarize_log(run_dir / "members" / "a")


def train_with_detectron2(folder: Path, sample: SampleSummary, amp: bool, iterations: int) -> dict[str, float]:
    """Train the same network with Detectron2's DefaultTrainer; return the same values as `summarize_log`."""
    target = folder / f"detectron2-{amp}"
    target.mkdir()
    request = {
        "config": str(folder / "fp32" / "members" / "a" / "config.yaml"),
        "annotations": sample.annotations,
        "images": sample.images,
        "device": DEVICE,
        "iterations": iterations,
        "loader_processes": THREADS,
        "amp": amp,
        "start_up": LOG_PERIOD,
        "folder": str(target),
    }
    return run_script(sys.executable, "detectron2_training.py", request, target)


def predict_with_kp_ray(config: Path, run_dir: Path, images: Path, precision: str, *overrides: str) -> dict[str, Any]:
    """Predict the images with `kp-ray predict`; return images/s after the start-up, and the start-up's seconds."""
    summary = run_kp_ray(
        "predict",
        config,
        f"run_dir={run_dir}",
        f"predict.images={images}",
        f"predict.precision={precision}",
        *overrides,
    )
    rate = summary["predicted"] / summary["seconds"]
    return {"rate": rate, "start_up_s": summary["start_up_s"], "compute": summary["compute"]}


def describe(data: dict[str, Any], network: str, options: str) -> str:
    """Compose the result page in Markdown."""
    lines = [
        f"# {network} on a GPU\n\n{data['hardware']}. {options}. Preset `dacon`, random weights, images of 1920x1080. "
        f"Training: 2 images of 640 to 800 px per iteration, {THREADS} threads or processes that read images; means "
        f"of the iterations after the first {LOG_PERIOD}.\n",
        f"| training | s per iteration | of which waiting for images, ms | loss, iteration {LOG_PERIOD} and last |",
        "|---|---|---|---|",
    ]
    for name, row in data["training"].items():
        losses = f"{row['first_loss']:.2f}, {row['last_loss']:.2f}"
        lines.append(f"| {name} | {row['seconds']:.3f} | {row['wait_ms']:.1f} | {losses} |")
    lines.append(f"\nPrediction: one member, {PEOPLE_PER_IMAGE} people per image.\n")
    lines.append("| prediction | images/s after the start-up | start-up, s |\n|---|---|---|")
    for name, row in data["prediction"].items():
        lines.append(f"| {name} | {row['rate']:.1f} | {row['start_up_s']:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train and predict in every way, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=80, help="iterations of each training, 40 or more")
    parser.add_argument("--images", type=int, default=480, help="images to predict")
    parser.add_argument("--network", default="x101", choices=("x101", "r50", "r18"))
    add_override_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample = make_sample(str(folder / "data"), num_images=40, num_test=1)
        config = write_config(folder, sample, options)
        run_kp_ray("augment", config, *options.overrides)
        training = {
            f"{KP_RAY}, {precision}": train_with_kp_ray(folder, config, precision, *options.overrides)
            for precision in ("fp32", "auto")
        }
        for amp in (False, True) if DEVICE == "cuda" else (False,):  # mixed precision needs a GPU
            title = f"{DETECTRON2}'s DefaultTrainer, {'mixed precision' if amp else '32-bit numbers'}"
            training[title] = train_with_detectron2(folder, sample, amp, options.iterations)
        images = copy_images(Path(sample.images), folder / "many", options.images)
        loop = run_published_loop(images, [str(folder / "fp32" / "members" / "a")], DEVICE)
        prediction: dict[str, dict[str, Any]] = {
            f"{DETECTRON2}'s DefaultPredictor": {
                "rate": options.images / loop["seconds"],
                "start_up_s": loop["start_up_s"],
            }
        }
        for precision in ("fp32", "auto"):
            title = f"{KP_RAY}, {precision}"
            prediction[title] = predict_with_kp_ray(config, folder / precision, images, precision, *options.overrides)
    data = {"hardware": hardware(torch, detectron2, ray, cv2), "training": training, "prediction": prediction}
    write_results("gpu", describe(data, options.network, describe_options(options)), data)


if __name__ == "__main__":
    main()
