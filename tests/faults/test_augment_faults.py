"""The store comes out the same, byte for byte, however many work on it and whatever dies on the way.

Every run is a `kp-ray augment` of its own on a real cluster; what it leaves is compared with an undisturbed run's.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from ray.cluster_utils import Cluster

from kp_ray.config.presets import DEFAULT_RECIPES
from tests.helpers.data import tiny_config

NUM_COPIES = 12
BROKEN = "broken-001_A-0000001.jpg"
Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def many_data(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The sample's frames many times over under new names, and one that is cut short."""
    folder = tmp_path_factory.mktemp("many")
    images = folder / "images"
    images.mkdir()
    header, *rows = Path(sample_data["annotations"]).read_text().splitlines()
    lines = [header]
    for copy in range(NUM_COPIES):
        for row in rows:
            name, points = row.split(",", 1)
            (images / f"{copy}-{name}").symlink_to(Path(sample_data["images"], name))
            lines.append(f"{copy}-{name},{points}")
    lines.insert(len(lines) // 2, f"{BROKEN},{points}")
    (images / BROKEN).write_bytes(Path(sample_data["images"], name).read_bytes()[:5000])
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return {**sample_data, "annotations": str(folder / "labels.csv"), "images": str(images)}


def configure(data: dict[str, Any], folder: Path, run_dir: Path | None = None, **augment: Any) -> Path:
    """A config file in a folder, and the run folder too unless it is elsewhere."""
    section = {"recipes": list(DEFAULT_RECIPES), "sources_per_part": 4, **augment}
    config = tiny_config(data, run_dir or folder / "run", split={"fraction": 0.1}, augment=section)
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    return path


@pytest.fixture
def augment() -> Iterator[Command]:
    """Starts `kp-ray augment CONFIG --set ...` as a process of its own; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(config: Path, *sets: str) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("kp-ray")), "augment", str(config), "--json"]
        for setting in sets:
            command += ["--set", setting]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def figures(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a run that ends well says of itself."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return dict(json.loads(out.splitlines()[-1]))


def refusal(process: subprocess.Popen[str]) -> str:
    """The one line of a run that must end with a user's mistake."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == 2, err
    assert "Traceback" not in err
    told = [line for line in err.splitlines() if not line.startswith("augment ")]  # progress
    assert len(told) == 1, err
    assert told[0].startswith("kp-ray: ")
    assert not any(line.startswith("{") for line in out.splitlines())  # no figures; Ray says there that workers died
    return told[0]


def store_of(config: Path) -> Path:
    return Path(yaml.safe_load(config.read_text())["run_dir"]) / "store"


def parts_of(store: Path) -> list[Path]:
    return sorted(store.glob("recipe=*/*.parquet"))


def contents(config: Path) -> dict[str, Any]:
    """All that a finished store holds: every file's digest, and the manifest that agrees with them."""
    store = store_of(config)
    digests = {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in parts_of(store)}
    manifest = json.loads((store / "manifest.json").read_text())
    assert {part["path"]: part["sha256"] for part in manifest["parts"]} == digests
    every = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}
    assert every == {*digests, "manifest.json", "quarantine.parquet", ".lock"}
    quarantine = pq.read_table(store / "quarantine.parquet").to_pylist()
    return {"digests": digests, "manifest": manifest, "quarantine": quarantine}


def writers(store: Path) -> dict[int, int]:
    """The processes that hold an unfinished part open: pid -> parent's pid, which is their node's raylet."""
    found = {}
    for process in psutil.process_iter():
        try:
            if not process.name().startswith("ray::"):
                continue
            if any(file.path.startswith(f"{store}/recipe=") for file in process.open_files()):
                found[process.pid] = process.ppid()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_for_parts(process: subprocess.Popen[str], config: Path, share: float = 0.2) -> int:
    """Wait until a run has finished this share of its parts, and how many there are; the run is then in its middle."""
    store = store_of(config)
    total = 12 * NUM_COPIES / 4 * len(set(DEFAULT_RECIPES))  # more or less: validation has only one recipe
    while len(parts_of(store)) < share * total:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    return len(parts_of(store))


def wait_for_writers(process: subprocess.Popen[str], store: Path, raylet: int | None = None) -> dict[int, int]:
    """Wait until somebody, of this node if a raylet's pid is given, is in the middle of a part."""
    while True:
        found = {pid: parent for pid, parent in writers(store).items() if raylet in (None, parent)}
        if found:
            return found
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.01)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """A head and a second node, a CPU each, with raylets of their own."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def raylet_of(node: Any) -> subprocess.Popen[bytes]:
    """The process that a node's workers are children of."""
    raylet: subprocess.Popen[bytes] = node.all_processes["raylet"][0].process
    return raylet


def on(cluster: Cluster) -> str:
    """The setting that sends a run to a cluster."""
    return f"cluster.address={cluster.address}"


@pytest.fixture(scope="module")
def undisturbed(many_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One task at a time and nothing in its way: the config and what the store holds."""
    config = configure(many_data, tmp_path_factory.mktemp("undisturbed"))
    command = [str(Path(sys.executable).with_name("kp-ray")), "augment", str(config), "--set", "cluster.num_cpus=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return config, contents(config)


@pytest.fixture
def expected(undisturbed: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    """What every store of this file must hold."""
    return undisturbed[1]


def test_an_undisturbed_run_holds_every_source_and_names_the_unusable_one(expected: dict[str, Any]) -> None:
    assert expected["manifest"]["num_sources"] == 12 * NUM_COPIES
    assert [row["source"] for row in expected["quarantine"]] == [BROKEN]
    assert len(expected["digests"]) > 300


@pytest.mark.slow
@pytest.mark.parametrize("num_cpus", [2, 4])
def test_rows_are_the_same_however_many_tasks_work_at_once(
    num_cpus: int, many_data: dict[str, Any], expected: dict[str, Any], augment: Command, tmp_path: Path
) -> None:
    config = configure(many_data, tmp_path)
    run = augment(config, f"cluster.num_cpus={num_cpus}")
    most = 0
    while run.poll() is None:
        most = max(most, len(writers(store_of(config))))
        time.sleep(0.01)
    figures(run)
    assert 1 < most <= num_cpus
    assert contents(config) == expected


def test_a_finished_store_is_left_alone_and_needs_no_cluster(
    undisturbed: tuple[Path, dict[str, Any]], augment: Command
) -> None:
    config, expected = undisturbed
    before = {path: path.stat().st_mtime_ns for path in store_of(config).rglob("*") if path.name != ".lock"}
    done = figures(augment(config, "cluster.address=127.0.0.1:1"))  # nothing answers there
    assert done["parts_written"] == 0
    assert done["parts_kept"] == len(expected["digests"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(config) == expected


@pytest.mark.slow
def test_two_nodes_write_what_one_machine_writes(
    many_data: dict[str, Any], expected: dict[str, Any], augment: Command, two_nodes: Cluster, tmp_path: Path
) -> None:
    config = configure(many_data, tmp_path)
    run = augment(config, on(two_nodes))
    worked: set[int] = set()
    while run.poll() is None:
        worked |= set(writers(store_of(config)).values())
        time.sleep(0.01)
    figures(run)
    assert worked == {raylet_of(node).pid for node in two_nodes.list_all_nodes()}
    assert contents(config) == expected


def test_a_node_that_dies_in_mid_run_takes_nothing_with_it(
    many_data: dict[str, Any], expected: dict[str, Any], augment: Command, two_nodes: Cluster, tmp_path: Path
) -> None:
    raylet = raylet_of(two_nodes.add_node(num_cpus=1))
    config = configure(many_data, tmp_path)
    run = augment(config, on(two_nodes))
    wait_for_parts(run, config)
    wait_for_writers(run, store_of(config), raylet.pid)
    raylet.kill()
    raylet.wait()  # the workers of a raylet that is a zombie live on
    assert not (store_of(config) / "manifest.json").exists()
    figures(run)
    assert contents(config) == expected


def test_a_killed_worker_costs_only_its_own_part(
    many_data: dict[str, Any], expected: dict[str, Any], augment: Command, two_nodes: Cluster, tmp_path: Path
) -> None:
    config = configure(many_data, tmp_path)
    run = augment(config, on(two_nodes))
    wait_for_parts(run, config)
    for _ in range(2):
        victim = next(iter(wait_for_writers(run, store_of(config))))
        os.kill(victim, signal.SIGKILL)
    assert not (store_of(config) / "manifest.json").exists()
    figures(run)
    assert contents(config) == expected


def test_ctrl_c_ends_in_one_line_and_the_same_command_goes_on(
    many_data: dict[str, Any], expected: dict[str, Any], augment: Command, two_nodes: Cluster, tmp_path: Path
) -> None:
    config = configure(many_data, tmp_path)
    run = augment(config, on(two_nodes))
    wait_for_parts(run, config)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    _, err = run.communicate(timeout=400)
    assert run.returncode == 130, err
    assert [line for line in err.splitlines() if not line.startswith("augment ")] == [
        "stopped; the same command goes on from here"
    ]
    assert not (store_of(config) / "manifest.json").exists()
    done = figures(augment(config, on(two_nodes)))
    assert done["parts_written"] + done["parts_kept"] == len(expected["digests"])
    assert contents(config) == expected


@pytest.mark.slow
def test_workers_that_die_each_time_end_the_run_in_one_line(
    many_data: dict[str, Any], augment: Command, tmp_path: Path
) -> None:
    config = configure(many_data, tmp_path, sources_per_part=1000)
    run = augment(config, "cluster.num_cpus=2")
    while run.poll() is None:
        for pid in writers(store_of(config)):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    assert "finished parts are kept, run augment again" in refusal(run)
    figures(augment(config, "cluster.num_cpus=2"))
    assert contents(config)["manifest"]["num_sources"] == 12 * NUM_COPIES


@pytest.mark.slow
def test_a_node_without_memory_ends_the_run_with_advice(
    many_data: dict[str, Any], expected: dict[str, Any], augment: Command, tmp_path: Path
) -> None:
    config = configure(many_data, tmp_path)
    with pytest.MonkeyPatch.context() as low:
        low.setenv("RAY_memory_usage_threshold", "0.01")  # Ray kills every task
        low.setenv("RAY_memory_monitor_refresh_ms", "50")
        assert "lower cluster.num_cpus" in refusal(augment(config, "cluster.num_cpus=2"))
    figures(augment(config, "cluster.num_cpus=2"))
    assert contents(config) == expected


@pytest.mark.slow
def test_a_cluster_that_does_not_come_up_is_started_once_more(
    many_data: dict[str, Any], expected: dict[str, Any], augment: Command, tmp_path: Path
) -> None:
    config = configure(many_data, tmp_path)
    run = augment(config, "cluster.num_cpus=2")
    raylets: list[psutil.Process] = []
    while not raylets:
        assert run.poll() is None
        raylets = [one for one in psutil.Process(run.pid).children(recursive=True) if one.name() == "raylet"]
    raylets[0].suspend()
    _, err = run.communicate(timeout=600)
    assert run.returncode == 0, err
    assert "Ray did not start, once more: The current node timed out during startup" in err
    assert contents(config) == expected
    assert not raylets[0].is_running() or raylets[0].status() == psutil.STATUS_ZOMBIE


def test_a_second_writer_is_refused_and_takes_over_from_a_killed_driver(
    many_data: dict[str, Any], expected: dict[str, Any], augment: Command, two_nodes: Cluster, tmp_path: Path
) -> None:
    config = configure(many_data, tmp_path)
    first = augment(config, "cluster.num_cpus=2")
    wait_for_parts(first, config)
    first.send_signal(signal.SIGSTOP)  # alive, and in mid-run however long the second takes to start
    assert "another process is writing here" in refusal(augment(config, on(two_nodes)))
    first.kill()
    first.wait()
    assert not (store_of(config) / "manifest.json").exists()
    made = len(parts_of(store_of(config)))
    assert 0 < made < len(expected["digests"])
    done = figures(augment(config, on(two_nodes)))
    assert contents(config) == expected
    assert done["parts_written"] + done["parts_kept"] == len(expected["digests"])


# --- disks


class Disk:
    """A file system of its own in memory, of any size, that can be made read-only."""

    def __init__(self, folder: Path, num_bytes: int) -> None:
        self.folder = folder
        folder.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")

    def change(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    mounted = Disk(tmp_path / "disk", 5 << 20)
    yield mounted
    subprocess.run(["umount", "-l", str(mounted.folder)], check=True)


def test_a_full_disk_is_one_line_and_with_space_the_run_goes_on(
    many_data: dict[str, Any], expected: dict[str, Any], augment: Command, two_nodes: Cluster, disk: Disk
) -> None:
    config = configure(many_data, disk.folder.parent, disk.folder / "run")
    left = store_of(config) / "recipe=Rotate45" / "part-00000-0.parquet.0.partial"  # by a writer that was killed
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(1 << 20))
    told = refusal(augment(config, on(two_nodes)))
    assert not left.exists()
    assert "No space left on device" in told
    assert "finished parts are kept, run augment again" in told
    made = parts_of(store_of(config))
    assert 0 < len(made) < len(expected["digests"])
    assert not (store_of(config) / "manifest.json").exists()
    disk.change(f"size={1 << 30}")
    assert figures(augment(config, on(two_nodes)))["parts_written"] > 0
    assert contents(config) == expected
    assert not list(store_of(config).rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("room_bytes", [0, 32 << 10], ids=["config", "manifest"])
def test_a_disk_without_room_for_what_is_beside_the_parts_is_one_line(
    room_bytes: int, sample_data: dict[str, Any], augment: Command, two_nodes: Cluster, disk: Disk
) -> None:
    config = configure(sample_data, disk.folder.parent, disk.folder / "run", sources_per_part=1)
    manifest, filler = store_of(config) / "manifest.json", disk.folder / "filler"
    if room_bytes:  # enough for all but the manifest
        figures(augment(config, on(two_nodes)))
        assert manifest.stat().st_size > room_bytes
        manifest.unlink()
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(8 << 20))
    os.truncate(filler, filler.stat().st_size - room_bytes)
    assert "No space left on device" in refusal(augment(config, on(two_nodes)))
    assert not manifest.exists()
    filler.unlink()
    figures(augment(config, on(two_nodes)))
    contents(config)


def test_a_folder_that_cannot_be_written_to_is_one_line(
    sample_data: dict[str, Any], augment: Command, two_nodes: Cluster, disk: Disk
) -> None:
    config = configure(sample_data, disk.folder.parent, disk.folder / "run")
    disk.change("ro")
    told = refusal(augment(config, on(two_nodes)))
    assert str(disk.folder) in told
    assert "Read-only file system" in told


@pytest.mark.slow
def test_an_interrupted_run_ends_without_a_traceback_and_goes_on(
    many_data: dict[str, Any], expected: dict[str, Any], augment: Command, tmp_path: Path
) -> None:
    config = configure(many_data, tmp_path)
    run = augment(config, "cluster.num_cpus=2")
    wait_for_parts(run, config)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "Traceback" not in err
    assert not (store_of(config) / "manifest.json").exists()
    figures(augment(config, "cluster.num_cpus=2"))
    assert contents(config) == expected
