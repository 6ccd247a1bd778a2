"""Measure what other ways to train the demo's network change: lengths, schedules, averages, flips, finer heat maps.

    python benchmarks/training_parts.py FOLDER --seeds 1 2 3 --images 80

For every seed, the script makes the demo's data and store in FOLDER, and trains the demo's first member with `kp-ray`
once for each of `PARTS`. Images of new people, rooms and cameras are then predicted as in `accuracy.py`. What is in
FOLDER is kept, so that the same command resumes; in the folder of `accuracy.py`, the demo's member is trained already.
A part takes about 5 minutes of a CPU core per seed, and `--jobs` measures several at the same time.
Results: benchmarks/results/training_parts.{md,json}.
"""

import argparse
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from accuracy import COLUMNS, make_store, measure_setting, train_members, write_page
from measure import add_override_option

from kp_ray.synthetic.dataset import SampleSummary, make_sample

FLIPS = "flips"
DEMO = "the demo"
SHORT = ["train.max_iter=340", "train.warmup_iters=20", "train.eval_period=340", "train.checkpoint_period=85"]
"""Settings of the baseline, a shorter training than the demo's."""
PARTS: dict[str, list[str]] = {
    "340 iterations": [],
    FLIPS: ["train.flip=true"],
    "EMA": ["train.ema_decay=0.98"],
    "heat maps of 112x112": ["model.cfg={MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION: 28}"],
    "two steps instead of a cosine": ["train.schedule=multistep", "train.steps=[204, 272]", "train.gamma=0.1"],
    DEMO: [],
    "680 iterations": ["train.max_iter=680", "train.warmup_iters=40", "train.eval_period=680"],
}
"""Name of a row of the table -> settings of its training, which follow `SHORT` for every row but the demo's. The first
row is the baseline. The average (EMA) is over the last 50 of 340 iterations; `best` averages the last 1000 of
40,000."""
PARTS["flips, EMA and heat maps of 112x112"] = [
    override for name in (FLIPS, "EMA", "heat maps of 112x112") for override in PARTS[name]
]
VIEWS: dict[str, list[Any]] = {
    "": [1.25],
    ", predicted without views": [],
    ", predicted with flips": ["flip"],
    ", predicted with flips and 1.25": ["flip", 1.25],
}
"""Addition to a row's name -> `predict.tta`. Every part has the first row; parts with flips have all."""


def measure_part(config: Path, name: str, seed: int, overrides: list[str], sample: SampleSummary) -> dict[str, Any]:
    """Train the member of one part, unless it is finished; return the values of `COLUMNS` for each of its rows.

    Args:
        config: config of the seed's data and store.
        name: name of the part, one of `PARTS`.
        seed: seed of the data and the member.
        overrides: settings for every command, beside those of the part.
        sample: images to predict, and their ground truth.
    """
    run_dir = config.parent.parent
    if name != DEMO:
        store = run_dir / "store"
        run_dir = run_dir.with_name(f"{run_dir.name}-{name.replace(' ', '-')}")
        run_dir.mkdir(exist_ok=True)
        if not (run_dir / "store").exists():
            (run_dir / "store").symlink_to(store)
    length = [] if name == DEMO else SHORT
    train_members(config, seed, f"run_dir={run_dir}", *length, *PARTS[name], *overrides, names="a")
    rows = {}
    for addition, views in VIEWS.items():
        if FLIPS in name or not addition:
            with tempfile.TemporaryDirectory() as temporary:
                section = {"tta": views, "members": ["a"]}
                rows[name + addition] = measure_setting(run_dir / "config.yaml", sample, Path(temporary), section)
    return rows


def main() -> None:
    """Measure every part with every seed, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="default: all")
    parser.add_argument("--jobs", type=int, default=1, help="number of trainings at the same time")
    add_override_option(parser)
    options = parser.parse_args()
    folder = options.folder.resolve()
    configs = {seed: make_store(folder, seed) for seed in options.seeds}
    sample = make_sample(str(folder / f"test{options.images}"), num_images=8, num_test=options.images, seed=77)
    measured: dict[tuple[str, int], dict[str, float]] = {}
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        futures = {
            pool.submit(measure_part, config, name, seed, options.overrides, sample): seed
            for seed, config in configs.items()
            for name in options.parts
        }
        for future in as_completed(futures):
            for row, values in future.result().items():
                measured[row, futures[future]] = values
                print(json.dumps({"seed": futures[future], "row": row, **values}), flush=True)
    rows = [name + addition for name in options.parts for addition in VIEWS]
    rows = [row for row in rows if (row, options.seeds[0]) in measured]
    results = {row: [measured[row, seed] for seed in options.seeds] for row in rows}
    columns = {key: title for key, title in COLUMNS.items() if not key.startswith("member_") and key != "cpu_s"}
    settings = f" with {' '.join(options.overrides)}" if options.overrides else ""
    members = f"one member per row and seed, trained{settings}"
    write_page("training_parts", "Accuracy by training", members, options, results, columns)


if __name__ == "__main__":
    main()
