"""cluster.yaml: what Ray's validator says of it, and a cluster of fake nodes that grows as its groups do."""

import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.helpers.clusters import ENVIRONMENT, KP_RAY, RAY, end_all, free_port
from tests.helpers.data import ROOT, tiny_config

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
GROUPS: dict[str, Any] = CLUSTER["available_node_types"]
KUBERAY = yaml.safe_load((ROOT / "docs" / "kuberay" / "raycluster.yaml").read_text())["spec"]
KUBERAY_JOB = yaml.safe_load((ROOT / "docs" / "kuberay" / "rayjob.yaml").read_text())
HEAD_ID, FAKE_HEAD = "f" * 51 + "00000", "ray.head.default"
"""What the fake provider calls the head and its group."""


def fake_cluster(gcs: str) -> dict[str, Any]:
    """cluster.yaml with its groups as fake nodes of this machine, no larger than two of a resource each."""
    head = CLUSTER["head_node_type"]
    types = {
        FAKE_HEAD if name == head else name: {
            "resources": {key: min(amount, 2) for key, amount in group["resources"].items()},
            "node_config": {},
            "min_workers": group.get("min_workers", 0),
            "max_workers": min(group.get("max_workers", 0), 4),
        }
        for name, group in GROUPS.items()
    }
    return {
        "cluster_name": "fake",
        "max_workers": 6,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.2,
        "provider": {
            "type": "fake_multinode", "gcs_address": gcs, "use_node_id_as_ip": True, "disable_node_updaters": True,
            "disable_launch_config_check": True, "launch_multiple": True, "head_node_id": HEAD_ID,
        },
        "auth": {}, "docker": {}, "available_node_types": types, "head_node_type": FAKE_HEAD,
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [],
        "rsync_filter": [], "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
        "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip


class Growing:
    """A head without CPUs and the autoscaler of its fake nodes."""

    def __init__(self, folder: str) -> None:
        self.folder, port, self.dashboard = folder, free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        config = Path(folder, "fake.yaml")
        config.write_text(yaml.safe_dump(fake_cluster(self.address)))
        command = [
            RAY, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=0",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}",
            f"--dashboard-agent-listen-port={free_port()}", f"--autoscaling-config={config}", f"--temp-dir={folder}",
            "--disable-usage-stats",
        ]  # fmt: skip
        environment = {
            **ENVIRONMENT, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "0", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        }  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
        assert done.returncode == 0, done.stderr

    def nodes(self) -> list[dict[str, Any]]:
        """Every node there has been, with its `state` and `resources_total`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.dashboard}/api/v0/nodes?detail=1", timeout=30) as answer:
            return list(json.load(answer)["data"]["result"]["result"])


@pytest.fixture(scope="module")
def growing() -> Iterator[Growing]:
    folder = tempfile.mkdtemp(prefix="kpc", dir="/tmp")  # short: sockets live in it
    try:
        yield Growing(folder)
    finally:
        end_all(folder)


def test_every_node_asks_for_tokens_and_the_dashboard_stays_on_the_head() -> None:
    for node in ("head", "worker"):
        *_, start = CLUSTER[f"{node}_start_ray_commands"]
        assert start.startswith("export RAY_AUTH_MODE=token; ray start")
    assert "--dashboard-host=127.0.0.1" in CLUSTER["head_start_ray_commands"][-1]
    assert CLUSTER["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    for manifest in (KUBERAY, KUBERAY_JOB["spec"]["rayClusterSpec"]):
        assert manifest["authOptions"] == {"mode": "token"}


def test_images_are_of_this_ray_and_every_node_gets_its_parts() -> None:
    of_groups = [group["docker"]["worker_image"] for group in GROUPS.values() if "docker" in group]
    images = [CLUSTER["docker"]["image"], *of_groups]
    assert all(image.startswith(f"rayproject/ray:{ray.__version__}-") for image in images)
    assert KUBERAY["rayVersion"] == ray.__version__
    filled = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(filled)
    with_train = [" ".join(filled[f"{node}_setup_commands"]) for node in ("head", "worker")]
    assert all("[train,s3]" in commands and "detectron2" in commands for commands in with_train)
    assert "[train" not in " ".join(GROUPS["cpu"]["worker_setup_commands"])


def test_the_head_runs_no_work_and_both_groups_start_empty() -> None:
    assert GROUPS[CLUSTER["head_node_type"]]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in CLUSTER["head_start_ray_commands"][-1]
    workers = {name: group for name, group in GROUPS.items() if name != CLUSTER["head_node_type"]}
    assert {name: group["min_workers"] for name, group in workers.items()} == {"cpu": 0, "gpu": 0}
    assert workers["cpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_kubernetes_has_the_same_groups() -> None:
    assert KUBERAY_JOB["spec"]["rayClusterSpec"] == KUBERAY
    assert KUBERAY["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in KUBERAY["workerGroupSpecs"]:
        twin, asked = GROUPS[group["groupName"]], group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert (group["minReplicas"], group["maxReplicas"]) == (twin["min_workers"], twin["max_workers"])
        resources = {"CPU": int(asked["cpu"]), "GPU": int(asked.get("nvidia.com/gpu", 0))}
        assert resources == {"GPU": 0, **twin["resources"]}


@pytest.fixture(scope="module")
def augmented(
    growing: Growing, sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """What names the config to a verb, the finished augment job on an empty cluster, and the nodes it left."""
    folder = tmp_path_factory.mktemp("grown")
    (folder / "config.yaml").write_text(tiny_config(sample_data, folder / "run").to_yaml())
    cluster = [f"cluster.address={growing.address}", "cluster.num_cpus=4", "cluster.num_gpus=2"]
    config = [str(folder / "config.yaml"), *(part for setting in cluster for part in ("--set", setting))]
    assert [node["resources_total"].get("CPU", 0) for node in growing.nodes()] == [0]
    command = [KP_RAY, "augment", *config]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return config, done, growing.nodes()


@pytest.mark.slow
def test_an_augment_job_grows_cpu_nodes_from_none_that_go_when_idle(growing: Growing, augmented: Any) -> None:
    _, done, nodes = augmented
    assert done.returncode == 0, done.stderr[-3000:]
    assert "parts written, 0 kept" in done.stderr
    grown = [node for node in nodes if not node["is_head_node"]]
    assert any(node["resources_total"].get("CPU") == 2 for node in grown)
    assert not any("GPU" in node["resources_total"] for node in grown)
    _wait(lambda: not _alive(growing, "CPU"), lambda: True)
    assert not _alive(growing, "CPU")


@pytest.mark.slow
def test_a_train_job_asks_for_gpu_nodes(growing: Growing, augmented: Any) -> None:
    config, _, _ = augmented
    command = [KP_RAY, "train", *config, "--set", "train.use_gpu=true"]
    training = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _wait(lambda: _alive(growing, "GPU"), lambda: training.poll() is None)
    finally:
        training.kill()  # there is no GPU behind the node, so training itself cannot begin
        _, said = training.communicate()
    assert _alive(growing, "GPU"), said[-3000:]


def _alive(growing: Growing, resource: str) -> list[dict[str, Any]]:
    return [node for node in growing.nodes() if node["state"] == "ALIVE" and resource in node["resources_total"]]


def _wait(until: Callable[[], Any], going_on: Callable[[], bool], every: float = 1.0) -> None:
    end = time.monotonic() + 150
    while time.monotonic() < end and going_on() and not until():
        time.sleep(every)


class TwoNodes:
    """A head without CPUs and two raylets that can be ended one by one."""

    def __init__(self, folder: str) -> None:
        port, self.dashboard = free_port(), free_port()
        # All nodes have this machine's address; a driver joins the head where there are several.
        self.address, self.number = f"{ray.util.get_node_ip_address()}:{port}", 0
        self.start(
            "--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={folder}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}", "--disable-usage-stats",
            f"--dashboard-agent-listen-port={free_port()}",
        )  # fmt: skip

    def start(self, *options: str) -> None:
        """`ray start`, as a node whose id is known."""
        self.number += 1
        name = f"{self.number:056x}"
        environment = {**ENVIRONMENT, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": name}
        command = [RAY, "start", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
        assert done.returncode == 0, done.stderr

    def ask(self, what: str) -> list[dict[str, Any]]:
        """The dashboard's `nodes` or `actors`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.dashboard}/api/v0/{what}?detail=1", timeout=30) as answer:
            return list(json.load(answer)["data"]["result"]["result"])

    def fill(self) -> None:
        """Two living nodes of two CPUs."""
        living = [node for node in self.ask("nodes") if node["state"] == "ALIVE" and not node["is_head_node"]]
        for _ in range(2 - len(living)):
            self.start(f"--address={self.address}", "--num-cpus=2")

    def kill_node_of(self, actor: str) -> None:
        """End the raylet of a node where a living actor of this class is, as a lost machine would."""
        nodes = [one["node_id"] for one in self.ask("actors") if actor in one["class_name"] and one["state"] == "ALIVE"]
        assert nodes, f"no {actor} is alive"
        mark = "RAY_OVERRIDE_NODE_ID_FOR_TESTING"
        for process in [one for one in psutil.process_iter(["name"]) if one.info["name"] == "raylet"]:
            if process.environ().get(mark) == nodes[0]:
                process.kill()
                return
        raise AssertionError(f"no raylet {nodes[0]}")


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    folder = tempfile.mkdtemp(prefix="kp2", dir="/tmp")  # short: sockets live in it
    try:
        yield TwoNodes(folder)
    finally:
        end_all(folder)


@pytest.fixture(scope="module")
def undisturbed(
    two_nodes: TwoNodes, sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[str]]:
    """A finished run on both nodes; gives the arguments of the same with another run folder."""
    folder = tmp_path_factory.mktemp("two")
    sections: dict[str, Any] = {
        "augment": {"recipes": ["Original"]},
        "train": {"max_iter": 40, "steps": [30], "eval_period": 0, "checkpoint_period": 5, "max_failures": 3},
        "predict": {"actors": [2, 2], "batch_size": 1, "tta": ["flip", 4, 3.5, 3, 2.5]},
    }
    (folder / "config.yaml").write_text(tiny_config(sample_data, folder / "whole", **sections).to_yaml())

    def arguments(run: str) -> list[str]:
        settings = [f"cluster.address={two_nodes.address}", f"run_dir={folder / run}"]
        return [str(folder / "config.yaml"), *(part for one in settings for part in ("--set", one))]

    two_nodes.fill()
    for verb in ("augment", "train", "predict"):
        done = subprocess.run([KP_RAY, verb, *arguments("whole")], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return arguments


def _disturbed(two_nodes: TwoNodes, command: list[str], begun: Callable[[], Any], actor: str) -> str:
    """Run a verb, end the node of one of its actors once it has `begun`, and give what it said."""
    two_nodes.fill()
    going = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _wait(begun, lambda: going.poll() is None, every=0.1)
    assert going.poll() is None, going.communicate()[1][-3000:]
    two_nodes.kill_node_of(actor)
    _, said = going.communicate(timeout=400)
    assert going.returncode == 0, said[-3000:]
    return said


@pytest.mark.slow
def test_doctor_asks_every_node_and_wants_tokens_on_more_than_one(two_nodes: TwoNodes, undisturbed: Any) -> None:
    two_nodes.fill()
    command = [KP_RAY, "doctor", *undisturbed("whole"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["failed"] == ["tokens"], done.stderr
    assert "ok nodes: 3" in done.stderr
    assert done.stderr.count("ok run_dir on ") == 3
    assert "RAY_AUTH_MODE=token" in done.stderr


@pytest.mark.slow
def test_training_on_a_node_that_dies_ends_with_the_same_weights(two_nodes: TwoNodes, undisturbed: Any) -> None:
    torch = pytest.importorskip("torch")
    whole = Path(undisturbed("whole")[0]).parent / "whole"
    run = whole.with_name("lost-train")
    shutil.copytree(whole / "store", run / "store")
    command = [KP_RAY, "train", *undisturbed(run.name)]
    said = _disturbed(two_nodes, command, lambda: list(run.glob("members/a/checkpoint_*")), "RayTrainWorker")
    assert "from the checkpoint at" in said
    one, other = (torch.load(each / "members/a/model_final.pth", weights_only=True)["model"] for each in (whole, run))
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name].float(), other[name].float(), atol=1e-5) for name in one)


@pytest.mark.slow
def test_predicting_on_a_node_that_dies_gives_the_same_predictions(two_nodes: TwoNodes, undisturbed: Any) -> None:
    whole = Path(undisturbed("whole")[0]).parent / "whole"
    run = whole.with_name("lost-predict")
    for part in ("store", "members"):
        shutil.copytree(whole / part, run / part)
    command = [KP_RAY, "predict", *undisturbed(run.name)]
    _disturbed(two_nodes, command, lambda: list(run.glob("predictions/**/*.parquet")), "Predictor")
    assert pq.read_table(run / "predictions.parquet").equals(pq.read_table(whole / "predictions.parquet"))
    assert (run / "submission.csv").read_bytes() == (whole / "submission.csv").read_bytes()
