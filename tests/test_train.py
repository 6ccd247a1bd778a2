"""Ray Train over real workers on the tiny sample: what a finished member is, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config

from kp_ray.config import Config, InputError
from kp_ray.store import plan, write_store
from kp_ray.train import runs_at_once, train

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def trained(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Config:
    """Two members, one over two workers' worth of steps each: 4 iterations on 1 worker."""
    members = [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}]
    config = tiny_config(sample_data, tmp_path_factory.mktemp("trained"), train={"members": members})
    write_store(plan(config))
    train(config)
    return config


def log_of(config: Config, member: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(config.member_dir(member), "metrics.json").read_text().splitlines()]


def test_every_member_is_a_folder_with_weights_config_and_log(trained: Config) -> None:
    for member in ("a", "b"):
        folder = Path(trained.member_dir(member))
        assert {"model_final.pth", "config.yaml", "metrics.json"} <= {path.name for path in folder.iterdir()}
    states = [
        torch.load(Path(trained.member_dir(m), "model_final.pth"), weights_only=True)["model"] for m in ("a", "b")
    ]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])  # seeds differ


def test_the_log_has_every_iteration_with_the_lr_of_the_schedule_and_the_evaluations(trained: Config) -> None:
    log = log_of(trained, "a")
    assert [line["iteration"] for line in log] == [0, 1, 2, 3]
    rates = [line["lr"] for line in log]
    assert rates[3] == pytest.approx(rates[2] * trained.train.gamma)  # the step at 3
    assert all(np.isfinite(line["total_loss"]) for line in log)
    assert [line["iteration"] for line in log if "val/rmse" in line] == [1, 3]


def test_a_finished_member_is_skipped_and_other_settings_are_refused(trained: Config) -> None:
    assert train(trained) == {"a": {"skipped": True}, "b": {"skipped": True}}
    other = tiny_config(
        trained.data.model_dump(),
        Path(trained.run_dir),
        train={"members": [{"name": "a", "seed": 1}], "base_lr": 0.5},
    )
    with pytest.raises(InputError, match="other settings"):
        train(other)


def test_a_stopped_run_goes_on_from_its_checkpoint_by_name(trained: Config) -> None:
    folder = Path(trained.member_dir("b"))
    (folder / "model_final.pth").unlink()
    result = train(trained)
    assert result["a"] == {"skipped": True}
    assert result["b"]["iterations"] == 4
    assert [line["iteration"] for line in log_of(trained, "b")] == [0, 1, 2, 3]  # nothing ran twice
    assert (folder / "model_final.pth").exists()


def test_two_workers_train_one_model_with_scaled_steps(sample_data: dict[str, Any], tmp_path: Path) -> None:
    config = tiny_config(sample_data, tmp_path / "run", train={"num_workers": 2, "max_iter": 4, "ims_per_batch": 2})
    write_store(plan(config))
    result = train(config)
    assert result["a"]["iterations"] == 2  # Detectron2's rule: twice the batch, half the iterations
    assert result["a"]["num_images"] == 4  # both workers' shares of the validation rows
    assert Path(config.member_dir("a"), "model_final.pth").exists()


def test_a_loss_that_is_no_longer_finite_is_one_line(sample_data: dict[str, Any], tmp_path: Path) -> None:
    diverges = {"optimizer": "sgd", "base_lr": 1e12, "warmup_iters": 0, "max_iter": 6}
    config = tiny_config(sample_data, tmp_path / "run", train=diverges)
    write_store(plan(config))
    with pytest.raises(InputError, match=r"no longer finite at iteration .*: lower train.base_lr"):
        train(config)
    assert not Path(config.member_dir("a"), "model_final.pth").exists()


def test_too_few_rows_and_too_small_a_cluster_are_refused_before_anything_starts(
    sample_data: dict[str, Any], tmp_path: Path
) -> None:
    config = tiny_config(sample_data, tmp_path / "run", augment={"min_visible": 24}, train={"ims_per_batch": 64})
    write_store(plan(config))
    with pytest.raises(InputError, match="training rows have at least 24"):
        train(config)
    large = tiny_config(sample_data, tmp_path / "run", train={"num_workers": 50})
    with pytest.raises(InputError, match=r"the cluster has 4 CPUs .* lower train.num_workers"):
        runs_at_once(large)
    assert runs_at_once(tiny_config(sample_data, tmp_path / "run"))[0] == 4
