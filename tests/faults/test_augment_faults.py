"""A store has the same bytes for any number of concurrent tasks, and after any process was killed during its run.

Every run is a `kp-ray augment` in its own process on a real cluster.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from kp_ray.config.presets import DEFAULT_RECIPES
from tests.helpers.augment_runs import (
    StartAugment,
    find_writers,
    finish_with_only_an_error,
    list_parts,
    read_contents,
    store_dir,
    wait_for_writers,
    write_augment_config,
)
from tests.helpers.disks import Disk
from tests.helpers.processes import file_times, finish, has_ended, run_kp_ray, wait_until

NUM_LINKS = 12
"""Number of names under which each generated frame is linked."""
NUM_FRAMES = 12
"""Number of labelled frames in `sample_data`."""
NUM_SOURCES = NUM_FRAMES * NUM_LINKS
BROKEN_IMAGE = "broken-001_A-0000001.jpg"


@pytest.fixture(scope="module")
def many_data(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Link each generated frame under NUM_LINKS names, and label the links and a truncated image; return `data`."""
    folder = tmp_path_factory.mktemp("many")
    images = folder / "images"
    images.mkdir()
    header, *rows = Path(sample_data["annotations"]).read_text().splitlines()
    lines = [header]
    for link in range(NUM_LINKS):
        for row in rows:
            name, points = row.split(",", 1)
            (images / f"{link}-{name}").symlink_to(Path(sample_data["images"], name))
            lines.append(f"{link}-{name},{points}")
    # The truncated image is the beginning of the last frame's file, with the keypoints of that frame.
    lines.insert(len(lines) // 2, f"{BROKEN_IMAGE},{points}")
    (images / BROKEN_IMAGE).write_bytes(Path(sample_data["images"], name).read_bytes()[:5000])
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return {**sample_data, "annotations": str(folder / "labels.csv"), "images": str(images)}


def wait_for_parts(process: subprocess.Popen[str], config: Path) -> None:
    """Wait until a fifth of the parts is finished, so that the run is neither at its start nor at its end."""
    # A part holds four sources. The estimate is too high, because validation sources have only one recipe.
    num_parts = NUM_SOURCES / 4 * len(set(DEFAULT_RECIPES))
    wait_until(lambda: len(list_parts(config)) >= 0.2 * num_parts, process, poll_s=0.02)


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """Start a head and a second node, each with one CPU and its own raylet."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def get_raylet(node: Any) -> subprocess.Popen[bytes]:
    """Return the raylet of a node: the parent process of the node's workers."""
    raylet: subprocess.Popen[bytes] = node.all_processes["raylet"][0].process
    return raylet


def address_setting(cluster: Cluster) -> str:
    """Return the setting that makes a run join a cluster."""
    return f"cluster.address={cluster.address}"


@pytest.fixture(scope="module")
def undisturbed_run(many_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Write a store with one task at a time; return the config and the store's contents."""
    config = write_augment_config(many_data, tmp_path_factory.mktemp("undisturbed"))
    process = run_kp_ray("augment", str(config), "--set", "cluster.num_cpus=1", timeout_s=300)
    assert process.returncode == 0, process.stderr
    return config, read_contents(config)


@pytest.fixture
def expected(undisturbed_run: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    """Return the contents that every store of `many_data` must have."""
    return undisturbed_run[1]


def test_an_undisturbed_store_has_every_source_and_quarantines_the_truncated_image(expected: dict[str, Any]) -> None:
    assert expected["manifest"]["num_sources"] == NUM_SOURCES
    assert [row["source"] for row in expected["quarantine"]] == [BROKEN_IMAGE]
    assert len(expected["digests"]) > 300


@pytest.mark.slow
@pytest.mark.parametrize("num_cpus", [2, 4])
def test_the_number_of_concurrent_tasks_does_not_change_the_store(
    num_cpus: int, many_data: dict[str, Any], expected: dict[str, Any], start_augment: StartAugment, tmp_path: Path
) -> None:
    config = write_augment_config(many_data, tmp_path)
    run = start_augment(config, f"cluster.num_cpus={num_cpus}")
    max_writers = 0
    while run.poll() is None:
        max_writers = max(max_writers, len(find_writers(config)))
        time.sleep(0.01)
    finish(run)
    assert 1 < max_writers <= num_cpus
    assert read_contents(config) == expected


def test_a_run_over_a_finished_store_needs_no_cluster_and_changes_nothing(
    undisturbed_run: tuple[Path, dict[str, Any]], start_augment: StartAugment
) -> None:
    config, expected = undisturbed_run
    times = file_times(*(path for path in store_dir(config).rglob("*") if path.name != ".lock"))
    summary = finish(start_augment(config, "cluster.address=127.0.0.1:1"))  # nothing listens on this port
    assert summary["parts_written"] == 0
    assert summary["parts_kept"] == len(expected["digests"])
    assert file_times(*times) == times
    assert read_contents(config) == expected


@pytest.mark.slow
def test_two_nodes_write_the_same_store_as_one_machine(
    many_data: dict[str, Any], expected: dict[str, Any], start_augment: StartAugment, two_nodes: Cluster, tmp_path: Path
) -> None:
    config = write_augment_config(many_data, tmp_path)
    run = start_augment(config, address_setting(two_nodes))
    raylet_pids: set[int] = set()
    while run.poll() is None:
        raylet_pids |= set(find_writers(config).values())
        time.sleep(0.01)
    finish(run)
    assert raylet_pids == {get_raylet(node).pid for node in two_nodes.list_all_nodes()}
    assert read_contents(config) == expected


def test_a_killed_node_does_not_change_the_store(
    many_data: dict[str, Any], expected: dict[str, Any], start_augment: StartAugment, two_nodes: Cluster, tmp_path: Path
) -> None:
    raylet = get_raylet(two_nodes.add_node(num_cpus=1))
    config = write_augment_config(many_data, tmp_path)
    run = start_augment(config, address_setting(two_nodes))
    wait_for_parts(run, config)
    wait_for_writers(run, config, raylet.pid)
    raylet.kill()
    raylet.wait()  # its workers do not end while the raylet is a zombie
    assert not (store_dir(config) / "_manifest.json").exists()
    finish(run)
    assert read_contents(config) == expected


def test_killed_workers_do_not_change_the_store(
    many_data: dict[str, Any], expected: dict[str, Any], start_augment: StartAugment, two_nodes: Cluster, tmp_path: Path
) -> None:
    config = write_augment_config(many_data, tmp_path)
    run = start_augment(config, address_setting(two_nodes))
    wait_for_parts(run, config)
    for _ in range(2):
        victim = next(iter(wait_for_writers(run, config)))
        os.kill(victim, signal.SIGKILL)
    assert not (store_dir(config) / "_manifest.json").exists()
    finish(run)
    assert read_contents(config) == expected


def test_ctrl_c_ends_the_run_in_one_line_and_the_same_command_resumes(
    many_data: dict[str, Any], expected: dict[str, Any], start_augment: StartAugment, two_nodes: Cluster, tmp_path: Path
) -> None:
    config = write_augment_config(many_data, tmp_path)
    run = start_augment(config, address_setting(two_nodes))
    wait_for_parts(run, config)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    _, err = run.communicate(timeout=400)
    assert run.returncode == 130, err
    assert [line for line in err.splitlines() if not line.startswith("augment ")] == [
        "stopped; run the same command to resume"
    ]
    assert not (store_dir(config) / "_manifest.json").exists()
    times = file_times(*list_parts(config))
    summary = finish(start_augment(config, address_setting(two_nodes)))
    assert read_contents(config) == expected
    assert summary["parts_kept"] >= len(times) > 0
    assert file_times(*times) == times


@pytest.mark.slow
def test_a_run_whose_workers_always_die_ends_with_one_line(
    many_data: dict[str, Any], start_augment: StartAugment, tmp_path: Path
) -> None:
    config = write_augment_config(many_data, tmp_path, sources_per_part=1000)
    run = start_augment(config, "cluster.num_cpus=2")
    while run.poll() is None:
        for pid in find_writers(config):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    assert "run augment again, which keeps finished parts" in finish_with_only_an_error(run)
    finish(start_augment(config, "cluster.num_cpus=2"))
    assert read_contents(config)["manifest"]["num_sources"] == NUM_SOURCES


@pytest.mark.slow
def test_a_run_on_a_node_without_memory_ends_with_advice(
    many_data: dict[str, Any], expected: dict[str, Any], start_augment: StartAugment, tmp_path: Path
) -> None:
    config = write_augment_config(many_data, tmp_path)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_memory_usage_threshold", "0.01")  # Ray kills every task
        environment.setenv("RAY_memory_monitor_refresh_ms", "50")
        assert "lower cluster.num_cpus" in finish_with_only_an_error(start_augment(config, "cluster.num_cpus=2"))
    finish(start_augment(config, "cluster.num_cpus=2"))
    assert read_contents(config) == expected


@pytest.mark.slow
def test_a_cluster_that_does_not_start_is_started_again(
    many_data: dict[str, Any], expected: dict[str, Any], start_augment: StartAugment, tmp_path: Path
) -> None:
    config = write_augment_config(many_data, tmp_path)
    run = start_augment(config, "cluster.num_cpus=2")
    raylets: list[psutil.Process] = []
    while not raylets:
        assert run.poll() is None
        raylets = [child for child in psutil.Process(run.pid).children(recursive=True) if child.name() == "raylet"]
    raylets[0].suspend()
    _, err = run.communicate(timeout=600)
    assert run.returncode == 0, err
    assert "Ray did not start (The current node timed out during startup" in err
    assert read_contents(config) == expected
    assert has_ended(raylets[0].pid)


def test_a_second_run_is_refused_until_the_first_is_killed_and_then_resumes_the_store(
    many_data: dict[str, Any], expected: dict[str, Any], start_augment: StartAugment, two_nodes: Cluster, tmp_path: Path
) -> None:
    config = write_augment_config(many_data, tmp_path)
    first_run = start_augment(config, "cluster.num_cpus=2")
    wait_for_parts(first_run, config)
    first_run.send_signal(signal.SIGSTOP)  # so that it cannot finish before the second run starts
    assert "another process is using this folder" in finish_with_only_an_error(
        start_augment(config, address_setting(two_nodes))
    )
    first_run.kill()
    first_run.wait()
    assert not (store_dir(config) / "_manifest.json").exists()
    times = file_times(*list_parts(config))
    assert 0 < len(times) < len(expected["digests"])
    summary = finish(start_augment(config, address_setting(two_nodes)))
    assert read_contents(config) == expected
    assert summary["parts_kept"] >= len(times)
    assert file_times(*times) == times


def test_a_full_disk_ends_the_run_in_one_line_and_the_same_command_resumes_once_there_is_space(
    many_data: dict[str, Any], expected: dict[str, Any], start_augment: StartAugment, two_nodes: Cluster, disk: Disk
) -> None:
    config = write_augment_config(many_data, disk.folder.parent, disk.folder / "run")
    # A killed writer leaves a file like this one.
    partial = store_dir(config) / "recipe-Rotate45" / "part-00000-0.parquet.0.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(1 << 20))
    message = finish_with_only_an_error(start_augment(config, address_setting(two_nodes)))
    assert not partial.exists()
    assert "No space left on device" in message
    assert "run augment again, which keeps finished parts" in message
    assert 0 < len(list_parts(config)) < len(expected["digests"])
    assert not (store_dir(config) / "_manifest.json").exists()
    disk.remount(f"size={1 << 30}")
    assert finish(start_augment(config, address_setting(two_nodes)))["parts_written"] > 0
    assert read_contents(config) == expected
    assert not list(store_dir(config).rglob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize("free_bytes", [0, 32 << 10], ids=["config", "manifest"])
def test_a_disk_without_space_for_the_config_or_the_manifest_ends_the_run_in_one_line(
    free_bytes: int, sample_data: dict[str, Any], start_augment: StartAugment, two_nodes: Cluster, disk: Disk
) -> None:
    config = write_augment_config(sample_data, disk.folder.parent, disk.folder / "run", sources_per_part=1)
    manifest, filler = store_dir(config) / "_manifest.json", disk.folder / "filler"
    if free_bytes:  # a finished store that lacks only its manifest
        finish(start_augment(config, address_setting(two_nodes)))
        assert manifest.stat().st_size > free_bytes
        manifest.unlink()
    # Fill the disk, then free what all files but the manifest need.
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(8 << 20))
    os.truncate(filler, filler.stat().st_size - free_bytes)
    assert "No space left on device" in finish_with_only_an_error(start_augment(config, address_setting(two_nodes)))
    assert not manifest.exists()
    filler.unlink()
    finish(start_augment(config, address_setting(two_nodes)))
    read_contents(config)  # compares the manifest with the files


def test_a_read_only_run_folder_ends_the_run_in_one_line(
    sample_data: dict[str, Any], start_augment: StartAugment, two_nodes: Cluster, disk: Disk
) -> None:
    config = write_augment_config(sample_data, disk.folder.parent, disk.folder / "run")
    disk.remount("ro")
    message = finish_with_only_an_error(start_augment(config, address_setting(two_nodes)))
    assert str(disk.folder) in message
    assert "Read-only file system" in message


@pytest.mark.slow
def test_an_interrupted_driver_prints_no_traceback_and_the_same_command_resumes(
    many_data: dict[str, Any], expected: dict[str, Any], start_augment: StartAugment, tmp_path: Path
) -> None:
    config = write_augment_config(many_data, tmp_path)
    run = start_augment(config, "cluster.num_cpus=2")
    wait_for_parts(run, config)
    run.send_signal(signal.SIGINT)  # to the driver alone; Ctrl-C goes to the whole process group
    _, err = run.communicate(timeout=60)
    assert run.returncode != 0
    assert "Traceback" not in err
    assert not (store_dir(config) / "_manifest.json").exists()
    finish(start_augment(config, "cluster.num_cpus=2"))
    assert read_contents(config) == expected
