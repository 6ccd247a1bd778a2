"""Functions that the benchmarks share: describe the machine, make inputs, run kp-ray, and write results."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from kp_ray.augmentation.recipes import resolve_recipes
from kp_ray.augmentation.variants import Source, VariantSettings, augment_source
from kp_ray.config.load import build_config
from kp_ray.config.presets import DEFAULT_RECIPES
from kp_ray.config.schema import Config
from kp_ray.keypoints import FloatArray
from kp_ray.synthetic.dataset import make_sample
from kp_ray.training.search_result import apply_result, read_member_search

RESULTS = Path(__file__).with_name("results")
DEMO_CONFIG = build_config({"preset": "demo"})
"""The preset `demo`."""


def hardware(*packages: Any) -> str:
    """Describe the machine and the versions of Python and `packages` in one line.

    GPUs are named if torch is among the packages.
    """
    cpu: dict[str, str] = {}  # of the first core
    with open("/proc/cpuinfo") as info:
        for line in info:
            key, _, value = line.partition(":")
            cpu.setdefault(key.strip(), value.strip())
    processor = cpu.get("model name", "unknown CPU")
    if "cpu family" in cpu:  # virtual machines may have one name for several generations of processors
        processor += f", family {cpu['cpu family']} model {cpu['model']}"
    gpus = [
        package.cuda.get_device_name(number)
        for package in packages
        if package.__name__ == "torch"
        for number in range(package.cuda.device_count())
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [
        f"Python {platform.python_version()}",
        *(f"{package.__name__} {package.__version__}" for package in packages),
    ]
    gpu_names = ", ".join(gpus) or "no GPU"
    return f"{os.cpu_count()} cores ({processor}), {memory:.0f} GiB, {gpu_names}; {', '.join(versions)}"


def cpu_time() -> tuple[int, int]:
    """Return the clock ticks of all CPUs since boot, and how many of these ticks other virtual machines used."""
    with open("/proc/stat") as stat:
        ticks = [int(field) for field in stat.readline().split()[1:9]]
    return sum(ticks), ticks[7]


def stolen_since(ticks: tuple[int, int]) -> float:
    """Return the share of CPU time that other virtual machines used since `cpu_time` returned `ticks`."""
    total, stolen = (after - before for after, before in zip(cpu_time(), ticks, strict=True))
    return stolen / max(total, 1)


def median_and_range(values: Sequence[float], digits: int = 2) -> str:
    """Format values as `median (smallest-largest)`."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def write_results(name: str, text: str, data: dict[str, Any]) -> None:
    """Write `results/<name>.md` and `results/<name>.json`, and print the text."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    print(text)


def add_seed_option(parser: ArgumentParser) -> None:
    """Add the option `--seeds SEED ...` for `measure_seeds`."""
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2, 3], help="the page keeps other seeds of the same conditions"
    )


def describe_options(options: Namespace) -> str:
    """Describe the options that are set, but the seeds, on one line."""
    return ", ".join(f"{key} {value}" for key, value in vars(options).items() if value and key != "seeds")


def measure_seeds(
    name: str,
    seeds: Sequence[int],
    conditions: dict[str, str],
    measure_seed: Callable[[Path, int], dict[str, Any]],
    describe: Callable[[list[dict[str, Any]], dict[str, str]], str],
) -> None:
    """Measure seeds one after another, and write the result page `name` after each, because a seed can take an hour.

    Seeds that an earlier command measured under the same conditions stay on the page.

    Args:
        name: name of the page's files.
        seeds: the seeds to measure.
        conditions: hardware and settings, part of the results.
        measure_seed: gets an empty folder and a seed; returns values that JSON can hold, `seed` among them.
        describe: gets the results of all seeds and the conditions; returns the page in Markdown.
    """
    path = RESULTS / f"{name}.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    is_same = all(earlier.get(key) == value for key, value in conditions.items())
    result_by_seed = {result["seed"]: result for result in earlier["results"]} if is_same else {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            result_by_seed[seed] = measure_seed(Path(folder), seed)
        results = [result_by_seed[seed] for seed in sorted(result_by_seed)]
        write_results(name, describe(results, conditions), {**conditions, "results": results})


def make_sources(folder: Path, num_sources: int, num_distinct: int = 400) -> Path:
    """Generate 1920x1080 sources; return the path of a config that augments them.

    Sources after the first `num_distinct` are hard links to these first ones.
    """
    sample = make_sample(str(folder / "data"), num_images=min(num_sources, num_distinct), num_test=0)
    images, labels = Path(sample.images), Path(sample.annotations)
    header, *rows = labels.read_text().splitlines()
    for number in range(len(rows), num_sources):
        name, values = rows[number % num_distinct].split(",", 1)
        link = f"9{number:05d}-{name}"
        os.link(images / name, images / link)
        rows.append(f"{link},{values}")
    labels.write_text("\n".join([header, *rows[:num_sources]]) + "\n")
    config = folder / "config.yaml"
    data = {"annotations": str(labels), "images": str(images)}
    config.write_text(yaml.safe_dump({"split": {"fraction": 0}, "data": data}))
    return config


def add_override_option(parser: ArgumentParser) -> None:
    """Add the option `--set KEY=VALUE ...`, which `options.overrides` holds."""
    parser.add_argument(
        "--set", nargs="+", default=[], dest="overrides", metavar="KEY=VALUE", help="settings for every command"
    )


def kp_ray_command(verb: str, config: Path, *overrides: str) -> list[str]:
    """Return the command `kp-ray VERB CONFIG --json` with overrides such as "train.max_iter=500"."""
    command = [sys.executable, "-m", "kp_ray", verb, str(config), "--json"]
    return [*command, *(argument for override in overrides for argument in ("--set", override))]


def run_kp_ray(verb: str, config: Path, *overrides: str) -> dict[str, Any]:
    """Run `kp-ray VERB CONFIG --json` with overrides and return the JSON object that it prints.

    Raises:
        SystemExit: the command failed; the error holds what it printed.
    """
    process = subprocess.run(kp_ray_command(verb, config, *overrides), capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"kp-ray {verb} {config}: failed: {process.stderr}")
    return dict(json.loads(process.stdout.splitlines()[-1]))


def describe_training(config: Config) -> str:
    """Describe the settings of a run's training on which the scores depend most."""
    return f"{config.train.max_iter} iterations, base LR {config.train.base_lr:g}"


def trained_config(config: Config) -> Config:
    """Return the config with which a run's members were trained: with the result of the search, if they used one."""
    search = read_member_search(config.member_dir(config.train.members[0].name))
    return config if search is None else apply_result(config, search)


def describe_members(config: Config) -> str:
    """Describe the settings of a run's training and predictions on which the scores depend most."""
    predict = config.predict
    return f"{describe_training(config)}, predict.decode {predict.decode}, predict.tta {list(predict.tta)}"


class TimedRuns:
    """Runs of `kp-ray` with the config of one seed.

    Attributes:
        seconds: duration of each run, by name.
    """

    def __init__(self, seed: int, config: Path, overrides: Sequence[str]) -> None:
        self.seed, self.config, self.overrides = seed, config, overrides
        self.seconds: dict[str, float] = {}

    def run(self, name: str, verb: str, *overrides: str) -> dict[str, Any]:
        """Run `kp-ray VERB` with the overrides of all runs and with those of this run; return its JSON object."""
        began = time.monotonic()
        summary = run_kp_ray(verb, self.config, *self.overrides, *overrides)
        self.seconds[name] = round(time.monotonic() - began, 1)
        print(self.seed, name, json.dumps(summary)[:300], flush=True)
        return summary


def run_json(command: Sequence[str]) -> dict[str, Any]:
    """Run a command, and return the JSON object in the last line that it prints."""
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(process.stdout.splitlines()[-1]))


def create_environment(folder: Path, *packages: str) -> str:
    """Install packages into a new virtual environment; return the path of its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
    return python


def run_script(python: str, name: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a script of `benchmarks/` in another environment; return the JSON object that it prints at its end.

    Args:
        python: path of the environment's Python.
        name: file name of the script.
        request: values for the script, which gets the path of their JSON file.
        folder: existing folder for the JSON file.
    """
    path = folder / "request.json"
    path.write_text(json.dumps(request))
    return run_json([python, str(Path(__file__).with_name(name)), str(path)])


def augment_and_discard(path: str, keypoints: FloatArray) -> None:
    """Augment one source with the default recipes and discard the variants, to time the augmentation alone."""
    source = Source(path, "", "", 0, "train", keypoints)
    settings = VariantSettings(seed=0, jpeg_quality=95, scale_with_frame=True, box_margin_px=0)
    augment_source(Path(path).read_bytes(), source, resolve_recipes(DEFAULT_RECIPES), settings)
