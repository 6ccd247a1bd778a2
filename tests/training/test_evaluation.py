"""Training workers divide the validation rows among themselves to evaluate a model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kp_ray.config.schema import Config
from kp_ray.ensemble.temporal import fill_missing
from kp_ray.errors import DivergedError
from kp_ray.keypoints import DACON24
from kp_ray.metrics import evaluate_keypoints
from kp_ray.models.presets import build_cfg, build_model
from kp_ray.models.weights import load_member
from kp_ray.store.read import RowReader, iter_rows, list_rows
from kp_ray.training import evaluation
from kp_ray.training.worker import Worker
from tests.helpers.data import tiny_config
from tests.helpers.detections import detect_people
from tests.helpers.stores import write_small_store
from tests.helpers.training import TrainedMember


def make_worker(config: Config, rank: int = 0, world_size: int = 1) -> Worker:
    """Make a worker on a CPU that reads the config's store and writes nothing."""
    return Worker(
        config=config,
        member=config.train.members[0],
        folder="",
        skeleton=DACON24,
        cfg=build_cfg(config, DACON24, "cpu"),
        rank=rank,
        world_size=world_size,
        local_rank=rank,
        device=torch.device("cpu"),
        precision="fp32",
        temp_dir=Path(config.run_dir),
        locate_part=str,
    )


def test_heat_maps_that_overflow_end_an_evaluation_as_divergence(tmp_path: Path) -> None:
    write_small_store(tmp_path / "store")
    config = tiny_config({}, tmp_path)
    worker = make_worker(config)
    torch.manual_seed(0)
    model = build_model(worker.cfg).eval()
    with torch.no_grad():
        for parameter in model.roi_heads.keypoint_head.parameters():
            parameter.mul_(1e12)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    with pytest.raises(DivergedError, match=r"^heat maps are no longer finite: train with a lower train\.base_lr$"):
        evaluation.evaluate(model, worker)


def test_workers_read_disjoint_rows_and_detect_the_same_as_one_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_small_store(tmp_path / "store")
    config = tiny_config({}, tmp_path, train={"threads_per_feed": 2})
    cfg = build_cfg(config, DACON24, "cpu")
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 2)
    references = list_rows(config.path("store"), split="val") * 3
    monkeypatch.setattr(evaluation, "list_rows", lambda store, split, fold: references)
    reads: list[tuple[str, int]] = []
    original_read = RowReader.read

    def record_read(reader: RowReader, path: str, row: int) -> object:
        reads.append((path, row))
        return original_read(reader, path, row)

    monkeypatch.setattr(RowReader, "read", record_read)

    def evaluate_shards(world_size: int) -> list[tuple[str, str]]:
        reads.clear()
        rows = []
        for rank in range(world_size):
            shard = evaluation._evaluate_shard(model, make_worker(config, rank, world_size))
            assert isinstance(shard, list)
            rows += shard
        assert sorted(reads) == sorted(references)  # every row once
        return [(row.source, str(row.detection and [array.tobytes() for array in row.detection[1:]])) for row in rows]

    expected = evaluate_shards(1)
    assert len(expected) == len(references) > 4
    assert all(detection != "None" for _, detection in expected)
    assert evaluate_shards(3) == expected


def test_two_workers_evaluate_the_saved_model_on_all_validation_rows(trained_member: TrainedMember) -> None:
    config, metrics = trained_member.config, trained_member.result.metrics
    model, cfg = load_member(config.member_dir("a"), "cpu")
    rows = list(iter_rows(config.path("store"), split="val"))
    assert metrics["num_images"] == len(rows) > 2
    detections_by_row = [detect_people(model, cfg, DACON24, [row], config.predict.decode)[0] for row in rows]
    nobody = np.full((len(DACON24), 3), np.nan)
    filled, _ = fill_missing(
        np.stack([detections[0].keypoints if detections else nobody for detections in detections_by_row]),
        np.array([bool(detections) for detections in detections_by_row]),
        [row["scene"] for row in rows],
        [row["camera"] for row in rows],
        [row["frame"] for row in rows],
        mean_pose=np.zeros((len(DACON24), 2)),
    )
    truth = np.stack([np.array(row["keypoints"], dtype=float).reshape(-1, 3) for row in rows])
    expected = evaluate_keypoints(filled, truth, DACON24)
    assert metrics["rmse"] == pytest.approx(expected.rmse, rel=1e-4)
    assert metrics["median_px"] == pytest.approx(expected.median_px, rel=1e-4)
    assert metrics["p95_px"] == pytest.approx(expected.p95_px, rel=1e-4)
