"""Whole training runs: the finished member, and the inputs and settings that are refused."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import simplejpeg
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ClusterError, ConfigError, DataError, DivergedError, ModelError, RunStateError, StorageError
from kp_ray.fingerprint import digest
from kp_ray.keypoints import CONTINUOUS_OFFSET, DACON24
from kp_ray.models.weights import load_member
from kp_ray.stage import no_progress
from kp_ray.storage import writer_lock
from kp_ray.store.read import iter_rows
from kp_ray.training.fit import check_train_precision
from kp_ray.training.logs import LogEntry
from kp_ray.training.run import InputMonitor, train
from tests.helpers.clusters import list_leftovers
from tests.helpers.detections import detect_people
from tests.helpers.processes import set_options, start_kp_ray, wait_until
from tests.helpers.stores import damage_stored_image
from tests.helpers.training import TrainedMember, count_log_lines

MakeConfig = Callable[..., Config]


def test_a_member_is_a_folder_with_weights_config_and_log(trained_member: TrainedMember) -> None:
    folder = Path(trained_member.config.member_dir("a"))
    assert {"model_final.pth", "config.yaml", "metrics.json"} <= {path.name for path in folder.iterdir()}


def test_a_finished_member_is_skipped(trained_member: TrainedMember) -> None:
    assert train(trained_member.config).to_json() == {"a": {"skipped": True}}


def test_a_finished_member_detects_the_same_in_plain_detectron2(trained_member: TrainedMember) -> None:
    folder = trained_member.config.member_dir("a")
    cfg = get_cfg()
    cfg.merge_from_file(f"{folder}/config.yaml")
    cfg.MODEL.WEIGHTS = f"{folder}/model_final.pth"
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0  # after a few iterations all scores are low
    predictor = DefaultPredictor(cfg)
    model, member_cfg = load_member(folder, "cpu")
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    for row in iter_rows(trained_member.config.path("store"), split="val"):
        image = simplejpeg.decode_jpeg(row["image"], "BGRX")
        expected = predictor(image[..., :3])["instances"]
        (detections,) = detect_people(model, member_cfg, DACON24, [{**row, "image": image}])
        assert len(detections) == len(expected) > 0
        for i, detection in enumerate(detections):
            assert detection.score == pytest.approx(float(expected.scores[i]), abs=1e-6)
            points = expected.pred_keypoints[i].numpy() - np.array([CONTINUOUS_OFFSET, CONTINUOUS_OFFSET, 0])
            np.testing.assert_allclose(detection.keypoints, points, atol=1e-3)


@pytest.mark.parametrize("folder", ["members", "store"])
def test_training_is_refused_while_another_process_trains_or_augments(make_config: MakeConfig, folder: str) -> None:
    config = make_config()
    with writer_lock(config.path(folder)), pytest.raises(RunStateError, match=f"{folder}: another process is using"):
        train(config)


def test_too_few_rows_or_a_too_small_cluster_are_refused_before_a_member_begins(make_config: MakeConfig) -> None:
    few_rows_config = make_config(augment={"min_visible": 24}, train={"ims_per_batch": 64})
    with pytest.raises(DataError, match=r"^member a: .* at least 24 .* lower train\.ims_per_batch"):
        train(few_rows_config)
    many_workers_config = make_config(train={"num_workers": 20, "ims_per_batch": 1, "cpus_per_worker": 1})
    with pytest.raises(ClusterError, match="20"):
        train(many_workers_config)
    for config in (few_rows_config, many_workers_config):
        assert not list(Path(config.path("members")).glob("*/settings.json"))
        assert not Path(config.path("config.yaml")).exists()


@pytest.mark.slow
def test_weights_without_a_keypoint_of_the_labels_are_refused_and_the_other_members_are_trained(
    make_config: MakeConfig, trained_member: TrainedMember, tmp_path: Path
) -> None:
    content = torch.load(Path(trained_member.config.member_dir("a"), "model_final.pth"), weights_only=True)
    content["keypoints"] = [f"wing {number}" for number in range(24)]
    weights = tmp_path / "other.pth"
    torch.save(content, weights)
    members = [{"name": "a", "weights": str(weights)}, {"name": "b"}]
    config = make_config(model={"cfg": trained_member.config.model.cfg}, train={"max_iter": 2, "members": members})
    with pytest.raises(ModelError, match=rf"^member a: train\.members\[a\]\.weights: {weights}: ") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    assert Path(config.member_dir("b"), "model_final.pth").exists()


def damage_images(config: Config) -> None:
    """Replace the link to the store by a copy, and damage all images, because training reads rows at random."""
    store = Path(config.path("store"))
    target = store.resolve()
    store.unlink()
    shutil.copytree(target, store)
    for part in store.glob("*/*.parquet"):
        for row in range(pq.read_metadata(part).num_rows):
            damage_stored_image(part, row)


@pytest.mark.slow
def test_the_error_about_a_damaged_stored_image_names_the_part(make_config: MakeConfig) -> None:
    config = make_config(train={"max_failures": 0})
    damage_images(config)
    with pytest.raises(StorageError, match=r"^member a: .*\.parquet: damaged"):
        train(config)


def interrupt(name: str, done: int, total: int, note: str = "") -> None:
    """Raise KeyboardInterrupt, like Ctrl-C, when the first iterations are reported."""
    raise KeyboardInterrupt


def temp_folder(config: Config) -> Path:
    """Return the path of the temporary folder of member a on this node."""
    return Path(tempfile.gettempdir(), f"kp_ray-{os.getuid()}", f"member-{digest(config.member_dir('a'))}")


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["finished", "diverged", "failed", "interrupted", "killed driver"])
def test_a_run_leaves_nothing_in_its_cluster(make_config: MakeConfig, ending: str) -> None:
    error: type[BaseException] | None = None
    if ending == "finished":
        config = make_config(train={"max_iter": 1, "steps": []})
        train(config)
    elif ending == "killed driver":
        config = make_config(train={"max_iter": 1000})
        Path(config.run_dir, "c.yaml").write_text(config.to_yaml())
        address = set_options(f"cluster.address={ray.get_runtime_context().gcs_address}")
        process = start_kp_ray("train", "c.yaml", *address, cwd=config.run_dir)
        wait_until(lambda: count_log_lines(config) >= 2, process)
        assert temp_folder(config).exists()
        process.kill()
        process.wait()
    elif ending == "diverged":
        error = DivergedError
        config = make_config(train={"optimizer": "sgd", "base_lr": 1e12, "warmup_iters": 0, "max_iter": 6})
    elif ending == "failed":
        error = StorageError
        config = make_config(train={"max_failures": 0})
        damage_images(config)
    else:
        error = KeyboardInterrupt
        config = make_config(train={"max_iter": 1000})
    if error is not None:
        with pytest.raises(error):
            train(config, interrupt if ending == "interrupted" else no_progress)
    wait_until(lambda: not list_leftovers(), timeout_s=60, poll_s=0.5)
    wait_until(lambda: not temp_folder(config).exists(), timeout_s=60, poll_s=0.5)


def test_a_long_wait_for_images_is_reported_once_per_member(caplog: pytest.LogCaptureFixture) -> None:
    monitor = InputMonitor(build_config({"train": {"threads_per_feed": 3}}))
    wait_shares = {"a": [0.9, 0.1, 0.3, 0.5, 0.6], "b": [0.1, 0.9, 0.2, 0.9], "c": [0.4, 0.4]}
    for name, shares in wait_shares.items():
        for number, share in enumerate(shares):
            for _ in range(2):  # the log is read more often than it grows
                monitor.check(name, LogEntry(number, {"data_time": 2 * share, "time": 2.0}))
    monitor.check("d", LogEntry(0, {}))
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(":")[0] for message in messages] == ["member a", "member c"]
    assert "wait 50% of their time for images: raise train.cpus_per_worker (got 1)" in messages[0]
    assert "train.threads_per_feed" in messages[0]


def test_fp16_without_gpus_is_refused() -> None:
    config = build_config({"train": {"precision": "fp16"}})
    check_train_precision(config, use_gpu=True)
    with pytest.raises(ConfigError, match=r"^train\.precision: .* set it to auto"):
        check_train_precision(config, use_gpu=False)
    with pytest.raises(ConfigError, match=r"train\.precision: fp16 needs GPUs, and use_gpu is false"):
        build_config({"train": {"precision": "fp16", "use_gpu": False}})
