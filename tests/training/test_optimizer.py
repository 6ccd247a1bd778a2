"""The exponential moving average of weights."""

import pytest
import torch

from kp_ray.training.optimizer import update_ema


def test_the_average_follows_the_model_with_a_decay_that_grows() -> None:
    ema, model = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    model.load_state_dict({name: torch.full_like(value, 11) for name, value in model.state_dict().items()})
    ema.load_state_dict({name: torch.full_like(value, 1) for name, value in model.state_dict().items()})
    update_ema(ema, model, 0.999, 0)
    assert ema.weight.item() == pytest.approx(10)  # decay 0.1
    assert ema.running_var.item() == pytest.approx(10)  # type: ignore[union-attr]
    assert ema.num_batches_tracked.item() == 11  # type: ignore[union-attr]
    update_ema(ema, model, 0.5, 1000)
    assert ema.weight.item() == pytest.approx(10.5)  # decay 0.5
