"""Test mixed precision, on CPUs."""

import numpy as np
import pytest
import torch

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError
from kp_ray.images import decode
from kp_ray.keypoints import DACON24
from kp_ray.models.decoding import detect_people
from kp_ray.models.weights import load_member
from kp_ray.prediction.precision import resolve_precision, set_precision
from tests.helpers.linked_runs import first_image


def test_on_cpus_auto_is_fp32_and_mixed_precision_is_refused() -> None:
    assert resolve_precision(build_config({}), "cpu") == "fp32"
    assert resolve_precision(build_config({"predict": {"precision": "fp16"}}), "cuda") == "fp16"
    with pytest.raises(ConfigError, match=r"predict\.precision"):
        resolve_precision(build_config({"predict": {"precision": "fp16"}}), "cpu")


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
