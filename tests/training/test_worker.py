"""Numerical options of torch in a training worker."""

import pytest
import torch

from kp_ray.config.load import build_config
from kp_ray.keypoints import DACON24
from kp_ray.models.presets import build_cfg
from kp_ray.training.worker import set_torch_options


@pytest.mark.parametrize(("benchmark", "deterministic"), [(True, False), (False, True), (False, False)])
def test_cudnn_is_set_as_configured(monkeypatch: pytest.MonkeyPatch, benchmark: bool, deterministic: bool) -> None:
    for name in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))  # restored after the test
    config = build_config({"model": {"cfg": {"CUDNN_BENCHMARK": benchmark}}, "train": {"deterministic": deterministic}})
    set_torch_options(build_cfg(config, DACON24, "cpu"), deterministic=config.train.deterministic)
    assert torch.backends.cudnn.benchmark == benchmark
    assert torch.backends.cudnn.deterministic == deterministic


def test_an_option_of_newer_detectron2_sets_the_precision_of_matrix_products() -> None:
    cfg = build_cfg(build_config({}), DACON24, "cpu")
    precision_before = torch.get_float32_matmul_precision()
    set_torch_options(cfg, deterministic=False)
    assert torch.get_float32_matmul_precision() == precision_before
    cfg.FLOAT32_PRECISION = "high"
    try:
        set_torch_options(cfg, deterministic=False)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision_before)
