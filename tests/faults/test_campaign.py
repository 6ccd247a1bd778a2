"""Kill a process of a verb at a random moment: the same command then has the result of an undisturbed run.

`make test-faults` runs all rounds. The seed of a round chooses the moment and the process; each round prints both.
"""

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from kp_ray.config.schema import Config
from kp_ray.training.logs import read_training_log
from kp_ray.tuning.trials import read_trials
from tests.helpers.data import tiny_config
from tests.helpers.disks import Disk, mounted_disk
from tests.helpers.processes import finish, finish_with_error, start_kp_ray

ROUNDS = [
    (verb, seed)
    for verb, rounds in (("augment", 12), ("train", 6), ("tune", 4), ("predict", 8))
    for seed in range(rounds)
]
KINDS = ("driver", "worker", "raylet", "gcs_server")
"""Kinds of process that the rounds kill in turn, one process per round."""
WORKERS = {
    "augment": "ray::",
    "train": "ray::RayTrainWorker",
    "tune": "ray::(Trial|ResourceTrainable)",
    "predict": "ray::MapWorker",
}
"""Verb -> pattern of the names of its worker processes: any task of Ray, a training worker, a trial, an actor."""
INPUT_FOLDERS = {"augment": (), "train": ("store",), "tune": ("store",), "predict": ("store", "members")}
"""Verb -> the folders in the run folder that it reads."""
END_S = 300
"""Seconds within which a driver must end after a process was killed."""

pytestmark = pytest.mark.slow


def configure(data: dict[str, Any], run_dir: Path, base: Path | None = None, verb: str = "augment") -> Config:
    """Write the config of a new run folder into it, and return the config.

    Args:
        data: `data` section of the config.
        run_dir: the new run folder.
        base: run folder whose folders are linked into the new run folder, if the verb reads them; None: link no folder.
        verb: the verb that the run folder is for.
    """
    run_dir.mkdir(parents=True)
    for name in INPUT_FOLDERS[verb] if base else ():
        (run_dir / name).symlink_to(base / name)
    train = {"max_iter": 24, "steps": [20], "eval_period": 12, "checkpoint_period": 4}
    config = tiny_config(
        data,
        run_dir,
        train=train,
        augment={"sources_per_part": 1},
        predict={"batch_size": 1},
        tune={"num_trials": 3, "max_iter": 8, "eval_period": 4, "scheduler": "none"},
    )
    (run_dir / "c.yaml").write_text(config.to_yaml())
    return config


def start(verb: str, config: Config) -> subprocess.Popen[str]:
    """Start `kp-ray VERB`, which starts a local cluster."""
    return start_kp_ray(verb, "c.yaml", "--json", cwd=config.run_dir)


def read_result(verb: str, config: Config) -> Any:
    """Return the values of a verb's result that must be the same whichever process died."""
    run_dir = Path(config.run_dir)
    if verb == "augment":
        parts = sorted((run_dir / "store").glob("recipe-*/*.parquet"))
        assert not list((run_dir / "store").rglob("*.partial"))
        return [(str(part.relative_to(run_dir)), hashlib.sha256(part.read_bytes()).hexdigest()) for part in parts]
    if verb == "predict":
        return [(run_dir / name).read_bytes() for name in ("predictions.parquet", "submission.csv")]
    if verb == "train":
        return read_training_result(run_dir / "members" / "a")
    trials = sorted(read_trials(config), key=lambda trial: trial.name)
    assert [trial.status for trial in trials] == ["finished"] * config.tune.num_trials
    return tuple(value for trial in trials for value in read_training_result(run_dir / "tune" / "trials" / trial.name))


def read_training_result(folder: Path) -> tuple[list[int], list[float], dict[str, torch.Tensor]]:
    """Return a training run's iterations, its losses, and its weights by name."""
    log = read_training_log(str(folder), fix="it must not be damaged")
    assert len((folder / "metrics.json").read_text().splitlines()) == len(log)  # no iteration is logged twice
    weights = dict(torch.load(folder / "model_final.pth", weights_only=True)["model"])
    return [entry.iteration for entry in log], [entry.values["total_loss"] for entry in log], weights


def list_processes(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return a driver and all processes that it has started, the driver first; an empty list if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        driver = psutil.Process(process.pid)
        return [driver, *driver.children(recursive=True)]
    return []


def choose_victim(
    verb: str, kind: str, processes: list[psutil.Process], rng: np.random.Generator
) -> psutil.Process | None:
    """Return a random process of a kind; None if there is no such process yet."""
    candidates = []
    for number, process in enumerate(processes):
        with contextlib.suppress(psutil.Error):
            name = process.name()
            is_worker = kind == "worker" and re.match(WORKERS[verb], name)
            if (kind == "driver" and number == 0) or is_worker or kind == name:
                candidates.append(process)
    return candidates[int(rng.integers(len(candidates)))] if candidates else None


@pytest.fixture(scope="module")
def undisturbed_results(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all verbs undisturbed; return the run's `folder`, and each verb's result and duration in seconds."""
    config = configure(sample_data, tmp_path_factory.mktemp("undisturbed") / "run")
    results: dict[str, Any] = {"folder": Path(config.run_dir)}
    for verb in INPUT_FOLDERS:
        began = time.monotonic()
        finish(start(verb, config))
        results[verb] = read_result(verb, config), time.monotonic() - began
    return results


@pytest.fixture
def large_disk(tmp_path: Path) -> Iterator[Disk]:
    """Mount a file system of 1 GiB."""
    with mounted_disk(tmp_path / "disk", 1 << 30) as mounted:
        yield mounted


@pytest.mark.parametrize(("verb", "seed"), ROUNDS, ids=[f"{verb}-{seed}" for verb, seed in ROUNDS])
def test_after_a_kill_the_same_command_has_the_result_of_an_undisturbed_run(
    verb: str, seed: int, undisturbed_results: dict[str, Any], sample_data: dict[str, Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng([seed, sorted({verb for verb, _ in ROUNDS}).index(verb)])
    expected, duration_s = undisturbed_results[verb]
    kind, moment = KINDS[seed % len(KINDS)], float(rng.uniform(0.2, 0.9))
    victim = None
    for attempt in range(8):  # a run may finish before the kill if the undisturbed run was slower
        config = configure(sample_data, tmp_path / str(attempt), undisturbed_results["folder"], verb)
        process = start(verb, config)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment * duration_s)
        while victim is None and process.poll() is None:  # sometimes no process of this kind runs
            processes = list_processes(process)
            victim = choose_victim(verb, kind, processes, rng)
            try:
                if victim:
                    victim.kill()
            except psutil.NoSuchProcess:
                victim = None
        if victim:
            break
        process.communicate()
        moment /= 1.5
    assert victim, f"no {kind} could be killed"
    _, err = process.communicate(timeout=END_S)
    if process.returncode != 0:
        assert "Traceback" not in err
        num_messages = sum(line.startswith("kp-ray: ") for line in err.splitlines())
        # A driver that was killed before it started Ray prints nothing.
        assert num_messages == 1 or (num_messages == 0 and kind == "driver"), err
    kill_all(processes, process)
    num_runs = 1
    while process.returncode != 0:
        assert num_runs < 3, err
        process = start(verb, config)
        _, err = process.communicate(timeout=600)
        num_runs += 1
    print(f"{verb} {seed}: {kind} killed at {moment:.0%}, {num_runs} runs")
    assert_same(read_result(verb, config), expected)


@pytest.mark.parametrize(("verb", "room_kib"), [("train", 128), ("tune", 128), ("predict", 48)])
def test_a_full_disk_ends_the_run_in_one_line_and_the_same_command_finishes_once_there_is_room(
    verb: str, room_kib: int, undisturbed_results: dict[str, Any], sample_data: dict[str, Any], large_disk: Disk
) -> None:
    expected, _ = undisturbed_results[verb]
    large_disk.remount(f"size={room_kib << 10}")
    config = configure(sample_data, large_disk.folder / "run", undisturbed_results["folder"], verb)
    assert "No space left on device" in finish_with_error(start(verb, config))
    large_disk.remount(f"size={1 << 30}")
    finish(start(verb, config))
    assert_same(read_result(verb, config), expected)


@pytest.mark.parametrize("verb", ["train", "tune", "predict"])
def test_a_run_folder_that_cannot_be_written_to_ends_the_run_in_one_line(
    verb: str, undisturbed_results: dict[str, Any], sample_data: dict[str, Any], large_disk: Disk
) -> None:
    config = configure(sample_data, large_disk.folder / "run", undisturbed_results["folder"], verb)
    large_disk.remount("ro")
    message = finish_with_error(start(verb, config))
    assert str(large_disk.folder) in message
    assert "Read-only file system" in message


def kill_all(processes: list[psutil.Process], driver: subprocess.Popen[str]) -> None:
    """Kill the processes of an ended driver's cluster, which would slow the next run down for some seconds."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)


def assert_same(result: Any, expected: Any) -> None:
    """Assert that results are equal; losses and weights of training runs (tuples) may differ by a relative 1e-5."""
    if isinstance(result, tuple):
        for value, expected_value in zip(result, expected, strict=True):
            if isinstance(value, dict):
                torch.testing.assert_close(value, expected_value, rtol=1e-5, atol=1e-6)
            else:
                assert value == pytest.approx(expected_value, rel=1e-5)
    else:
        assert result == expected
