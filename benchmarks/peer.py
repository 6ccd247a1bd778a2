"""Train YOLO11n-pose from scratch on the demo's data for as long as the demo's members were trained; score both.

    make demo
    python benchmarks/peer.py runs/demo

The variants that the members trained on are exported with `kp-ray export --yolo`. Ultralytics is installed into a
temporary environment, because its licence (AGPL-3.0) keeps it out of kp_ray. Its predictions for the test images are
scored by `kp-ray evaluate --submission`. Results: benchmarks/results/peer.{md,json}.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import yaml
from measure import (
    create_environment,
    describe_members,
    hardware,
    kp_ray_command,
    run_json,
    run_script,
    trained_config,
    write_results,
)

from kp_ray.config.load import load_run_config
from kp_ray.config.schema import Config
from kp_ray.keypoints import DACON24
from kp_ray.training.logs import read_training_log

ULTRALYTICS = "ultralytics==8.4.190"
SETTINGS = {
    "imgsz": 256,  # the size of the demo's input
    "batch": 8,
    "optimizer": "AdamW",
    "lr0": 0.002,
    "lrf": 0.01,
    "cos_lr": True,
    "warmup_epochs": 1,
    "mosaic": 0.0,
    "fliplr": 0.0,  # as the preset demo: generated people show left and right by colors
    "cache": "ram",
}
"""Ultralytics' settings that differ from its defaults."""


def members_cpu_seconds(config: Config) -> float:
    """Return the seconds that the iterations of all members took; each member computes with one thread."""
    logs = [read_training_log(config.member_dir(member.name)) for member in config.train.members]
    return sum(
        entry.values["time"] * period
        for log in logs
        for entry, period in zip(log, np.diff([-1, *(entry.iteration for entry in log)]), strict=True)
    )


def export_variants(run_dir: Path, config: Config, folder: Path) -> Path:
    """Export the members' variants and the validation images; return the path of YOLO's data file."""
    recipes = [option for recipe in config.train.recipes or () for option in ("--recipe", recipe)]
    for split, options in {"train": recipes, "val": []}.items():
        command = [sys.executable, "-m", "kp_ray", "export", str(run_dir), "--yolo", "--split", split, *options]
        subprocess.run([*command, "--folder", str(folder / split)], check=True)
    data = {
        "path": str(folder),
        "train": "train/images",
        "val": "val/images",
        "names": ["person"],
        "kpt_shape": [len(DACON24), 3],
        "flip_idx": DACON24.flip_indices,
    }
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def write_submission(config: Config, points: dict[str, list[list[float]] | None], path: Path) -> int:
    """Write the points as a submission, the mean pose where nobody is found; return how many images have nobody."""
    found = np.array([value for value in points.values() if value is not None])
    by_name = {Path(image).name: value for image, value in points.items()}
    with open(str(config.data.sample_submission), newline="") as sample, open(path, "w", newline="") as target:
        reader, writer = csv.reader(sample), csv.writer(target)
        writer.writerow(next(reader))
        for name, *_ in reader:
            value = by_name[name]
            writer.writerow([name, *np.array(found.mean(axis=0) if value is None else value).ravel()])
    return len(points) - len(found)


def describe(result: dict[str, Any], conditions: dict[str, Any]) -> str:
    """Compose the result page in Markdown."""
    text = (
        f"# A peer: YOLO11n-pose on the demo's data\n\n{conditions['hardware']}, {conditions['versions']}. All train "
        f"from random weights on the demo's {result['num_variants']} training variants (its members leave out those "
        f"with few visible points), and are scored on its {result['num_images']} test images. The members: "
        f"{conditions['members']}.\n\n"
        "| model | CPU s of training | RMSE px | median px | PCK@0.05 | nobody found |\n|---|---|---|---|---|---|\n"
    )
    for name, row in result["rows"].items():
        text += (
            f"| {name} | {row['cpu_s']:.0f} | {row['rmse']:.1f} | {row['median_px']:.1f} | "
            f"{row['pck']['0.05']:.3f} | {row['nobody']} |\n"
        )
    settings = ", ".join(f"{key} {value}" for key, value in SETTINGS.items())
    return text + (
        f"\nYOLO11n-pose trained for {result['epochs']} epochs in {result['seconds']:.0f} s with two threads; its CPU "
        f"seconds include its image cache and validation. Settings other than Ultralytics' defaults: {settings}. It "
        "predicts images at this one size, the demo's members also at 1.25 times theirs. The members' CPU seconds are "
        "the seconds of their iterations, with one thread each.\n"
    )


def main() -> None:
    """Export, train, score and write the result page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="run folder of a finished demo")
    options = parser.parse_args()
    config = load_run_config(str(options.run_dir))
    cpu_s = members_cpu_seconds(config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = {
            "data": str(export_variants(options.run_dir, config, folder)),
            "folder": str(folder / "yolo"),
            "images": sorted(str(path) for path in Path(str(config.data.test_images)).iterdir()),
            "seconds": cpu_s / 2,
            "threads": 2,
            "settings": SETTINGS,
        }
        torch_version = torch.__version__.partition("+")[0]
        python = create_environment(folder / "environment", ULTRALYTICS, f"torch=={torch_version}")
        peer = run_script(python, "yolo_pose.py", request, folder)
        num_nobody = write_submission(config, peer["points"], folder / "peer.csv")
        evaluate = kp_ray_command("evaluate", options.run_dir / "config.yaml")
        peer_scores = run_json([*evaluate, "--submission", str(folder / "peer.csv")])
        ensemble_scores = run_json(evaluate)
        num_variants = len(list((folder / "train" / "images").rglob("*.jpg")))
    rows = {"YOLO11n-pose": {**peer_scores, "cpu_s": peer["cpu_s"], "nobody": num_nobody}}
    for member, scores in ensemble_scores["members"].items():
        rows[f"member {member}"] = {**scores, "cpu_s": cpu_s / len(config.train.members)}
    rows["ensemble"] = {**ensemble_scores, "cpu_s": cpu_s}
    for row in rows.values():
        row.setdefault("nobody", row.get("num_missing"))
    result = {key: peer[key] for key in ("epochs", "seconds")}
    result |= {"num_images": len(peer["points"]), "num_variants": num_variants, "rows": rows}
    versions = ", ".join(f"{package} {version}" for package, version in peer["versions"].items())
    conditions = {
        "hardware": hardware(ray),
        "versions": versions,
        "settings": SETTINGS,
        "members": describe_members(trained_config(config)),
    }
    write_results("peer", describe(result, conditions), {**conditions, **result})


if __name__ == "__main__":
    main()
