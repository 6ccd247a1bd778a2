"""Every job by `ray job submit` on a real cluster that asks for tokens, what it leaves, and who is refused."""

import json
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray.job_submission import JobSubmissionClient

from tests.helpers.clusters import ENVIRONMENT, KP_RAY, RAY, TOKEN, Cluster, end_all, free_port
from tests.helpers.data import ROOT, tiny_config


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """`ray start --head` as the docs say, its dashboard on loopback; ends only the processes it started."""
    folder = tempfile.mkdtemp(prefix="kpj", dir="/tmp")  # short: sockets live in it
    token = Path(folder, "token")
    token.write_text(TOKEN)
    port, gcs = free_port(), free_port()
    head = [
        RAY, "start", "--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}",  # its fixed default is taken where another Ray runs
        "--num-cpus=4", f"--temp-dir={folder}", "--disable-usage-stats",
    ]  # fmt: skip
    environment = {**ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    made = Cluster(f"http://127.0.0.1:{port}", f"127.0.0.1:{gcs}", environment)
    try:
        started = made.run(*head)
        assert started.returncode == 0, started.stderr
        _wait_for_agent(made)
        yield made
    finally:
        end_all(folder)


def _wait_for_agent(cluster: Cluster) -> None:
    """`ray start` returns before the agent that starts jobs is there."""
    client = cluster.client()
    for _ in range(60):
        try:
            client.submit_job(entrypoint="true")
        except RuntimeError:
            time.sleep(1)
        else:
            return
    raise AssertionError("no agent took a job within a minute")


def submit_command(dashboard: str, job: str, *arguments: str, options: Sequence[str] = ()) -> list[str]:
    """As the docs say."""
    excludes = '{"excludes": [".git", ".venv", "runs"]}'
    return [
        RAY, "job", "submit", f"--address={dashboard}", "--working-dir", str(ROOT), f"--runtime-env-json={excludes}",
        *options, "--", "python", f"jobs/{job}.py", *arguments,
    ]  # fmt: skip


JOBS = {
    "augment": "store/manifest.json", "train": "members/a/model_final.pth", "tune": "tune/best.yaml",
    "predict": "submission.csv", "pipeline": "report.html",
}  # fmt: skip


# Each alone takes as long as all that they call; the pipeline calls it all.
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
    for made in (
        "config.yaml", "check.csv", "store/manifest.json", "store/quarantine.parquet", "members/a/model_final.pth",
        "members/a/config.yaml", "members/a/metrics.json", "tune/trials.csv", "tune/trials.parquet", "tune/best.yaml",
        "predictions.parquet", "submission.csv", "evaluation.json", "report.html",
    ):  # fmt: skip
        assert (run / made).stat().st_size > 0, made
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert set(evaluation["members"]) == {member["name"] for member in members}
    assert {"rmse", "pck", "ap", "num_missing"} <= set(evaluation)
    assert len((run / "submission.csv").read_text().splitlines()) == 1 + 10


def test_a_users_mistake_fails_the_job_with_its_one_line(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("run_dir: x\ntrian: {}\n")
    done = cluster.run(*submit_command(cluster.dashboard, "augment", str(tmp_path / "config.yaml")))
    assert done.returncode == 1
    assert "trian: unknown key; did you mean train?" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_client_without_the_token_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text(secrets.token_hex(32))
    strangers = [
        {**ENVIRONMENT, "RAY_AUTH_MODE": "disabled"},
        {**ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(wrong)},
    ]
    for stranger in strangers:
        done = cluster.run(RAY, "job", "list", f"--address={cluster.dashboard}", environment=stranger)
        assert done.returncode != 0
        assert "token" in done.stdout + done.stderr
    join = f"import ray; ray.init(address={cluster.address!r}, log_to_driver=False); print('joined')"
    done = cluster.run(sys.executable, "-c", join, environment=strangers[0])
    assert done.returncode != 0
    assert "joined" not in done.stdout
    assert "joined" in cluster.run(sys.executable, "-c", join).stdout


def test_doctor_sees_that_tokens_are_asked_for_and_shows_none(
    cluster: Cluster, sample_data: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(tiny_config(sample_data, tmp_path / "run").to_yaml())
    address = f"cluster.address={cluster.address}"
    done = cluster.run(KP_RAY, "doctor", str(tmp_path / "config.yaml"), "--set", address, "--json")
    assert json.loads(done.stdout.splitlines()[-1]) == {"ok": True, "failed": []}, done.stderr
    assert "ok tokens: asked for" in done.stderr
    assert TOKEN not in done.stdout + done.stderr


def _wait_for(path: Path, pattern: str, client: JobSubmissionClient, job: str) -> None:
    for _ in range(2400):
        if list(path.glob(pattern)):
            return
        assert client.get_job_status(job) in ("PENDING", "RUNNING"), client.get_job_logs(job)[-3000:]
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in {path}: {client.get_job_logs(job)[-3000:]}")


def _submit_and_stop(cluster: Cluster, job: str, config: Path, pattern: str) -> None:
    """Submit without waiting, stop the job when `pattern` is in the run folder, wait for its end."""
    name = f"{job}-{secrets.token_hex(4)}"
    options = ["--no-wait", f"--submission-id={name}"]
    done = cluster.run(*submit_command(cluster.dashboard, job, str(config), options=options))
    assert done.returncode == 0, done.stderr
    client = cluster.client()
    _wait_for(config.parent / "run", pattern, client, name)
    stopped = cluster.run(RAY, "job", "stop", f"--address={cluster.dashboard}", name)
    assert stopped.returncode == 0, stopped.stderr
    assert client.get_job_status(name) == "STOPPED"
    assert cluster.run(RAY, "job", "logs", f"--address={cluster.dashboard}", name).returncode == 0


@pytest.mark.slow
def test_stopped_jobs_leave_what_the_same_command_goes_on_from(
    cluster: Cluster, sample_data: dict[str, Any], tmp_path: Path
) -> None:
    recipes = ["Original", *["Rotate45"] * 300]
    few = {"max_iter": 60, "steps": [50], "eval_period": 0, "checkpoint_period": 5, "recipes": ["Original"]}
    config = tiny_config(sample_data, tmp_path / "run", augment={"recipes": recipes, "sources_per_part": 1}, train=few)
    path, store = tmp_path / "config.yaml", tmp_path / "run" / "store"
    path.write_text(config.to_yaml())

    _submit_and_stop(cluster, "augment", path, "store/recipe=*/*.parquet")
    left = {part: part.stat().st_mtime_ns for part in store.glob("recipe=*/*.parquet")}
    assert left
    assert not (store / "manifest.json").exists()
    assert all(pq.read_metadata(part).metadata[b"kp_ray"] for part in left)
    done = cluster.run(*submit_command(cluster.dashboard, "augment", str(path)))
    assert done.returncode == 0, done.stdout[-3000:]
    assert {part: part.stat().st_mtime_ns for part in left} == left
    assert not list(store.glob("**/*.partial"))
    assert cluster.run(KP_RAY, "verify", str(path)).returncode == 0

    _submit_and_stop(cluster, "train", path, "members/a/checkpoint_*")
    assert not (tmp_path / "run/members/a/model_final.pth").exists()
    done = cluster.run(*submit_command(cluster.dashboard, "train", str(path)))
    assert done.returncode == 0, done.stdout[-3000:]
    assert "from the checkpoint at" in done.stdout
    assert (tmp_path / "run/members/a/model_final.pth").exists()
