"""The training loop: scaled steps, one update, the options of Detectron2, the moving average, a diverged loss."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.train.torch
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.config.training import MemberConfig
from kp_ray.errors import DivergedError
from kp_ray.keypoints import DACON24
from kp_ray.models.inputs import to_dataset_dict
from kp_ray.models.presets import build_cfg, build_model
from kp_ray.store.read import RowReader
from kp_ray.training.checkpoint import create_state, restore_state
from kp_ray.training.fit import release_controller
from kp_ray.training.loop import iter_worker_batches, train_step
from kp_ray.training.losses import LOSSES, LossModule, average_losses
from kp_ray.training.optimizer import build_optimizer
from kp_ray.training.rows import usable_rows
from kp_ray.training.run import train
from kp_ray.training.worker import create_worker
from tests.helpers.training import TrainedMember, read_log_lines, read_weights

MakeConfig = Callable[..., Config]

DETERMINISTIC_NET = {
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.FPN.NORM": "",
    "MODEL.RPN.NMS_THRESH": 1.0,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 5000,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": False,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
}
"""Options that make the loss independent of how images are divided into batches: all proposals and anchors count, so
none are chosen at random, every image has the same number of proposals, and there are no batch statistics. Clipped
gradients keep the random weights finite."""


def test_two_workers_train_one_model_with_scaled_steps(trained_member: TrainedMember) -> None:
    train_section = trained_member.config.train
    assert trained_member.result.iterations == 8  # Detectron2's rule: twice the batch and LR, half the iterations
    assert trained_member.result.resumed_from == 0
    lines = read_log_lines(trained_member.config)
    assert [line["iteration"] for line in lines] == list(range(8))
    assert all(np.isfinite(line["total_loss"]) for line in lines)
    assert lines[3]["lr"] == pytest.approx(2 * train_section.base_lr)  # the warm-up has ended
    # Iterations 5 to 7: two workers reduce the LR at iteration 6, half of the config's step at 12.
    relative_lr = [line["lr"] / lines[3]["lr"] for line in lines[5:]]
    assert relative_lr == pytest.approx([1, train_section.gamma, train_section.gamma])
    assert [line["iteration"] for line in lines if "val/rmse" in line] == [3, 7]


def train_twenty_steps(loop_config: Mapping[str, Any]) -> None:
    """Run 20 steps on a worker; save the weights after the first step, and every rank's weights after the last."""
    member = MemberConfig.model_validate(loop_config["member"])
    temp_dir = Path(loop_config["weights_path"]).parent
    worker = create_worker(build_config(loop_config["config"]), member, "", temp_dir, str)
    state = create_state(worker)
    restore_state(state, worker, None)
    batches = iter_worker_batches(worker, 0)
    first_weights: dict[str, torch.Tensor] = {}
    with EventStorage(0):
        for iteration in range(20):
            train_step(worker, state, next(batches), iteration)
            first_weights = first_weights or {name: value.clone() for name, value in state.model.state_dict().items()}
    last_weights = comm.all_gather({name: value.detach().clone() for name, value in state.model.named_parameters()})
    if worker.is_first:
        torch.save({"first_weights": first_weights, "last_weights": last_weights}, loop_config["weights_path"])


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_workers_update_like_one_worker_with_both_batches_and_stay_equal(
    make_config: MakeConfig, tmp_path: Path, accumulate: int
) -> None:
    settings = {"num_workers": 2, "ims_per_batch": 2, "optimizer": "sgd", "base_lr": 1e-3, "warmup_iters": 0}
    base_config = make_config(train={**settings, "flip": False, "max_iter": 100, "steps": [], "accumulate": accumulate})
    values = base_config.to_dict()
    values["model"] |= {"cfg": {**base_config.model.cfg, **DETERMINISTIC_NET}, "weights": str(tmp_path / "start.pth")}
    config, member = build_config(values), base_config.train.members[0]
    cfg = build_cfg(config, DACON24, "cpu")
    torch.manual_seed(0)
    model = build_model(cfg)
    start_weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({"model": start_weights}, tmp_path / "start.pth")
    rows = usable_rows(config, member).slice(0, 4)  # the rows of one step

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    weights_path = tmp_path / "weights.pth"
    trainer = ray.train.torch.TorchTrainer(
        train_twenty_steps,
        train_loop_config={
            "config": values,
            "member": member.model_dump(mode="json"),
            "weights_path": str(weights_path),
        },
        datasets={"train": ray.data.from_arrow(rows)},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(name="steps", storage_path=str(tmp_path)),
    )
    with release_controller():
        trainer.fit()

    cfg.SOLVER.BASE_LR *= 2
    reader = RowReader(["image", "width", "height", "keypoints", "bbox_xyxy"])
    rng = np.random.default_rng(0)
    references = [(reference["path"], reference["row"]) for reference in rows.to_pylist()]
    batch = [to_dataset_dict(reader.read(*reference), cfg, DACON24, rng) for reference in references]
    optimizer = build_optimizer(cfg, model, config.train)
    with EventStorage(0):
        sum(model.train()(batch).values()).backward()
    optimizer.step()
    saved = torch.load(weights_path, weights_only=True)
    first_weights = saved["first_weights"]
    for name, value in model.state_dict().items():
        expected = value - start_weights[name]
        # The gradient of a bias before a softmax is a rounding error: allow an absolute difference.
        tolerance = max(1e-9, 1e-3 * float(expected.abs().max()))
        rounding = torch.finfo(torch.float32).eps * value.abs()  # of both weights to 32 bits
        difference = (first_weights[name] - start_weights[name] - expected).abs()
        assert (difference <= tolerance + 1e-3 * expected.abs() + rounding).all(), name
    assert max(float((first_weights[name] - value).abs().max()) for name, value in start_weights.items()) > 1e-5
    rank_0, rank_1 = saved["last_weights"]
    assert all(value.isfinite().all() for value in rank_0.values())
    assert all(torch.equal(rank_0[name], rank_1[name]) for name in rank_0)
    assert any(not torch.equal(rank_0[name], first_weights[name]) for name in rank_0)


@pytest.mark.slow
def test_options_of_detectron2_and_the_moving_average_take_effect(
    make_config: MakeConfig, trained_member: TrainedMember
) -> None:
    start_path = Path(trained_member.config.member_dir("a"), "model_final.pth")
    model_cfg, clip_norm = trained_member.config.model.cfg, 1e-4
    options = {
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": clip_norm,
        "MODEL.BACKBONE.FREEZE_AT": 2,
    }
    solver = {"optimizer": "sgd", "base_lr": 0.1, "weight_decay": 0, "warmup_iters": 0, "max_iter": 2, "steps": []}
    config = make_config(
        model={"cfg": {**model_cfg, **options}, "weights": str(start_path)},
        train={**solver, "ema_decay": 0.5, "best_metric": "pck_0.1"},
    )
    (member,) = train(config).members
    assert member.result is not None
    assert member.result.random_tensors == ()
    start_weights, final_weights = torch.load(start_path, weights_only=True)["model"], read_weights(config)
    last_checkpoint = torch.load(
        Path(config.member_dir("a"), "checkpoint_0000002", "checkpoint.pth"), weights_only=True
    )
    changes = {
        name: float((value - start_weights[name]).norm()) if value.is_floating_point() else 0.0
        for name, value in last_checkpoint["model"].items()
    }
    frozen = [name for name in changes if name.startswith(("backbone.bottom_up.stem", "backbone.bottom_up.res2"))]
    assert frozen
    assert all(changes[name] == 0 for name in frozen)
    for name in changes:
        if name.endswith("weight") and "norm" not in name and name not in frozen:
            assert 0 < changes[name] <= 0.1 * clip_norm * (1 + 1.9) * 1.01, name  # two steps, momentum 0.9
    for name, value in final_weights.items():
        assert torch.equal(value, last_checkpoint["average"][name])
    # The average lies between the weights before the run and the last weights.
    name = "roi_heads.keypoint_head.score_lowres.weight"
    assert not torch.equal(final_weights[name], last_checkpoint["model"][name])
    assert float((final_weights[name] - last_checkpoint["model"][name]).norm()) < changes[name]
    assert Path(config.member_dir("a"), "model_best.pth").exists()


@pytest.mark.slow
def test_the_number_of_threads_that_read_images_does_not_change_the_weights(make_config: MakeConfig) -> None:
    weights = []
    for num_threads in (1, 4):
        config = make_config(train={"threads_per_feed": num_threads})
        train(config)
        weights.append(read_weights(config))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.slow
def test_mixed_precision_takes_effect(make_config: MakeConfig) -> None:
    losses = []
    for precision in ("auto", "bf16"):  # auto is fp32 on CPUs
        config = make_config(train={"max_iter": 2, "precision": precision})
        train(config)
        losses.append(read_log_lines(config)[0]["total_loss"])
    full_loss, mixed_loss = losses
    assert mixed_loss != full_loss
    assert mixed_loss == pytest.approx(full_loss, rel=0.02)


def test_a_diverged_model_has_nan_losses_and_gradients() -> None:
    class Diverged(torch.nn.Linear):
        def forward(self, batch: Any) -> dict[str, torch.Tensor]:
            raise FloatingPointError

    model = Diverged(2, 2)
    model.bias.requires_grad_(False)
    losses = LossModule(model)([])
    assert losses.shape == (len(LOSSES),)
    losses.sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.isnan().all()
    assert all(np.isnan(value) for value in average_losses([losses.detach()], 1)[0].values())


@pytest.mark.slow
def test_a_loss_that_is_no_longer_finite_ends_the_training(make_config: MakeConfig) -> None:
    config = make_config(train={"optimizer": "sgd", "base_lr": 1e12, "warmup_iters": 0, "max_iter": 6})
    with pytest.raises(DivergedError, match=r"^member a: .* at iteration \d+: lower train\.base_lr"):
        train(config)
    assert not Path(config.member_dir("a"), "model_final.pth").exists()
