"""Augmentation, paired in one run: the published single-process loop against `kp-ray augment`.

    python benchmarks/augment.py --sources 64 --repeats 3

A is the published script's way: one process, OpenCV's own threads, an Albumentations pipeline a recipe, cv2.imwrite.
B is kp_ray end to end on Ray; its start-up is shown apart. Both read the same 1920x1080 JPEGs and take turns. Results
go to benchmarks/results/augment.{md,json}.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import albumentations
import cv2
import yaml

from kp_ray.annotations import load_annotations
from kp_ray.config import DEFAULT_RECIPES
from kp_ray.recipes import RECIPES
from kp_ray.sample import make_sample


def published_loop(images: Path, annotations: str, out: Path) -> float:
    """Seconds that the single-process loop takes for all variants of all sources."""
    labels = load_annotations(annotations)
    pipelines = [(f"{i}-{name}", RECIPES[name].to_albumentations()) for i, name in enumerate(DEFAULT_RECIPES)]
    out.mkdir()
    began = time.perf_counter()
    for image, keypoints in zip(labels.images, labels.keypoints, strict=True):
        picture = cv2.cvtColor(cv2.imread(str(images / image)), cv2.COLOR_BGR2RGB)
        for name, pipeline in pipelines:
            made = pipeline(image=picture, keypoints=keypoints[:, :2])
            cv2.imwrite(str(out / f"{name}-{image}"), cv2.cvtColor(made["image"], cv2.COLOR_RGB2BGR))
    return time.perf_counter() - began


def kp_ray_augment(config: Path, run_dir: Path) -> dict[str, float]:
    """The figures of `kp-ray augment --json`."""
    command = [
        str(Path(sys.executable).with_name("kp-ray")),
        "augment",
        str(config),
        "--set",
        f"run_dir={run_dir}",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run the pairs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = make_sample(f"{folder}/data", num_images=options.sources, num_test=0)
        values = {"split": {"fraction": 0}, "data": {"annotations": data["annotations"], "images": data["images"]}}
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(values))
        for repeat in range(options.repeats):
            loop_s = published_loop(Path(data["images"]), data["annotations"], Path(folder, f"loop{repeat}"))
            ours = kp_ray_augment(config, Path(folder, f"run{repeat}"))
            rows.append({"published_per_s": options.sources / loop_s, **ours})
    published = statistics.median(row["published_per_s"] for row in rows)
    ours_rate = statistics.median(row["sources_per_s"] for row in rows)
    ratios = sorted(row["sources_per_s"] / row["published_per_s"] for row in rows)
    hardware = (
        f"{os.cpu_count()} CPUs ({platform.processor() or platform.machine()}), Python {platform.python_version()}"
    )
    hardware += f", OpenCV {cv2.__version__}, Albumentations {albumentations.__version__}"
    text = (
        f"# Augmentation: published loop against kp_ray\n\n{hardware}. {options.sources} generated 1920x1080 "
        f"sources, 18 variants each, {options.repeats} pairs.\n\n| | sources/s (median) |\n|---|---|\n"
        f"| A published loop, one process | {published:.2f} |\n"
        f"| B kp_ray on Ray, start-up excluded | {ours_rate:.2f} |\n\n"
        f"B/A: median {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f}. "
        f"kp_ray's start-up: {statistics.median(row['start_up_s'] for row in rows):.1f} s.\n"
    )
    results = Path(__file__).with_name("results")
    results.mkdir(exist_ok=True)
    (results / "augment.md").write_text(text)
    (results / "augment.json").write_text(json.dumps({"hardware": hardware, "pairs": rows}, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
