"""Test mixed precision, on CPUs."""

import copy

import pytest
import torch

from kp_ray.config.load import build_config
from kp_ray.errors import ConfigError
from kp_ray.keypoints import DACON24
from kp_ray.models.precision import Precision, resolve_precision, set_precision, set_tf32
from kp_ray.models.presets import build_cfg, build_model
from kp_ray.prediction.settings import check_precision


def test_on_cpus_auto_is_fp32_and_predictions_refuse_fp16() -> None:
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("fp16", "cuda") == "fp16"
    config = build_config({"predict": {"precision": "fp16"}})
    check_precision(config, has_gpu=True)
    with pytest.raises(ConfigError, match=r"^predict\.precision"):
        check_precision(config, has_gpu=False)


def test_fp32_allows_tf32_as_torch_does_and_determinism_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # restored after the test
    original_precision = torch.get_float32_matmul_precision()
    torch_defaults = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    settings = []
    try:
        cases: list[tuple[Precision, bool]] = [("fp32", False), ("bf16", False), ("fp16", False), ("bf16", True)]
        for precision, deterministic in cases:
            set_tf32(precision, deterministic=deterministic)
            settings.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
    finally:
        torch.set_float32_matmul_precision(original_precision)
    assert settings == [torch_defaults, ("high", True), ("high", True), ("highest", False)]


def test_a_copy_of_a_model_with_mixed_precision_runs_its_own_backbone() -> None:
    config = build_config({"model": {"preset": "r18"}})
    model = build_model(build_cfg(config, DACON24, "cpu"))
    set_precision(model, "cpu", "bf16")
    names, images = set(model.state_dict()), torch.zeros(1, 3, 64, 64)
    model_copy = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model_copy.parameters():
            parameter.zero_()
        assert all(not feature.any() for feature in model_copy.backbone(images).values())
        features = model.backbone(images + 1)
    assert any(feature.any() for feature in features.values())
    assert {feature.dtype for feature in features.values()} == {torch.float32}
    assert set(model_copy.state_dict()) == names
