"""Every verb, every kind of process, killed at a random moment: the same command then ends as if nothing had happened.

`make test-faults` runs all rounds; each draws its verb's moment and victim from its seed and prints what came of it.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from kp_ray.config.schema import Config
from kp_ray.tuning.trials import read_trials
from tests.faults.test_augment_faults import Disk, disk
from tests.helpers.data import tiny_config

ROUNDS = [(verb, seed) for verb, rounds in (("augment", 12), ("train", 6), ("tune", 4), ("predict", 8))
          for seed in range(rounds)]  # fmt: skip
KINDS = ("driver", "worker", "raylet", "gcs_server")
WORKERS = {"augment": "ray::", "train": "ray::RayTrainWorker", "tune": "ray::(Trial|ResourceTrainable)",
           "predict": "ray::MapWorker"}  # fmt: skip
"""What a verb's `worker` is called: a task's, or Ray's own beside it; a training worker; a trial; an actor."""
NEEDS = {"augment": (), "train": ("store",), "tune": ("store",), "predict": ("store", "members")}
__all__ = ["disk"]
GONE_S = 300
"""A driver whose cluster died must have noticed by then."""

pytestmark = pytest.mark.slow


def configure(data: dict[str, Any], run_dir: Path, done: Path | None = None, needs: tuple[str, ...] = ()) -> Config:
    """A config with a run folder of its own; what its verb needs is another run's."""
    run_dir.mkdir(parents=True)
    for name in needs:
        (run_dir / name).symlink_to(done / name if done else name)
    long = {"max_iter": 24, "steps": [20], "eval_period": 12, "checkpoint_period": 4}
    config = tiny_config(
        data, run_dir, train=long, augment={"sources_per_part": 1}, predict={"batch_size": 1},
        tune={"num_trials": 3, "max_iter": 8, "eval_period": 4, "scheduler": "none"},
    )  # fmt: skip
    (run_dir / "c.yaml").write_text(config.to_yaml())
    return config


def start(verb: str, config: Config) -> subprocess.Popen[str]:
    """`kp-ray VERB` with a cluster of its own, in a session of its own."""
    command = [str(Path(sys.executable).with_name("kp-ray")), verb, "c.yaml", "--json"]
    return subprocess.Popen(
        command, cwd=config.run_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def outcome(verb: str, config: Config) -> Any:
    """What a verb leaves that must not depend on what died."""
    run = Path(config.run_dir)
    if verb == "augment":
        parts = sorted((run / "store").glob("recipe=*/*.parquet"))
        assert not list((run / "store").rglob("*.partial"))
        return [(str(part.relative_to(run)), hashlib.sha256(part.read_bytes()).hexdigest()) for part in parts]
    if verb == "predict":
        return [(run / name).read_bytes() for name in ("predictions.parquet", "submission.csv")]
    if verb == "train":
        return trained(run / "members" / "a")
    rows = sorted(read_trials(config), key=lambda row: row["trial"])
    assert [row["status"] for row in rows] == ["finished"] * config.tune.num_trials
    return tuple(one for row in rows for one in trained(run / "tune" / "trials" / row["trial"]))


def trained(folder: Path) -> tuple[list[int], list[float], float]:
    """A training run's iterations and losses, and a sum over its weights."""
    log = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    weights = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    total = float(sum(value.double().abs().sum() for value in weights.values()))
    return [line["iteration"] for line in log], [line["total_loss"] for line in log], total


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The driver and all processes it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        driver = psutil.Process(process.pid)
        return [driver, *driver.children(recursive=True)]
    return []


def victim(verb: str, kind: str, processes: list[psutil.Process], rng: np.random.Generator) -> psutil.Process | None:
    """One of a kind, None if there is none yet."""
    found = []
    for number, one in enumerate(processes):
        with contextlib.suppress(psutil.Error):
            name = one.name()
            if (
                (kind == "driver" and number == 0)
                or (kind == "worker" and re.match(WORKERS[verb], name))
                or kind == name
            ):
                found.append(one)
    return found[int(rng.integers(len(found)))] if found else None


@pytest.fixture(scope="module")
def undisturbed(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a run of all verbs in which nothing dies: its folder, and by verb what it left and how long it took."""
    config = configure(sample_data, tmp_path_factory.mktemp("undisturbed") / "run")
    told: dict[str, Any] = {"folder": Path(config.run_dir)}
    for verb in NEEDS:
        began = time.monotonic()
        process = start(verb, config)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        told[verb] = outcome(verb, config), time.monotonic() - began
    return told


@pytest.mark.parametrize(("verb", "seed"), ROUNDS, ids=[f"{verb}-{seed}" for verb, seed in ROUNDS])
def test_after_a_kill_the_same_command_ends_as_if_nothing_had_happened(
    verb: str, seed: int, undisturbed: dict[str, Any], sample_data: dict[str, Any], tmp_path: Path
) -> None:
    rng = np.random.default_rng([seed, len(verb)])
    wanted, usual_s = undisturbed[verb]
    kind, moment = KINDS[seed % len(KINDS)], float(rng.uniform(0.2, 0.9))
    killed = None
    for attempt in range(8):  # it may end before it is killed, where the undisturbed run met a busier machine
        config = configure(sample_data, tmp_path / str(attempt), undisturbed["folder"], NEEDS[verb])
        process = start(verb, config)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment * usual_s)
        while killed is None and process.poll() is None:  # there is none of its kind at times
            processes = family(process)
            killed = victim(verb, kind, processes, rng)
            try:
                if killed:
                    killed.kill()
            except psutil.NoSuchProcess:
                killed = None
        if killed:
            break
        process.communicate()
        moment /= 1.5
    assert killed, f"no {kind} could be killed"
    _, err = process.communicate(timeout=GONE_S)
    if process.returncode != 0:
        assert "Traceback" not in err
        told = sum(line.startswith("kp-ray: ") for line in err.splitlines())
        assert told == 1 or (told == 0 and kind == "driver"), err  # that one may have died before it could start Ray
    end_all(processes, process)
    runs = 1
    while process.returncode != 0:
        assert runs < 3, err
        process = start(verb, config)
        _, err = process.communicate(timeout=600)
        runs += 1
    print(f"{verb} {seed}: {kind} killed at {moment:.0%}, {runs} runs")
    same(outcome(verb, config), wanted)


@pytest.mark.parametrize(("verb", "room_kib"), [("train", 128), ("tune", 128), ("predict", 48)])
def test_a_full_disk_is_one_line_and_with_room_the_same_command_goes_on(
    verb: str, room_kib: int, undisturbed: dict[str, Any], sample_data: dict[str, Any], disk: Disk
) -> None:
    wanted, _ = undisturbed[verb]
    disk.change(f"size={room_kib << 10}")
    config = configure(sample_data, disk.folder / "run", undisturbed["folder"], NEEDS[verb])
    process = start(verb, config)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("kp-ray: ")]
    assert "No space left on device" in line
    disk.change(f"size={1 << 30}")
    process = start(verb, config)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    same(outcome(verb, config), wanted)


@pytest.mark.parametrize("verb", ["train", "tune", "predict"])
def test_a_folder_that_cannot_be_written_to_is_one_line(
    verb: str, undisturbed: dict[str, Any], sample_data: dict[str, Any], disk: Disk
) -> None:
    config = configure(sample_data, disk.folder / "run", undisturbed["folder"], NEEDS[verb])
    disk.change("ro")
    process = start(verb, config)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("kp-ray: ")]
    assert str(disk.folder) in line
    assert "Read-only file system" in line


def end_all(processes: list[psutil.Process], process: subprocess.Popen[str]) -> None:
    """What a killed driver leaves would take the next run's CPUs; it goes by itself, but not at once."""
    for one in processes:
        with contextlib.suppress(psutil.Error):
            one.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def same(left: Any, right: Any) -> None:
    """Equal, numbers to 1e-5."""
    if isinstance(left, tuple):
        for one, other in zip(left, right, strict=True):
            assert one == pytest.approx(other, rel=1e-5)
    else:
        assert left == right
