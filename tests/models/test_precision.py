"""Test mixed precision, on CPUs."""

import copy

import numpy as np
import pytest
import torch

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError
from kp_ray.images import decode
from kp_ray.keypoints import DACON24
from kp_ray.models.decoding import detect_people
from kp_ray.models.precision import resolve_precision, set_precision, set_tf32
from kp_ray.models.presets import build_cfg, build_model
from kp_ray.models.weights import load_member
from kp_ray.prediction.settings import check_precision
from tests.helpers.members import first_image


def test_on_cpus_auto_is_fp32_and_mixed_precision_is_refused() -> None:
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("fp16", "cuda") == "fp16"
    config = build_config({"predict": {"precision": "fp16"}})
    check_precision(config, has_gpu=True)
    with pytest.raises(ConfigError, match=r"^predict\.precision"):
        check_precision(config, has_gpu=False)


def test_tf32_is_allowed_in_products_and_convolutions_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # restored after the test
    before = torch.get_float32_matmul_precision()
    try:
        for enabled, precision in ((True, "high"), (False, "highest")):
            set_tf32(enabled)
            assert torch.get_float32_matmul_precision() == precision
            assert torch.backends.cudnn.allow_tf32 == enabled
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_copy_of_a_model_with_mixed_precision_runs_its_own_backbone() -> None:
    config = build_config({"model": {"preset": "r18"}})
    model = build_model(build_cfg(config, DACON24, "cpu"))
    set_precision(model, "cpu", "bf16")
    names, images = set(model.state_dict()), torch.zeros(1, 3, 64, 64)
    average = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.zero_()
        assert all(not feature.any() for feature in average.backbone(images).values())
        features = model.backbone(images + 1)
    assert any(feature.any() for feature in features.values())
    assert {feature.dtype for feature in features.values()} == {torch.float32}
    assert set(average.state_dict()) == names


def test_mixed_precision_does_not_round_coordinates(with_members: Config) -> None:
    """In bf16, coordinates above 256 px would be even numbers."""
    image = np.ascontiguousarray(decode(first_image(with_members).read_bytes())[0][..., :3])
    row = {"image": image, "width": 320, "height": 180}
    model, cfg = load_member(with_members.member_dir("a"), "cpu")
    (plain,) = detect_people(model, cfg, DACON24, [row])
    set_precision(model, "cpu", "bf16")
    dtypes: list[torch.dtype] = []
    model.backbone.bottom_up.stem.conv1.register_forward_hook(lambda *hook: dtypes.append(hook[2].dtype))
    (mixed,) = detect_people(model, cfg, DACON24, [row])
    assert dtypes == [torch.bfloat16]
    assert mixed
    assert mixed[0].score == pytest.approx(plain[0].score, abs=0.05)
    fractions = np.concatenate([person.bbox_xyxy for person in mixed]) % 0.25
    assert (fractions > 1e-3).any()
