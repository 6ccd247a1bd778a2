"""Ray Train over real workers on the tiny sample: what training computes, what it survives, what it leaves."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import simplejpeg
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from kp_ray.cluster.resources import runs_at_once
from kp_ray.config.load import build_config
from kp_ray.config.schema import Config, MemberConfig
from kp_ray.ensemble.temporal import fill_missing
from kp_ray.errors import KpRayError
from kp_ray.keypoints import CONTINUOUS_OFFSET, DACON24
from kp_ray.metrics import evaluate_keypoints
from kp_ray.models.decoding import detect_people
from kp_ray.models.inputs import to_dataset_dict
from kp_ray.models.presets import build_cfg, build_model
from kp_ray.models.weights import load_member
from kp_ray.storage import writer_lock
from kp_ray.store.plan import plan
from kp_ray.store.read import RowReader, iter_rows
from kp_ray.store.write import write_store
from kp_ray.training.dataloader import usable_rows
from kp_ray.training.loop import Worker
from kp_ray.training.optimizer import build_optimizer
from kp_ray.training.run import train
from tests.helpers.data import tiny_config

pytestmark = pytest.mark.usefixtures("ray_cluster")

PAIR = {"num_workers": 2, "ims_per_batch": 2, "max_iter": 16, "steps": [12], "eval_period": 8, "checkpoint_period": 4,
        "ema_decay": 0.9, "base_lr": 1e-4}  # fmt: skip
"""Two workers: by Detectron2's rule 8 iterations, a checkpoint every 2, an evaluation every 4."""
LOSSES = ("total_loss", "loss_cls", "loss_box_reg", "loss_keypoint", "loss_rpn_cls", "loss_rpn_loc")


@pytest.fixture(scope="module")
def store(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """One store for all runs of this file."""
    config = tiny_config(sample_data, tmp_path_factory.mktemp("stored"))
    write_store(plan(config))
    return Path(config.path("store"))


Make = Callable[..., Config]


@pytest.fixture(scope="module")
def make(sample_data: dict[str, Any], store: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a config with a run folder of its own over the store."""

    def made(**sections: Any) -> Config:
        run_dir = tmp_path_factory.mktemp("run")
        (run_dir / "store").symlink_to(store)
        return tiny_config(sample_data, run_dir, **sections)

    return made


@pytest.fixture(scope="module")
def pair(make: Make) -> tuple[Config, dict[str, Any]]:
    """One member trained by two workers without disturbance, and what `train` said."""
    config = make(train=PAIR)
    return config, train(config)["a"]


@pytest.fixture(scope="module")
def trained(pair: tuple[Config, dict[str, Any]]) -> Config:
    """The config of that run, for what does not depend on how many workers there were."""
    return pair[0]


def log_of(config: Config, member: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(config.member_dir(member), "metrics.json").read_text().splitlines()]


def weights_of(config: Config, member: str = "a", name: str = "model_final.pth") -> dict[str, torch.Tensor]:
    return dict(torch.load(Path(config.member_dir(member), name), weights_only=True)["model"])


def assert_same_curve(one: Config, other: Config) -> None:
    """Every iteration is logged once in both, with the same losses, LR and evaluations; the final weights are the same.

    On one machine the two are equal to the last bit; the tolerance is for another order of a sum in torch's kernels.
    """
    mine, its = log_of(one, "a"), log_of(other, "a")
    assert [line["iteration"] for line in mine] == [line["iteration"] for line in its] == list(range(len(its)))
    for line, wanted in zip(mine, its, strict=True):
        assert line.keys() == wanted.keys()
        for key in wanted.keys() - {"time", "data_time"}:
            value = wanted[key]
            assert line[key] == pytest.approx(value, rel=1e-5), (line["iteration"], key)
    for key, value in weights_of(other).items():
        torch.testing.assert_close(weights_of(one)[key], value, rtol=1e-5, atol=1e-6)


def test_a_member_is_a_folder_with_weights_config_and_log(trained: Config) -> None:
    folder = Path(trained.member_dir("a"))
    assert {"model_final.pth", "config.yaml", "metrics.json"} <= {path.name for path in folder.iterdir()}


def test_a_finished_member_is_skipped_and_other_settings_are_refused(trained: Config) -> None:
    assert train(trained) == {"a": {"skipped": True}}
    other = tiny_config(
        trained.data.model_dump(),
        Path(trained.run_dir),
        train={**PAIR, "base_lr": 0.5},
    )
    kept = Path(trained.path("config.yaml")).read_text()
    with pytest.raises(KpRayError, match="other settings"):
        train(other)
    assert Path(trained.path("config.yaml")).read_text() == kept == trained.to_yaml()
    for section in ({"augment": {"min_visible": 20}}, {"skeleton": {"sigmas": [0.05] * 24}}):
        with pytest.raises(KpRayError, match="other settings"):
            train(tiny_config(trained.data.model_dump(), Path(trained.run_dir), train=PAIR, **section))
    with pytest.raises(KpRayError, match="skeleton: "):
        train(tiny_config(trained.data.model_dump(), Path(trained.run_dir), train=PAIR, skeleton={"sigmas": [0.1]}))
    noted = Path(trained.member_dir("a"), "settings.json")
    whole = noted.read_bytes()
    noted.write_bytes(whole[:40])
    with pytest.raises(KpRayError, match=r"settings\.json: damaged .*: delete this file and go on"):
        train(trained)
    noted.write_bytes(whole)


def test_two_workers_train_one_model_with_scaled_steps(pair: tuple[Config, dict[str, Any]]) -> None:
    config, result = pair
    assert result["iterations"] == 8  # Detectron2's rule: twice the batch, half the iterations, twice the LR
    assert result["resumed_from"] == 0
    log = log_of(config, "a")
    assert [line["iteration"] for line in log] == list(range(8))
    assert all(np.isfinite(line["total_loss"]) for line in log)
    assert log[3]["lr"] == pytest.approx(2 * config.train.base_lr)
    assert [line["lr"] / log[3]["lr"] for line in log[5:]] == pytest.approx([1, config.train.gamma, config.train.gamma])
    assert [line["iteration"] for line in log if "val/rmse" in line] == [3, 7]


def test_an_evaluation_by_two_workers_is_that_of_the_saved_model_on_all_rows(
    pair: tuple[Config, dict[str, Any]],
) -> None:
    config, result = pair
    model, cfg = load_member(config.member_dir("a"), "cpu")
    rows = list(iter_rows(config.path("store"), split="val"))
    assert result["num_images"] == len(rows) > 2
    people = [detect_people(model, cfg, DACON24, [row])[0][:1] for row in rows]
    best = np.stack([one[0].keypoints if one else np.full((len(DACON24), 3), np.nan) for one in people])
    places = ([row[key] for row in rows] for key in ("scene", "camera", "frame"))
    filled, _ = fill_missing(
        best, np.array([bool(one) for one in people]), *places, mean_pose=np.zeros((len(DACON24), 2))
    )
    truth = np.stack([np.array(row["keypoints"], dtype=float).reshape(-1, 3) for row in rows])
    alone = evaluate_keypoints(filled, truth, DACON24).to_json()
    for name in ("rmse", "median_px", "p95_px"):
        assert result[name] == pytest.approx(alone[name], rel=1e-4)


def test_the_best_checkpoint_is_kept_beside_the_last(pair: tuple[Config, dict[str, Any]]) -> None:
    config, _ = pair
    evaluated = {line["iteration"] + 1: line["val/rmse"] for line in log_of(config, "a") if "val/rmse" in line}
    folder = Path(config.member_dir("a"))
    best = torch.load(folder / "model_best.pth", weights_only=True)
    assert evaluated[best["iteration"]] == min(evaluated.values())
    kept = {int(path.name.removeprefix("checkpoint_")) for path in folder.glob("checkpoint_0*")}
    assert kept == {2 * best["iteration"], 16}  # their names count the iterations of one worker


def test_tensorboard_shows_the_run(pair: tuple[Config, dict[str, Any]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, _ = pair
    board = EventAccumulator(str(Path(config.member_dir("a"), "tensorboard"))).Reload()
    assert [event.step for event in board.Scalars("total_loss")] == list(range(8))
    logged = [line["val/rmse"] for line in log_of(config, "a") if "val/rmse" in line]
    assert [event.value for event in board.Scalars("val/rmse")] == pytest.approx(logged)


def test_a_stopped_run_goes_on_from_its_checkpoint_by_name(trained: Config) -> None:
    weights = Path(trained.member_dir("a"), "model_final.pth")
    before = weights_of(trained)
    weights.unlink()
    assert train(trained)["a"]["iterations"] == 8
    assert [line["iteration"] for line in log_of(trained, "a")] == list(range(8))  # nothing ran twice
    assert all(torch.equal(value, before[name]) for name, value in weights_of(trained).items())


@pytest.mark.slow
def test_a_killed_worker_costs_at_most_a_checkpoint_period_and_changes_nothing(
    make: Make, pair: tuple[Config, dict[str, Any]]
) -> None:
    config = make(train=PAIR)
    outcome: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: outcome.update(train(config)))
    thread.start()
    seen = wait_for_iterations(config, 5)
    victims = [one for one in psutil.Process().children(recursive=True) if is_train_worker(one)]
    assert len(victims) == 2
    victims[1].kill()
    thread.join()
    assert outcome["a"]["iterations"] == 8
    assert seen - 2 <= outcome["a"]["resumed_from"] < 8
    assert outcome["a"]["resumed_from"] > 0
    assert_same_curve(config, pair[0])


def wait_for_iterations(config: Config, count: int) -> int:
    """Wait until a run has logged so many iterations; how many it has."""
    path = Path(config.member_dir("a"), "metrics.json")
    deadline = time.monotonic() + 300
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, "the run does not get that far"
        time.sleep(0.05)
    return len(path.read_text().splitlines())


def is_train_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in process.name() or any("RayTrainWorker" in part for part in process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.slow
def test_a_killed_driver_is_taken_up_by_the_same_command(make: Make) -> None:
    # Long enough that the workers, which outlive the driver by seconds, do not finish.
    settings = {"max_iter": 60, "eval_period": 20, "checkpoint_period": 4}
    alone, killed = make(train=settings), make(train=settings)
    for config in (alone, killed):
        Path(config.run_dir, "c.yaml").write_text(config.to_yaml())
    command = [str(Path(sys.executable).with_name("kp-ray")), "train", "c.yaml", "--json"]
    subprocess.run(command, cwd=alone.run_dir, check=True, capture_output=True, timeout=300)
    first = subprocess.Popen(command, cwd=killed.run_dir, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen = wait_for_iterations(killed, 5)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    again = subprocess.run(command, cwd=killed.run_dir, check=True, capture_output=True, text=True, timeout=300)
    result = json.loads(again.stdout.splitlines()[-1])["a"]
    assert result["iterations"] == 60
    assert seen - 4 <= result["resumed_from"] < 60
    assert f"from the checkpoint at {result['resumed_from']}" in again.stderr
    assert_same_curve(killed, alone)


@pytest.mark.slow
def test_an_elastic_run_goes_on_with_fewer_workers_when_a_node_is_lost(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    # Right after the loss Ray still counts the node, and asks for two workers once more. Its nodes inherit this.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    settings = {"max_iter": 48, "steps": [36], "eval_period": 0, "checkpoint_period": 4, "ims_per_batch": 1}
    config = make(train={**settings, "num_workers": {"min": 1, "max": 2}, "cpus_per_worker": 1.5})
    Path(config.run_dir, "c.yaml").write_text(config.to_yaml())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=2)  # a node holds one worker
        command = [str(Path(sys.executable).with_name("kp-ray")), "train", "c.yaml", "--json"]
        command += ["--set", f"cluster.address={cluster.address}"]
        run = subprocess.Popen(command, cwd=config.run_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for_iterations(config, 5)
        assert {line["workers"] for line in log_of(config, "a")} == {2}
        cluster.remove_node(node, allow_graceful=False)
        out, err = run.communicate(timeout=400)
    finally:
        cluster.shutdown()
    assert run.returncode == 0, err
    result = json.loads(out.splitlines()[-1])["a"]
    assert result["iterations"] == 48  # of one worker; of two they would have been 24
    assert 0 < result["resumed_from"] < 48
    log = log_of(config, "a")
    assert {line["workers"] for line in log} == {1}
    places = [line["iteration"] for line in log]
    assert places == sorted(places)
    assert places[-1] == 47
    base = config.train.base_lr  # as after the step at 36, whoever ran them
    assert log[-1]["lr"] == pytest.approx(base * config.train.gamma)


# Every proposal and every anchor counts, so that no random choice among them differs with the batch; every image
# gives the same number of proposals; no statistics.
ALL_COUNT = {
    "MODEL.RESNETS.NORM": "FrozenBN", "MODEL.FPN.NORM": "", "MODEL.RPN.NMS_THRESH": 1.0,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 5000, "MODEL.RPN.POSITIVE_FRACTION": 1.0, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64, "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": False,
}  # fmt: skip


def twenty_steps(loop: dict[str, Any]) -> None:
    """What each worker runs: 20 of the loop's steps. `out` gets the weights after 1, and every rank's at last."""
    worker = Worker(build_config(loop["config"]), MemberConfig.model_validate(loop["member"]))
    worker.restore(None)
    inputs = worker.inputs(ray.train.get_dataset_shard("train"), 0)
    with EventStorage(0):
        first = {}
        for iteration in range(20):
            worker.step(next(inputs), iteration)
            first = first or {name: value.clone() for name, value in worker.network.state_dict().items()}
    everyone = comm.all_gather({name: value.detach().clone() for name, value in worker.network.named_parameters()})
    if worker.rank == 0:
        torch.save({"first": first, "everyone": everyone}, loop["out"])


@pytest.mark.slow
def test_two_workers_make_the_update_of_one_with_their_batches_together_and_stay_equal(
    make: Make, tmp_path: Path
) -> None:
    settings = {"num_workers": 2, "ims_per_batch": 2, "optimizer": "sgd", "base_lr": 1e-3, "warmup_iters": 0}
    plain = make(train={**settings, "flip": False, "max_iter": 100, "steps": []})
    values = plain.to_dict()
    values["model"] |= {"cfg": {**plain.model.cfg, **ALL_COUNT}, "weights": str(tmp_path / "start.pth")}
    config, member = build_config(values), plain.train.members[0]
    cfg = build_cfg(config, DACON24, "cpu")
    torch.manual_seed(0)
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({"model": before}, tmp_path / "start.pth")
    rows = usable_rows(config, member).slice(0, 4)  # a step takes them all

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    out = tmp_path / "weights.pth"
    ray.train.torch.TorchTrainer(
        twenty_steps,
        train_loop_config={"config": values, "member": member.model_dump(mode="json"), "out": str(out)},
        datasets={"train": ray.data.from_arrow(rows)},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(name="steps", storage_path=str(tmp_path)),
    ).fit()

    cfg.SOLVER.BASE_LR *= 2
    reader = RowReader(["image", "width", "height", "keypoints", "bbox_xyxy"])
    rng = np.random.default_rng(0)
    inputs = [to_dataset_dict(reader.read(**place), cfg, DACON24, rng) for place in rows.to_pylist()]
    optimizer = build_optimizer(cfg, model, config.train)
    with EventStorage(0):
        sum(model.train()(inputs).values()).backward()
    optimizer.step()
    made = torch.load(out, weights_only=True)
    first = made["first"]
    for name, value in model.state_dict().items():
        wanted = value - before[name]
        # A bias that a softmax takes out has a gradient of rounding errors alone.
        tolerance = max(1e-9, 1e-3 * float(wanted.abs().max()))
        torch.testing.assert_close(first[name] - before[name], wanted, rtol=1e-3, atol=tolerance)
    assert max(float((first[name] - value).abs().max()) for name, value in before.items()) > 1e-5
    one, other = made["everyone"]
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], first[name]) for name in one)


@pytest.mark.slow
def test_options_of_detectron2_and_the_moving_average_take_effect(make: Make, trained: Config) -> None:
    start = Path(trained.member_dir("a"), "model_final.pth")
    limit = 1e-4
    options = {
        "SOLVER.CLIP_GRADIENTS.ENABLED": True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": limit, "MODEL.BACKBONE.FREEZE_AT": 2,
    }  # fmt: skip
    rates = {"optimizer": "sgd", "base_lr": 0.1, "weight_decay": 0, "warmup_iters": 0, "max_iter": 2, "steps": []}
    config = make(
        model={"cfg": {**trained.model.cfg, **options}, "weights": str(start)},
        train={**rates, "ema_decay": 0.5, "best_metric": "pck_0.1"},
    )
    result = train(config)["a"]
    assert result["not_in_weights"] == []
    before, after = torch.load(start, weights_only=True)["model"], weights_of(config)
    last = torch.load(Path(config.member_dir("a"), "checkpoint_0000002", "checkpoint.pth"), weights_only=True)
    moved = {}
    for name, value in last["model"].items():
        moved[name] = float((value - before[name]).norm()) if value.is_floating_point() else 0.0
    frozen = [name for name in moved if name.startswith(("backbone.bottom_up.stem", "backbone.bottom_up.res2"))]
    assert frozen
    assert all(moved[name] == 0 for name in frozen)
    for name in moved:
        if name.endswith("weight") and "norm" not in name and name not in frozen:
            assert 0 < moved[name] <= 0.1 * limit * (1 + 1.9) * 1.01, name  # two steps, momentum 0.9
    for name, value in after.items():
        assert torch.equal(value, last["average"][name])
    # Step 0: average = 0.1 before + 0.9 first; step 1: 2/11 of that + 9/11 of the last.
    name = "roi_heads.keypoint_head.score_lowres.weight"
    assert not torch.equal(after[name], last["model"][name])
    assert float((after[name] - last["model"][name]).norm()) < moved[name]
    assert Path(config.member_dir("a"), "model_best.pth").exists()


@pytest.mark.slow
def test_mlflow_holds_what_the_log_holds_in_one_run_also_after_a_restart(make: Make) -> None:
    mlflow = pytest.importorskip("mlflow")
    config = make(train={"mlflow": "local"})
    folder = Path(config.member_dir("a"))
    for _ in range(2):
        (folder / "model_final.pth").unlink(missing_ok=True)
        train(config)
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("kp_ray").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "a")
    for name in ("total_loss", "lr", "val/rmse"):
        told = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, name)]
        assert told == [(line["iteration"], pytest.approx(line[name])) for line in log_of(config, "a") if name in line]


@pytest.mark.slow
def test_mixed_precision_takes_effect(make: Make) -> None:
    logs = []
    for enabled in (False, True):
        config = make(train={"max_iter": 2}, model={"preset": "r18", "cfg": {"SOLVER.AMP.ENABLED": enabled}})
        train(config)
        logs.append(log_of(config, "a"))
    whole, mixed = (log[0]["total_loss"] for log in logs)
    assert mixed != whole
    assert mixed == pytest.approx(whole, rel=0.02)


def test_a_finished_member_says_the_same_in_plain_detectron2(trained: Config, store: Path) -> None:
    folder = trained.member_dir("a")
    cfg = get_cfg()
    cfg.merge_from_file(f"{folder}/config.yaml")
    cfg.MODEL.WEIGHTS = f"{folder}/model_final.pth"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0  # a few iterations make nobody sure
    plain = DefaultPredictor(cfg)
    model, ours = load_member(folder, "cpu")
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    for row in iter_rows(str(store), split="val"):
        picture = simplejpeg.decode_jpeg(row["image"], "BGR")
        wanted = plain(picture)["instances"]
        people = detect_people(model, ours, DACON24, [{**row, "image": picture}])[0]
        assert len(people) == len(wanted) > 0
        for i, (score, _, keypoints) in enumerate(people):
            assert score == pytest.approx(float(wanted.scores[i]), abs=1e-6)
            points = wanted.pred_keypoints[i].numpy() - np.array([CONTINUOUS_OFFSET, CONTINUOUS_OFFSET, 0])
            np.testing.assert_allclose(keypoints, points, atol=1e-3)


@pytest.mark.slow
def test_a_loss_that_is_no_longer_finite_is_one_line(make: Make) -> None:
    config = make(train={"optimizer": "sgd", "base_lr": 1e12, "warmup_iters": 0, "max_iter": 6})
    with pytest.raises(KpRayError, match=r"no longer finite at iteration .*: lower train.base_lr"):
        train(config)
    assert not Path(config.member_dir("a"), "model_final.pth").exists()


@pytest.mark.slow
def test_weights_of_another_skeleton_are_one_line_and_the_other_members_finish(
    make: Make, trained: Config, tmp_path: Path
) -> None:
    content = torch.load(Path(trained.member_dir("a"), "model_final.pth"), weights_only=True)
    content["keypoints"] = content["keypoints"][::-1]
    torch.save(content, tmp_path / "other.pth")
    members = [{"name": "a", "weights": str(tmp_path / "other.pth")}, {"name": "b"}]
    config = make(model={"cfg": trained.model.cfg}, train={"max_iter": 2, "members": members})
    with pytest.raises(KpRayError, match=r"member a: model.weights: .*other.pth: a model of other keypoints") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert Path(config.member_dir("b"), "model_final.pth").exists()


def test_a_second_driver_of_a_run_folder_is_refused(make: Make) -> None:
    config = make()
    with writer_lock(config.path("members")), pytest.raises(KpRayError, match="another process is writing here"):
        train(config)


def test_too_few_rows_and_too_small_a_cluster_are_refused_before_anything_starts(make: Make) -> None:
    config = make(augment={"min_visible": 24}, train={"ims_per_batch": 64})
    with pytest.raises(KpRayError, match="training rows have at least 24"):
        train(config)
    large = make(train={"num_workers": 50})
    with pytest.raises(KpRayError, match=r"the cluster has 4 CPUs .* lower train.num_workers"):
        runs_at_once(large)
    assert runs_at_once(make())[0] == 4
    assert runs_at_once(make(train={"num_workers": {"min": 1, "max": 8}}))[0] == 1
    with pytest.raises(KpRayError, match=r"model\.cfg\.SOLVER\.NO_SUCH"):
        train(make(model={"preset": "r18", "cfg": {"SOLVER.NO_SUCH": 1}}))
