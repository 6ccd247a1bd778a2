"""The jobs of `jobs/` by `ray job submit` on a real cluster that requires tokens: results, stops and refusals."""

import json
import secrets
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.helpers.clusters import ENVIRONMENT, TOKEN, Cluster, free_port, kill_ray
from tests.helpers.data import ROOT, tiny_config
from tests.helpers.processes import KP_RAY, RAY, file_times, last_json, wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster started as docs/cluster.md says, with the dashboard on loopback."""
    folder = tempfile.mkdtemp(prefix="kpj", dir="/tmp")  # short: the path of a Unix socket has at most 107 characters
    token = Path(folder, "token")
    token.write_text(TOKEN)
    port, gcs = free_port(), free_port()
    head = [
        RAY, "start", "--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}",  # the default port is taken if another Ray runs
        "--num-cpus=4", f"--temp-dir={folder}", "--disable-usage-stats",
    ]  # fmt: skip
    environment = {**ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    started = Cluster(f"http://127.0.0.1:{port}", f"127.0.0.1:{gcs}", environment)
    try:
        done = started.run(*head)
        assert done.returncode == 0, done.stderr
        wait_until(lambda: accepts_jobs(started), timeout_s=60, poll_s=1)
        yield started
    finally:
        kill_ray(folder)


def accepts_jobs(cluster: Cluster) -> bool:
    """Return whether the agent that starts jobs is there; `ray start` returns before."""
    try:
        cluster.client().submit_job(entrypoint="true")
    except RuntimeError:
        return False
    return True


def submit_command(dashboard: str, job: str, *arguments: str, options: Sequence[str] = ()) -> list[str]:
    """Return the `ray job submit` command of the docs."""
    excludes = '{"excludes": [".git", ".venv", "runs"]}'
    return [
        RAY, "job", "submit", f"--address={dashboard}", "--working-dir", str(ROOT), f"--runtime-env-json={excludes}",
        *options, "--", "python", f"jobs/{job}.py", *arguments,
    ]  # fmt: skip


JOBS = {
    "augment": "store/manifest.json", "train": "members/a/model_final.pth", "tune": "tune/best.yaml",
    "predict": "submission.csv", "pipeline": "report.html",
}  # fmt: skip


# The pipeline's job calls all that the others call; they take as long again, so they are slow tests.
@pytest.mark.parametrize("jobs", [["pipeline"], pytest.param(list(JOBS), marks=pytest.mark.slow)], ids="-".join)
def test_every_job_succeeds_and_leaves_its_result(
    jobs: Sequence[str], cluster: Cluster, sample_data: dict[str, Any], tmp_path: Path
) -> None:
    members = [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}][: len(jobs)]
    config = tiny_config(sample_data, tmp_path / "run", train={"members": members}, tune={"num_trials": 1})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    run = tmp_path / "run"
    for job in jobs:
        done = cluster.run(*submit_command(cluster.dashboard, job, str(path)))
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        assert "succeeded" in done.stdout.lower()
        assert "Traceback" not in done.stdout
        assert (run / JOBS[job]).stat().st_size > 0
    for name in (
        "config.yaml", "check.csv", "store/manifest.json", "store/quarantine.parquet", "members/a/model_final.pth",
        "members/a/config.yaml", "members/a/metrics.json", "tune/trials.csv", "tune/trials.parquet", "tune/best.yaml",
        "predictions.parquet", "submission.csv", "evaluation.json", "report.html",
    ):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert set(evaluation["members"]) == {member["name"] for member in members}
    assert {"rmse", "pck", "ap", "num_missing"} <= set(evaluation)
    assert len((run / "submission.csv").read_text().splitlines()) == 1 + 10


def test_a_job_with_a_wrong_config_fails_with_one_line(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run_dir: x\ntrian: {}\n")
    done = cluster.run(*submit_command(cluster.dashboard, "augment", str(tmp_path / "config.yaml")))
    assert done.returncode == 1
    assert "trian: unknown key; did you mean train?" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_client_without_the_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text(secrets.token_hex(32))
    environments = [
        {**ENVIRONMENT, "RAY_AUTH_MODE": "disabled"},
        {**ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)},
    ]
    for environment in environments:
        done = cluster.run(RAY, "job", "list", f"--address={cluster.dashboard}", environment=environment)
        assert done.returncode != 0
        assert "token" in done.stdout + done.stderr
    join = f"import ray; ray.init(address={cluster.address!r}, log_to_driver=False); print('joined')"
    done = cluster.run(sys.executable, "-c", join, environment=environments[0])
    assert done.returncode != 0
    assert "joined" not in done.stdout
    assert "joined" in cluster.run(sys.executable, "-c", join).stdout


def test_doctor_reports_that_tokens_are_required_and_prints_none(
    cluster: Cluster, sample_data: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(tiny_config(sample_data, tmp_path / "run").to_yaml())
    address = f"cluster.address={cluster.address}"
    done = cluster.run(KP_RAY, "doctor", str(tmp_path / "config.yaml"), "--set", address, "--json")
    assert last_json(done.stdout) == {"ok": True, "failed": []}, done.stderr
    assert "ok tokens: asked for" in done.stderr
    assert TOKEN not in done.stdout + done.stderr


def submit_and_stop(cluster: Cluster, job: str, config: Path, pattern: str) -> None:
    """Submit a job, stop it once a file that matches `pattern` is in the run folder, and wait until it has stopped."""
    name, run = f"{job}-{secrets.token_hex(4)}", config.parent / "run"
    options = ["--no-wait", f"--submission-id={name}"]
    done = cluster.run(*submit_command(cluster.dashboard, job, str(config), options=options))
    assert done.returncode == 0, done.stderr
    client = cluster.client()

    def has_file() -> bool:
        found = any(run.glob(pattern))
        assert found or client.get_job_status(name) in ("PENDING", "RUNNING"), client.get_job_logs(name)[-3000:]
        return found

    wait_until(has_file, timeout_s=150)
    stopped = cluster.run(RAY, "job", "stop", f"--address={cluster.dashboard}", name)
    assert stopped.returncode == 0, stopped.stderr
    assert client.get_job_status(name) == "STOPPED"
    assert cluster.run(RAY, "job", "logs", f"--address={cluster.dashboard}", name).returncode == 0


@pytest.mark.slow
def test_stopped_jobs_are_resumed_by_the_same_command(
    cluster: Cluster, sample_data: dict[str, Any], tmp_path: Path
) -> None:
    augment = {"recipes": ["Original", *["Rotate45"] * 300], "sources_per_part": 1}
    train = {"max_iter": 60, "steps": [50], "eval_period": 0, "checkpoint_period": 5, "recipes": ["Original"]}
    config = tiny_config(sample_data, tmp_path / "run", augment=augment, train=train)
    path, store = tmp_path / "config.yaml", tmp_path / "run" / "store"
    path.write_text(config.to_yaml())

    submit_and_stop(cluster, "augment", path, "store/recipe=*/*.parquet")
    finished = file_times(*store.glob("recipe=*/*.parquet"))
    assert finished
    assert not (store / "manifest.json").exists()
    assert all(pq.read_metadata(part).metadata[b"kp_ray"] for part in finished)
    done = cluster.run(*submit_command(cluster.dashboard, "augment", str(path)))
    assert done.returncode == 0, done.stdout[-3000:]
    assert file_times(*finished) == finished
    assert not list(store.glob("**/*.partial"))
    assert cluster.run(KP_RAY, "verify", str(path)).returncode == 0

    submit_and_stop(cluster, "train", path, "members/a/checkpoint_*")
    assert not (tmp_path / "run/members/a/model_final.pth").exists()
    done = cluster.run(*submit_command(cluster.dashboard, "train", str(path)))
    assert done.returncode == 0, done.stdout[-3000:]
    assert "from the checkpoint at" in done.stdout
    assert (tmp_path / "run/members/a/model_final.pth").exists()
