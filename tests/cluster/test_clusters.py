"""The repository's cluster files, autoscaling with fake nodes, and nodes that are lost during a run.

`cluster.yaml` and `docs/kuberay/` are checked as files. Ray's fake node provider starts the node types of
`cluster.yaml` on this machine.
"""

import contextlib
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from kp_ray.cluster.placement import AUGMENT_NODE_SELECTOR, MODEL_NODE_SELECTOR, RUN_OVERHEAD_BYTES, TRIAL_ACTOR_BYTES
from tests.helpers.clusters import ENVIRONMENT, free_ports, ray_temp_dir
from tests.helpers.data import ROOT, tiny_config
from tests.helpers.processes import RAY, run_command, run_kp_ray, set_options, start_kp_ray, wait_until

CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
NODE_TYPES: dict[str, Any] = CLUSTER["available_node_types"]
KUBERAY = yaml.safe_load((ROOT / "docs" / "kuberay" / "raycluster.yaml").read_text())["spec"]
KUBERAY_JOB = yaml.safe_load((ROOT / "docs" / "kuberay" / "rayjob.yaml").read_text())
HEAD_ID, FAKE_HEAD = "f" * 51 + "00000", "ray.head.default"
"""Node id and node type of the head, with the values that Ray's fake node provider requires."""


def fake_cluster_config(gcs_address: str) -> dict[str, Any]:
    """Return an autoscaler config with the node types of cluster.yaml as fake nodes of at most 2 CPUs and 2 GPUs.

    Args:
        gcs_address: host:port of the head's GCS.
    """
    head = CLUSTER["head_node_type"]
    types = {
        FAKE_HEAD if name == head else name: {
            "resources": {key: min(amount, 2) for key, amount in node_type["resources"].items()},
            "labels": node_type.get("labels", {}),
            "node_config": {},
            "min_workers": node_type.get("min_workers", 0),
            "max_workers": min(node_type.get("max_workers", 0), 4),
        }
        for name, node_type in NODE_TYPES.items()
    }
    return {
        "cluster_name": "fake",
        "max_workers": 6,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.2,
        "provider": {
            "type": "fake_multinode", "gcs_address": gcs_address, "use_node_id_as_ip": True,
            "disable_node_updaters": True, "disable_launch_config_check": True, "launch_multiple": True,
            "head_node_id": HEAD_ID,
        },
        "auth": {}, "docker": {}, "available_node_types": types, "head_node_type": FAKE_HEAD,
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [],
        "rsync_filter": [], "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
        "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip


def query_dashboard(port: int, resource: str) -> list[dict[str, Any]]:
    """List the `nodes` or `actors` of a cluster, including those that have ended.

    Args:
        port: port of the cluster's dashboard.
        resource: "nodes" or "actors".
    """
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v0/{resource}?detail=1", timeout=30) as response:
        return list(json.load(response)["data"]["result"]["result"])


def start_ray(*options: str, **variables: str) -> None:
    """Run `ray start` with additional environment variables."""
    result = run_command(
        RAY, "start", "--disable-usage-stats", *options, env={**ENVIRONMENT, **variables}, timeout_s=120
    )
    assert result.returncode == 0, result.stderr


class AutoscalingCluster:
    """A head without CPUs and an autoscaler that adds fake nodes."""

    def __init__(self, folder: str) -> None:
        port, self.dashboard_port, agent_port = free_ports(3)
        self.address = f"127.0.0.1:{port}"
        config = Path(folder, "fake.yaml")
        config.write_text(yaml.safe_dump(fake_cluster_config(self.address)))
        start_ray(
            "--head",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
            "--num-cpus=0",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
            f"--dashboard-agent-listen-port={agent_port}",
            f"--autoscaling-config={config}",
            f"--temp-dir={folder}",
            RAY_FAKE_CLUSTER="1",
            AUTOSCALER_UPDATE_INTERVAL_S="1",
            RAY_enable_autoscaler_v2="0",  # started like this, v2 adds no fake node; v1 ignores label selectors
            RAY_OVERRIDE_NODE_ID_FOR_TESTING=HEAD_ID,
        )

    def nodes(self) -> list[dict[str, Any]]:
        """List every node that the cluster has had, with its `state` and `resources_total`."""
        return query_dashboard(self.dashboard_port, "nodes")

    def alive_nodes(self, resource: str) -> list[dict[str, Any]]:
        """List the nodes that are alive and have a resource, e.g. "GPU"."""
        return [node for node in self.nodes() if node["state"] == "ALIVE" and resource in node["resources_total"]]


@pytest.fixture(scope="module")
def autoscaling_cluster() -> Iterator[AutoscalingCluster]:
    """Start a cluster that adds fake nodes."""
    with ray_temp_dir() as folder:
        yield AutoscalingCluster(folder)


def test_every_node_requires_tokens_and_the_dashboard_is_local_to_the_head() -> None:
    for node in ("head", "worker"):
        *_, start = CLUSTER[f"{node}_start_ray_commands"]
        assert start.startswith("export RAY_AUTH_MODE=token; ray start")
    assert "--dashboard-host=127.0.0.1" in CLUSTER["head_start_ray_commands"][-1]
    assert CLUSTER["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    for manifest in (KUBERAY, KUBERAY_JOB["spec"]["rayClusterSpec"]):
        assert manifest["authOptions"] == {"mode": "token"}


def test_docker_images_have_the_installed_ray_version_and_nodes_install_their_extras() -> None:
    worker_images = [node_type["docker"]["worker_image"] for node_type in NODE_TYPES.values() if "docker" in node_type]
    images = [CLUSTER["docker"]["image"], *worker_images]
    assert all(image.startswith(f"rayproject/ray:{ray.__version__}-") for image in images)
    assert KUBERAY["rayVersion"] == ray.__version__
    prepared_config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(prepared_config)
    for node in ("head", "worker"):
        commands = " ".join(prepared_config[f"{node}_setup_commands"])
        assert "[train,s3]" in commands
        assert "detectron2" in commands
    assert "[train" not in " ".join(NODE_TYPES["cpu"]["worker_setup_commands"])


def test_the_head_has_no_cpus_and_both_worker_types_start_without_nodes() -> None:
    assert NODE_TYPES[CLUSTER["head_node_type"]]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in CLUSTER["head_start_ray_commands"][-1]
    workers = {name: node_type for name, node_type in NODE_TYPES.items() if name != CLUSTER["head_node_type"]}
    assert {name: node_type["min_workers"] for name, node_type in workers.items()} == {"cpu": 0, "gpu": 0}
    assert workers["cpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_the_groups_of_kuberay_are_the_node_types_of_cluster_yaml() -> None:
    assert KUBERAY_JOB["spec"]["rayClusterSpec"] == KUBERAY
    assert KUBERAY["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in KUBERAY["workerGroupSpecs"]:
        node_type = NODE_TYPES[group["groupName"]]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert (group["minReplicas"], group["maxReplicas"]) == (node_type["min_workers"], node_type["max_workers"])
        resources = {"CPU": int(limits["cpu"]), "GPU": int(limits.get("nvidia.com/gpu", 0))}
        assert resources == {"GPU": 0, **node_type["resources"]}
        assert group["labels"] == node_type["labels"]


def test_the_head_has_memory_for_eight_trials() -> None:
    head = KUBERAY["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]
    assert head["requests"]["memory"] == head["limits"]["memory"] == "32Gi"
    # Assume that half of the node is left: the object store takes 30 %, Ray's own processes and the drivers 20 %.
    ray_memory = 0.5 * (32 << 30)
    assert ray_memory >= 8 * (RUN_OVERHEAD_BYTES + TRIAL_ACTOR_BYTES)


def test_each_node_type_has_the_label_that_a_selector_excludes() -> None:
    assert NODE_TYPES["gpu"]["labels"] == {key: value.strip("!") for key, value in AUGMENT_NODE_SELECTOR.items()}
    assert NODE_TYPES["cpu"]["labels"] == {key: value.strip("!") for key, value in MODEL_NODE_SELECTOR.items()}
    assert "labels" not in NODE_TYPES[CLUSTER["head_node_type"]]


@dataclass(frozen=True)
class AugmentRun:
    """A finished `kp-ray augment` on a cluster that began without worker nodes.

    Attributes:
        arguments: arguments of a verb that uses the same config and cluster.
        result: the finished command.
        nodes: every node that the cluster had when the command ended.
    """

    arguments: list[str]
    result: subprocess.CompletedProcess[str]
    nodes: list[dict[str, Any]]


@pytest.fixture(scope="module")
def augment_run(
    autoscaling_cluster: AutoscalingCluster, sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> AugmentRun:
    """Run `kp-ray augment` on the autoscaling cluster."""
    folder = tmp_path_factory.mktemp("autoscaled")
    (folder / "config.yaml").write_text(tiny_config(sample_data, folder / "run").to_yaml())
    cluster = set_options(f"cluster.address={autoscaling_cluster.address}", "cluster.num_cpus=4", "cluster.num_gpus=2")
    arguments = [str(folder / "config.yaml"), *cluster]
    assert [node["resources_total"].get("CPU", 0) for node in autoscaling_cluster.nodes()] == [0]
    result = run_kp_ray("augment", *arguments, timeout_s=300)
    return AugmentRun(arguments, result, autoscaling_cluster.nodes())


@pytest.mark.slow
def test_augmenting_adds_cpu_nodes_that_are_removed_when_idle(
    autoscaling_cluster: AutoscalingCluster, augment_run: AugmentRun
) -> None:
    assert augment_run.result.returncode == 0, augment_run.result.stderr[-3000:]
    assert "parts written, 0 kept" in augment_run.result.stderr
    workers = [node for node in augment_run.nodes if not node["is_head_node"]]
    assert any(node["resources_total"].get("CPU") == 2 for node in workers)
    assert not any("GPU" in node["resources_total"] for node in workers)
    wait_until(lambda: not autoscaling_cluster.alive_nodes("CPU"), timeout_s=150, poll_s=1)


@pytest.mark.slow
def test_training_adds_gpu_nodes(autoscaling_cluster: AutoscalingCluster, augment_run: AugmentRun) -> None:
    training = start_kp_ray("train", *augment_run.arguments, "--set", "train.use_gpu=true")
    try:
        wait_until(lambda: autoscaling_cluster.alive_nodes("GPU"), training, timeout_s=150, poll_s=1)
    finally:
        training.kill()  # the node has no real GPU, so training itself cannot begin
        training.communicate()


class TwoWorkerNodes:
    """A head without CPUs and two worker nodes whose raylets can be killed."""

    def __init__(self, folder: str) -> None:
        port, self.dashboard_port, agent_port = free_ports(3)
        self.folder, self.num_started = folder, 0
        # All nodes have this machine's address, so the head must have it too: among several nodes with the driver's
        # address, Ray lets the driver join the head.
        self.address = f"{ray.util.get_node_ip_address()}:{port}"
        self.start_node(
            "--head",
            f"--port={port}",
            "--num-cpus=0",
            f"--temp-dir={folder}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard_port}",
            f"--dashboard-agent-listen-port={agent_port}",
        )

    def start_node(self, *options: str) -> None:
        """Start a node with its number as its id, by which `kill_node_of` finds its raylet."""
        self.num_started += 1
        start_ray(*options, RAY_OVERRIDE_NODE_ID_FOR_TESTING=f"{self.num_started:056x}")

    def start_missing_nodes(self) -> None:
        """Start worker nodes of 2 CPUs until two worker nodes are alive."""
        nodes = query_dashboard(self.dashboard_port, "nodes")
        alive_workers = [node for node in nodes if node["state"] == "ALIVE" and not node["is_head_node"]]
        for _ in range(2 - len(alive_workers)):
            self.start_node(f"--address={self.address}", "--num-cpus=2")

    def kill_node_of(self, actor_class: str) -> None:
        """Kill the raylet of a node on which an actor of this class is alive, as if the node's machine were lost."""
        actors = query_dashboard(self.dashboard_port, "actors")
        node_ids = [a["node_id"] for a in actors if actor_class in a["class_name"] and a["state"] == "ALIVE"]
        assert node_ids, f"no {actor_class} is alive"
        for process in psutil.process_iter(["name", "cmdline"]):
            # The node ids of another run of the tests are equal, but its raylets have another folder.
            has_folder = any(self.folder in part for part in process.info["cmdline"] or [])
            if process.info["name"] == "raylet" and has_folder:
                with contextlib.suppress(psutil.Error):  # another node's raylet may end meanwhile
                    if process.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING") == node_ids[0]:
                        process.kill()
                        return
        raise AssertionError(f"no raylet has the node id {node_ids[0]}")


@pytest.fixture(scope="module")
def two_worker_nodes() -> Iterator[TwoWorkerNodes]:
    """Start a head; tests call `start_missing_nodes` for the worker nodes."""
    with ray_temp_dir() as folder:
        yield TwoWorkerNodes(folder)


@dataclass(frozen=True)
class ReferenceRun:
    """A run of augment, train and predict that loses no node; the runs that lose a node must give the same results.

    Attributes:
        folder: folder of the config and of the run folders.
        address: address of the cluster.
    """

    folder: Path
    address: str

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.folder / "reference_run"

    def arguments(self, run_dir: Path) -> list[str]:
        """Return the arguments of a verb that uses the same config and cluster with this run folder."""
        settings = (f"cluster.address={self.address}", f"run_dir={run_dir}")
        return [str(self.folder / "config.yaml"), *set_options(*settings)]


@pytest.fixture(scope="module")
def reference_run(
    two_worker_nodes: TwoWorkerNodes, sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> ReferenceRun:
    """Run augment, train and predict while both worker nodes stay alive."""
    run = ReferenceRun(tmp_path_factory.mktemp("two"), two_worker_nodes.address)
    sections: dict[str, Any] = {
        "augment": {"recipes": ["Original"]},
        "train": {"max_iter": 40, "steps": [30], "eval_period": 0, "checkpoint_period": 5, "max_failures": 3},
        "predict": {"actors": [2, 2], "batch_size": 1, "tta": ["flip", 4, 3.5, 3, 2.5]},
    }
    (run.folder / "config.yaml").write_text(tiny_config(sample_data, run.run_dir, **sections).to_yaml())
    two_worker_nodes.start_missing_nodes()
    for verb in ("augment", "train", "predict"):
        result = run_kp_ray(verb, *run.arguments(run.run_dir))
        assert result.returncode == 0, result.stderr[-3000:]
    return run


def run_with_lost_node(
    two_worker_nodes: TwoWorkerNodes, arguments: list[str], has_begun: Callable[[], Any], actor_class: str
) -> str:
    """Run a verb, kill the node of one of its actors once `has_begun` returns true, and return the verb's stderr."""
    two_worker_nodes.start_missing_nodes()
    process = start_kp_ray(*arguments)
    wait_until(has_begun, process, timeout_s=150, poll_s=0.1)
    two_worker_nodes.kill_node_of(actor_class)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    return err


@pytest.mark.slow
def test_doctor_checks_every_node_and_requires_tokens_on_a_cluster_of_several_nodes(
    two_worker_nodes: TwoWorkerNodes, reference_run: ReferenceRun
) -> None:
    two_worker_nodes.start_missing_nodes()
    result = run_kp_ray("doctor", *reference_run.arguments(reference_run.run_dir), "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout.splitlines()[-1])["failed"] == ["tokens"], result.stderr
    assert "ok nodes: 3" in result.stderr
    assert result.stderr.count("ok run_dir on ") == 3
    assert "RAY_AUTH_MODE=token" in result.stderr


@pytest.mark.slow
def test_training_that_loses_a_node_ends_with_the_same_weights(
    two_worker_nodes: TwoWorkerNodes, reference_run: ReferenceRun
) -> None:
    torch = pytest.importorskip("torch")
    run_dir = reference_run.folder / "lost-train"
    shutil.copytree(reference_run.run_dir / "store", run_dir / "store")
    arguments = ["train", *reference_run.arguments(run_dir)]
    checkpoints = "members/a/checkpoint_*"
    err = run_with_lost_node(two_worker_nodes, arguments, lambda: list(run_dir.glob(checkpoints)), "RayTrainWorker")
    assert "from the checkpoint at" in err
    expected, resumed = (
        torch.load(folder / "members/a/model_final.pth", weights_only=True)["model"]
        for folder in (reference_run.run_dir, run_dir)
    )
    assert expected.keys() == resumed.keys()
    assert all(torch.allclose(expected[name].float(), resumed[name].float(), atol=1e-5) for name in expected)


@pytest.mark.slow
def test_predicting_that_loses_a_node_gives_the_same_predictions(
    two_worker_nodes: TwoWorkerNodes, reference_run: ReferenceRun
) -> None:
    run_dir = reference_run.folder / "lost-predict"
    for name in ("store", "members"):
        shutil.copytree(reference_run.run_dir / name, run_dir / name)
    arguments = ["predict", *reference_run.arguments(run_dir)]
    run_with_lost_node(two_worker_nodes, arguments, lambda: list(run_dir.glob("predictions/**/*.parquet")), "Predictor")
    reference_dir = reference_run.run_dir
    assert pq.read_table(run_dir / "predictions.parquet").equals(pq.read_table(reference_dir / "predictions.parquet"))
    assert (run_dir / "submission.csv").read_bytes() == (reference_dir / "submission.csv").read_bytes()
