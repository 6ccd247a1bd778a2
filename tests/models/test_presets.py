"""The Detectron2 config of a run and its scaling with the number of workers; the networks of the presets."""

import resource
import time

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from kp_ray.config.load import build_config
from kp_ray.keypoints import DACON24
from kp_ray.models.inputs import to_dataset_dict
from kp_ray.models.presets import build_cfg, build_model, check_network, scale_cfg
from tests.helpers.detections import detect_people
from tests.helpers.rows import random_row


def test_workers_scale_lr_steps_and_iterations_by_detectron2s_rule() -> None:
    config = build_config({"preset": "dacon"})
    cfg_1 = build_cfg(config, DACON24, "cpu")
    cfg_4 = scale_cfg(cfg_1, 4)
    assert (cfg_1.SOLVER.BASE_LR, cfg_1.SOLVER.IMS_PER_BATCH, cfg_1.SOLVER.MAX_ITER) == (0.001, 2, 10000)
    assert (cfg_4.SOLVER.BASE_LR, cfg_4.SOLVER.IMS_PER_BATCH, cfg_4.SOLVER.MAX_ITER) == (0.004, 8, 2500)
    assert cfg_4.SOLVER.STEPS == (750, 1000, 1250, 1500, 1750, 2000)
    assert [cfg_4.SOLVER.WARMUP_ITERS, cfg_4.SOLVER.CHECKPOINT_PERIOD, cfg_4.TEST.EVAL_PERIOD] == [250, 1000, 1250]
    assert cfg_1.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == 256
    assert cfg_1.MODEL.RESNETS.NUM_GROUPS == 32
    assert cfg_1.MODEL.RESNETS.WIDTH_PER_GROUP == 8


@pytest.mark.parametrize(("eval_period", "scaled_period"), [(0, 0), (1, 1), (40, 1)])
def test_more_workers_than_iterations_still_train_and_evaluate(eval_period: int, scaled_period: int) -> None:
    train = {"max_iter": 20, "checkpoint_period": 1, "steps": [10, 15], "eval_period": eval_period}
    cfg = scale_cfg(build_cfg(build_config({"model": {"preset": "r18"}, "train": train}), DACON24, "cpu"), 64)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.STEPS) == (1, 1, ())
    assert scaled_period == cfg.TEST.EVAL_PERIOD


@pytest.mark.slow
def test_the_x101_model_trains_a_step_and_predicts_at_full_size() -> None:
    """X-101-32x8d-FPN with 24 keypoints on the CPU: one update on two images, one prediction."""
    config = build_config({"preset": "dacon"})
    cfg = build_cfg(config, DACON24, "cpu")
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.SOLVER.BASE_LR)
    initial_weight = model.roi_heads.keypoint_head.score_lowres.weight.detach().clone()
    start_s = time.monotonic()
    rng = np.random.default_rng(0)
    rows = [random_row(1920, 1080, seed) for seed in (0, 1)]
    model.train()
    with EventStorage(0):
        losses = model([to_dataset_dict(row, cfg, DACON24, rng) for row in rows])
        sum(losses.values()).backward()
        optimizer.step()
    step_s = time.monotonic() - start_s
    assert all(torch.isfinite(value) for value in losses.values())
    assert not torch.equal(initial_weight, model.roi_heads.keypoint_head.score_lowres.weight)
    start_s = time.monotonic()
    assert len(detect_people(model.eval(), cfg, DACON24, rows[:1])) == 1
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    parameters = sum(value.numel() for value in model.parameters()) / 1e6
    print(
        f"\nX-101: {parameters:.0f} M parameters, step {step_s:.0f} s, prediction {time.monotonic() - start_s:.0f} s, "
        f"peak {peak_gib:.1f} GiB"
    )


def test_the_preset_best_builds_a_network_with_heat_maps_of_112_by_112_bins() -> None:
    cfg = build_cfg(build_config({"preset": "best"}), DACON24, "cpu")
    check_network(cfg)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        head = build_model(cfg).roi_heads.keypoint_head
        side = cfg.MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION
        assert head.layers(torch.zeros(1, 256, side, side)).shape == (1, 24, 112, 112)
