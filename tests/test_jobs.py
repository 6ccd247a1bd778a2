"""The jobs in `jobs/`, submitted to a real cluster that requires tokens: results, stops and refusals."""

import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kp_ray.cluster.screen import ACTOR_POOL_WARNING
from kp_ray.config.schema import Config
from tests.helpers.clusters import ENVIRONMENT, TOKEN, Cluster, free_ports, ray_temp_dir
from tests.helpers.data import ROOT, tiny_config
from tests.helpers.processes import KP_RAY, RAY, file_times, last_json, wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a cluster with a token as docs/cluster.md says; the dashboard listens on loopback only."""
    with ray_temp_dir() as folder:
        token = Path(folder, "token")
        token.write_text(TOKEN)
        dashboard_port, gcs_port, agent_port = free_ports(3)
        environment = {**ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        ray_cluster = Cluster(f"http://127.0.0.1:{dashboard_port}", f"127.0.0.1:{gcs_port}", environment)
        head = ray_cluster.run(
            RAY,
            "start",
            "--head",
            f"--port={gcs_port}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard_port}",
            f"--dashboard-agent-listen-port={agent_port}",  # the default port is taken if another Ray runs
            "--num-cpus=4",
            f"--temp-dir={folder}",
            "--disable-usage-stats",
        )
        assert head.returncode == 0, head.stderr
        wait_until(lambda: accepts_jobs(ray_cluster), timeout_s=60, poll_s=1)
        yield ray_cluster


def accepts_jobs(cluster: Cluster) -> bool:
    """Return True once the agent that starts jobs runs; `ray start` does not wait for the agent."""
    try:
        cluster.client().submit_job(entrypoint="true")
    except RuntimeError:
        return False
    return True


def submit_command(dashboard: str, job: str, *arguments: str, options: Sequence[str] = ()) -> list[str]:
    """Return the `ray job submit` command that docs/cluster.md shows."""
    excludes = '{"excludes": [".git", ".venv", "runs"]}'
    return [
        RAY,
        "job",
        "submit",
        f"--address={dashboard}",
        "--working-dir",
        str(ROOT),
        f"--runtime-env-json={excludes}",
        "--entrypoint-memory=1000000000",
        '--entrypoint-resources={"node:__internal_head__": 0.001}',
        *options,
        "--",
        "python",
        f"jobs/{job}.py",
        *arguments,
    ]


JOBS = {
    "augment": "store/_manifest.json",
    "train": "members/a/model_final.pth",
    "tune": "tune/best.yaml",
    "predict": "submission.csv",
    "pipeline": "report.html",
}
"""Job -> a file that the job writes into the run folder."""


def run_job(cluster: Cluster, job: str, config: Config, folder: Path) -> None:
    """Submit a job, wait for its end, and assert that it succeeded and wrote its result."""
    path = folder / "config.yaml"
    path.write_text(config.to_yaml())
    result = cluster.run(*submit_command(cluster.dashboard, job, str(path)))
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert "succeeded" in result.stdout.lower()
    assert "Traceback" not in result.stdout
    assert ACTOR_POOL_WARNING not in result.stdout
    assert Path(config.path(JOBS[job])).stat().st_size > 0


def test_a_job_runs_a_stage_on_the_cluster(cluster: Cluster, sample_data: dict[str, Any], tmp_path: Path) -> None:
    run_job(cluster, "augment", tiny_config(sample_data, tmp_path / "run"), tmp_path)


@pytest.mark.slow
def test_jobs_succeed_and_write_their_results(cluster: Cluster, sample_data: dict[str, Any], tmp_path: Path) -> None:
    members = [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}]
    run = tmp_path / "run"
    config = tiny_config(sample_data, run, train={"members": members}, tune={"num_trials": 1})
    for job in JOBS:
        run_job(cluster, job, config, tmp_path)
    for name in (
        "config.yaml",
        "check.csv",
        "store/_manifest.json",
        "store/_quarantine.csv",
        "members/a/model_final.pth",
        "members/a/config.yaml",
        "members/a/metrics.json",
        "tune/trials.csv",
        "tune/trials.parquet",
        "tune/best.yaml",
        "predictions.parquet",
        "submission.csv",
        "evaluation.json",
        "report.html",
    ):
        assert (run / name).stat().st_size > 0, name
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert set(evaluation["members"]) == {member["name"] for member in members}
    assert {"rmse", "pck", "ap", "num_missing"} <= set(evaluation)
    assert len((run / "submission.csv").read_text().splitlines()) == 1 + 10


def test_a_job_with_an_invalid_config_fails_without_a_traceback(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run_dir: x\ntrian: {}\n")
    result = cluster.run(*submit_command(cluster.dashboard, "augment", str(tmp_path / "config.yaml")))
    assert result.returncode == 1
    assert "trian: unknown key; did you mean train?" in result.stdout
    assert "Traceback" not in result.stdout


def test_a_client_without_the_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    wrong_token = tmp_path / "token"
    wrong_token.write_text(secrets.token_hex(32))
    without_token = {**ENVIRONMENT, "RAY_AUTH_MODE": "disabled"}
    with_wrong_token = {**ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong_token)}
    for environment in (without_token, with_wrong_token):
        result = cluster.run(RAY, "job", "list", f"--address={cluster.dashboard}", environment=environment)
        assert result.returncode != 0
        assert "token" in result.stdout + result.stderr
    join_code = f"import ray; ray.init(address={cluster.address!r}, log_to_driver=False); print('joined')"
    result = cluster.run(sys.executable, "-c", join_code, environment=without_token)
    assert result.returncode != 0
    assert "joined" not in result.stdout
    assert "joined" in cluster.run(sys.executable, "-c", join_code).stdout


def test_doctor_reports_that_tokens_are_required_and_does_not_print_the_token(
    cluster: Cluster, sample_data: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(tiny_config(sample_data, tmp_path / "run").to_yaml())
    address = f"cluster.address={cluster.address}"
    result = cluster.run(KP_RAY, "doctor", str(tmp_path / "config.yaml"), "--set", address, "--json")
    assert last_json(result.stdout) == {"ok": True, "failed": []}, result.stderr
    assert "ok tokens: required" in result.stderr
    assert TOKEN not in result.stdout + result.stderr


def submit_and_stop(cluster: Cluster, job: str, config: Path, pattern: str) -> None:
    """Submit a job, stop it once the run folder has a file that matches `pattern`, and wait until it has stopped."""
    job_id, run = f"{job}-{secrets.token_hex(4)}", config.parent / "run"
    options = ["--no-wait", f"--submission-id={job_id}"]
    result = cluster.run(*submit_command(cluster.dashboard, job, str(config), options=options))
    assert result.returncode == 0, result.stderr
    client = cluster.client()

    def has_file() -> bool:
        is_found = any(run.glob(pattern))
        assert is_found or client.get_job_status(job_id) in ("PENDING", "RUNNING"), client.get_job_logs(job_id)[-3000:]
        return is_found

    wait_until(has_file, timeout_s=150)
    result = cluster.run(RAY, "job", "stop", f"--address={cluster.dashboard}", job_id)
    assert result.returncode == 0, result.stderr
    assert client.get_job_status(job_id) == "STOPPED"
    assert cluster.run(RAY, "job", "logs", f"--address={cluster.dashboard}", job_id).returncode == 0


@pytest.mark.slow
def test_the_same_command_resumes_a_stopped_job(cluster: Cluster, sample_data: dict[str, Any], tmp_path: Path) -> None:
    augment = {"recipes": ["Original", *["Rotate45"] * 2000], "sources_per_part": 1}
    train = {"max_iter": 60, "steps": [50], "eval_period": 0, "checkpoint_period": 5, "recipes": ["Original"]}
    config = tiny_config(sample_data, tmp_path / "run", augment=augment, train=train)
    path, store = tmp_path / "config.yaml", tmp_path / "run" / "store"
    path.write_text(config.to_yaml())

    submit_and_stop(cluster, "augment", path, "store/recipe-*/*.parquet")
    finished_parts = file_times(*store.glob("recipe-*/*.parquet"))
    assert finished_parts
    assert not (store / "_manifest.json").exists()
    assert all(pq.read_metadata(part).metadata[b"kp_ray"] for part in finished_parts)
    result = cluster.run(*submit_command(cluster.dashboard, "augment", str(path)))
    assert result.returncode == 0, result.stdout[-3000:]
    assert file_times(*finished_parts) == finished_parts
    assert not list(store.glob("**/*.partial"))
    assert cluster.run(KP_RAY, "verify", str(path)).returncode == 0

    submit_and_stop(cluster, "train", path, "members/a/checkpoint_*")
    assert not (tmp_path / "run/members/a/model_final.pth").exists()
    result = cluster.run(*submit_command(cluster.dashboard, "train", str(path)))
    assert result.returncode == 0, result.stdout[-3000:]
    assert "from the checkpoint at" in result.stdout
    assert (tmp_path / "run/members/a/model_final.pth").exists()
