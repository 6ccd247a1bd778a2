"""Measure `kp-ray predict` on the CPU and with a stand-in for a GPU.

    python benchmarks/predict.py RUN_DIR --images 300 --repeats 3

RUN_DIR holds the trained members of an ensemble and a config.yaml. The images in `data.test_images` are repeated until
there are `--images` of them. The first table compares three ways on the same images with the same members. A runs
first, then B and C take turns. Rates of the whole run include the start-up, because C decodes images while its actors
load their models.

A  the published way: one process, one Detectron2 DefaultPredictor per member, one image at a time, torch on all cores;
   each image is read once for all members
B  one operator: a pool of one actor per core, whose actors also read and decode the images
C  two operators, as `kp-ray predict` works: decoding tasks, and a pool of one actor per core

The second table shows the share of time in which the actors of B and C are busy, with a stand-in for a GPU: the models
only sleep for 20 ms per image. Inputs have the members' own size, and the size for R-50 and X-101 (800x1333). In C two
more CPUs decode, in B the actors decode. Only the second half of the images counts, so that neither the start-up nor
the images that C decoded meanwhile do. The third table shows time and memory of the whole command for few and for many
images, in turns; the difference of the two runs of a turn gives the rate without the start-up.

Results: benchmarks/results/predict.{md,json}.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import detectron2
import psutil
import pyarrow as pa
import ray
import torch
from measure import describe_members, hardware, kp_ray_command, median_and_range, trained_config, write_results

from kp_ray.cluster.session import session
from kp_ray.cluster.tasks import ray_data_settings
from kp_ray.config.load import load_config
from kp_ray.config.schema import Config
from kp_ray.models.decoding import Detection
from kp_ray.prediction.decode import InputSize, decode_batch, refs_table
from kp_ray.prediction.images import ImageRef
from kp_ray.prediction.pool import plan_pool
from kp_ray.prediction.predictor import BatchResult, InputImage, Predictor
from kp_ray.prediction.run import predict_batches
from kp_ray.prediction.task import PredictionTask

CORES = os.cpu_count() or 1
SLEEP_S = 0.02
"""Seconds per image of the stand-in for a GPU."""
LARGE_INPUT = InputSize(800, 1333)
"""Input of R-50 and X-101."""
DECODING_CPUS = 2


class SleepingPredictor(Predictor):
    """An actor whose models find nobody and sleep instead of computing."""

    input_size: InputSize | None = None
    """Size of the inputs; None: the members' own."""

    def find_people(self, member: str, images: Sequence[InputImage]) -> list[list[Detection]]:
        """Make the inputs of the models, then sleep."""
        _, cfg = self.members[member]
        size = self.input_size or InputSize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        for image in images:
            image.model_input(size, is_mirrored=False)
            time.sleep(SLEEP_S / len(self.members))
        return [[] for _ in images]


class DecodingPredictor(Predictor):
    """An actor that also decodes its images: way B."""

    def __init__(self, sizes: Sequence[InputSize], **arguments: Any) -> None:
        """Load the members with the arguments of `Predictor`."""
        super().__init__(**arguments)
        self.sizes = sizes

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Decode a batch of image references, predict it, and write the part with its predictions."""
        return super().__call__(decode_batch(batch, self.sizes))


class LargeSleepingPredictor(SleepingPredictor):
    """An actor whose models sleep and have large inputs."""

    input_size = LARGE_INPUT


class DecodingSleepingPredictor(DecodingPredictor, SleepingPredictor):
    """An actor that also decodes its images, and whose models sleep."""


class DecodingLargeSleepingPredictor(DecodingPredictor, LargeSleepingPredictor):
    """An actor that also decodes its images, and whose models sleep and have large inputs."""


PUBLISHED_LOOP = """
import json, sys, time
import cv2, torch
from pathlib import Path
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

began = time.perf_counter()
torch.set_num_threads(int(sys.argv[1]))
predictors = []
for member in sys.argv[4:]:
    cfg = get_cfg()
    cfg.set_new_allowed(True)
    cfg.merge_from_file(member + "/config.yaml")
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = member + "/model_final.pth", sys.argv[3]
    predictors.append(DefaultPredictor(cfg))
loaded = time.perf_counter()
for path in sorted(Path(sys.argv[2]).iterdir()):
    image = cv2.imread(str(path))
    for predictor in predictors:
        people = predictor(image)["instances"]
        points = people.pred_keypoints[people.scores.argmax()].tolist() if len(people) else None
print(json.dumps({"start_up_s": loaded - began, "seconds": time.perf_counter() - loaded}))
"""


def run_published_loop(images: Path, members: list[str], device: str = "cpu") -> dict[str, float]:
    """Run A; return the `seconds` without start-up, and `start_up_s`."""
    command = [sys.executable, "-W", "ignore", "-c", PUBLISHED_LOOP, str(CORES), str(images), device, *members]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(process.stdout.splitlines()[-1]))


def link_run(config: Config, folder: Path, images: Path, actors: int, **cluster: Any) -> Config:
    """Link a new run folder to the members of `config`; return a config that predicts images with them.

    Args:
        config: config of the run folder with the members.
        folder: parent of the new run folder.
        images: folder of the images.
        actors: number of actors.
        cluster: fields of the section `cluster`.
    """
    run_dir = Path(tempfile.mkdtemp(dir=folder))
    (run_dir / "members").symlink_to(config.path("members"))
    if Path(config.path("store")).exists():
        (run_dir / "store").symlink_to(config.path("store"))
    values = config.to_dict()
    values["run_dir"] = str(run_dir)
    values["data"] |= {"test_images": str(images)}
    values["predict"] |= {"images": str(images), "weights": "equal", "actors": [actors, actors], "cpus_per_actor": 1}
    values["predict"] |= {"gpus_per_actor": None, "batch_size": 8}  # null: one GPU per actor if the cluster has GPUs
    values["cluster"] |= cluster
    return Config.model_validate(values)


def predict_with_one_operator(
    task: PredictionTask, refs: Sequence[ImageRef], predictor: type[DecodingPredictor]
) -> Iterator[BatchResult]:
    """Predict images with a pool whose actors also decode: way B."""
    section = task.config.predict
    batches = [refs_table(refs[i : i + section.batch_size]) for i in range(0, len(refs), section.batch_size)]
    num_gpus = 1 if task.config.cluster.num_gpus else None
    arguments = {"sizes": task.input_sizes, **task.predictor_arguments(has_gpu=False)}
    with ray_data_settings():
        results = ray.data.from_arrow(batches).map_batches(
            predictor,
            batch_size=section.batch_size,
            batch_format="pyarrow",
            fn_constructor_kwargs=arguments,
            compute=ray.data.ActorPoolStrategy(
                min_size=section.actors[0], max_size=section.actors[1], max_tasks_in_flight_per_actor=2
            ),
            num_cpus=section.cpus_per_actor,
            num_gpus=num_gpus,
        )
    for row in results.iter_rows():
        yield BatchResult(**row)


def time_run(results: Iterator[BatchResult]) -> dict[str, float]:
    """Return the `rate` of a whole run, start-up included, and the `late_rate` of its second half, in images/s."""
    began = time.perf_counter()
    counts, times = [], []
    for result in results:
        result.raise_if_failed()
        counts.append(result.num_images)
        times.append(time.perf_counter())
    middle = len(times) // 2
    return {
        "rate": sum(counts) / (times[-1] - began),
        "late_rate": sum(counts[middle:]) / (times[-1] - times[middle - 1]),
    }


def compare_operators(
    config: Config, folder: Path, images: Path, repeats: int, num_gpus: int, input_size: InputSize | None = None
) -> list[dict[str, dict[str, float]]]:
    """Measure B and C in turns on one cluster; return each turn's `time_run` of both.

    Args:
        config: config of the run folder with the members.
        folder: parent of the new run folder.
        images: folder of the images.
        repeats: number of turns.
        num_gpus: number of actors whose models sleep; `DECODING_CPUS` more CPUs decode, and B predicts only every fifth
            image. 0: real members on all CPUs.
        input_size: size of the sleeping models' inputs; None: the members' own.
    """
    actors = num_gpus or CORES
    cpus = num_gpus + DECODING_CPUS if num_gpus else CORES
    run_config = link_run(config, folder, images, actors, num_cpus=cpus, num_gpus=num_gpus)
    predictor_b: type[DecodingPredictor] = DecodingPredictor
    predictor_c: type[Predictor] = Predictor
    if num_gpus and input_size:
        predictor_b, predictor_c = DecodingLargeSleepingPredictor, LargeSleepingPredictor
    elif num_gpus:
        predictor_b, predictor_c = DecodingSleepingPredictor, SleepingPredictor
    task = PredictionTask(run_config)
    plan = plan_pool(run_config, [{"CPU": cpus, "GPU": num_gpus}], cpus)
    if input_size:
        task.input_sizes = [input_size]
    if num_gpus:
        plan = replace(plan, max_decode_tasks=DECODING_CPUS)
    images_b = task.images[::5] if num_gpus else task.images
    turns = []
    with session(run_config, dashboard=False):
        time_run(predict_batches(task, plan, task.images[:40], predictor_c))  # the workers import their modules
        for _ in range(repeats):
            turn = {
                "B": time_run(predict_with_one_operator(task, images_b, predictor_b)),
                "C": time_run(predict_batches(task, plan, task.images, predictor_c)),
            }
            print(num_gpus, "GPUs", input_size, turn, flush=True)
            turns.append(turn)
    return turns


def run_command(config: Config, folder: Path, images: Path) -> dict[str, Any]:
    """Run `kp-ray predict`; return its JSON object with `process_s` and the peak MiB of the driver and of any actor."""
    path = folder / "command.yaml"
    path.write_text(link_run(config, folder, images, CORES).to_yaml())
    began = time.perf_counter()
    process = subprocess.Popen(
        kp_ray_command("predict", path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peaks = {"driver": 0.0, "actor": 0.0}
    recorder = threading.Thread(target=record_peaks, args=(process, peaks))
    recorder.start()
    out, _ = process.communicate()
    recorder.join()
    if process.returncode:
        raise SystemExit(
            f"kp-ray predict: failed (got exit code {process.returncode}): run it by hand with "
            f"{config.path('config.yaml')}"
        )
    summary = dict(json.loads(out.splitlines()[-1]))
    del summary["submission"]  # a path in the temporary folder
    return {**summary, "process_s": time.perf_counter() - began, "peak_mib": peaks}


def record_peaks(process: subprocess.Popen[str], peaks: dict[str, float]) -> None:
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
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--many-images", type=int, default=1000, help="images of the second run of the command")
    parser.add_argument("--gpu-images", type=int, default=1000, help="images of each turn with the stand-in for a GPU")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gpu-repeats", type=int, default=2, help="turns with the stand-in for a GPU")
    options = parser.parse_args()
    # One view per image, as in the published way.
    config = load_config(str(options.run_dir / "config.yaml"), [f"run_dir={options.run_dir}", "predict.tta=[]"])
    members = [config.member_dir(member.name) for member in config.train.members]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few_images = copy_images(Path(config.require_input("test_images")), folder / "few", options.images)
        gpu_images = copy_images(few_images, folder / "gpu", options.gpu_images)
        many_images = copy_images(few_images, folder / "many", options.many_images)
        data: dict[str, Any] = {
            "published": [run_published_loop(few_images, members) for _ in range(options.repeats)],
            "cpu": compare_operators(config, folder, few_images, options.repeats, num_gpus=0),
            "gpu": [
                {
                    "actors": num_gpus,
                    "input": "800x1333" if size else "the members' own",
                    "turns": compare_operators(config, folder, gpu_images, options.gpu_repeats, num_gpus, size),
                }
                for size in (None, LARGE_INPUT)
                for num_gpus in (1, 2)
            ],
            "command": [
                {"few": run_command(config, folder, few_images), "many": run_command(config, folder, many_images)}
                for _ in range(options.repeats)
            ],
        }
    data["hardware"] = hardware(torch, detectron2, ray, cv2)
    settings = f"{config.model.preset}, {describe_members(trained_config(config))}"
    description = f"{len(members)} members ({settings}), {options.images} images of 1920x1080"
    write_results("predict", build_tables(data, description, options.images, options.repeats), data)


def build_tables(data: dict[str, Any], description: str, num_images: int, repeats: int) -> str:
    """Format the result page in Markdown."""
    published_rates = [num_images / (run["start_up_s"] + run["seconds"]) for run in data["published"]]
    late_published_rates = [num_images / run["seconds"] for run in data["published"]]
    rates = {way: [turn[way]["rate"] for turn in data["cpu"]] for way in ("B", "C")}
    late_rates = {way: [turn[way]["late_rate"] for turn in data["cpu"]] for way in ("B", "C")}
    ratios, late_ratios = ([c / b for b, c in zip(way["B"], way["C"], strict=True)] for way in (rates, late_rates))
    commands = {size: [turn[size] for turn in data["command"]] for size in ("few", "many")}
    num_more = commands["many"][0]["predicted"] - num_images
    command_rates = [
        num_more / (many["process_s"] - few["process_s"])
        for few, many in zip(commands["few"], commands["many"], strict=True)
    ]
    lines = [
        f"# Prediction\n\n{data['hardware']}. {description}, {repeats} turns; medians (smallest-largest).\n",
        "| on CPUs | images/s, all members, start-up included |\n|---|---|",
        f"| A one DefaultPredictor per member, one image at a time, {CORES} threads | "
        f"{median_and_range(published_rates)} |",
        f"| B one operator: {CORES} actors of one thread that also decode | {median_and_range(rates['B'])} |",
        f"| C two operators (as `kp-ray predict`): decoding tasks, {CORES} actors of one thread | "
        f"{median_and_range(rates['C'])} |",
        f"\nC/B in the same turn: {median_and_range(ratios)}. B and C run on a cluster that is already started. In the "
        f"second half of the images: B {median_and_range(late_rates['B'])}, C {median_and_range(late_rates['C'])} "
        f"images/s, C/B {median_and_range(late_ratios)}. A without its start-up: "
        f"{median_and_range(late_published_rates)} images/s.\n",
        "| `kp-ray predict` | s, start-up included | peak MiB of an actor | peak MiB of the driver |\n"
        "|---|---|---|---|",
        *(
            f"| {runs[0]['predicted']} images | {median_and_range([run['process_s'] for run in runs], 1)} | "
            f"{max(run['peak_mib']['actor'] for run in runs):.0f} | "
            f"{max(run['peak_mib']['driver'] for run in runs):.0f} |"
            for runs in commands.values()
        ),
        f"\nThe {num_more} images more: {median_and_range(command_rates)} images/s.\n",
        f"A stand-in for a GPU sleeps {1000 * SLEEP_S:g} ms per image; {DECODING_CPUS} CPUs decode beside the actors "
        f"(in B the actors decode), on {CORES} cores in all. Second half of the images, {len(data['gpu'][0]['turns'])} "
        "turns:\n",
        "| actors | input | B images/s | B busy % | C images/s | C busy % |\n|---|---|---|---|---|---|",
    ]
    for run in data["gpu"]:
        cells = [str(run["actors"]), run["input"]]
        for way in ("B", "C"):
            values = [turn[way]["late_rate"] for turn in run["turns"]]
            busy_percents = [100 * SLEEP_S * value / run["actors"] for value in values]
            cells += [median_and_range(values, 1), median_and_range(busy_percents, 0)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
