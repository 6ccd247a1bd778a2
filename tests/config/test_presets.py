"""The presets of the configuration."""

import pytest

from kp_ray.config.load import load_config
from kp_ray.config.presets import CONFIG_PRESETS


def test_the_preset_dacon_has_the_settings_of_the_published_solution() -> None:
    config = load_config(None, ["preset=dacon"])
    assert (config.seed, config.split.seed, config.split.fraction) == (42, 42, 0)
    assert (config.model.preset, config.model.weights) == ("x101", "zoo")
    assert config.model.cfg == {
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 256,
        "DATALOADER.ASPECT_RATIO_GROUPING": True,
    }
    train = config.train
    assert (train.base_lr, train.max_iter, train.gamma, train.ims_per_batch) == (0.001, 10000, 0.8, 2)
    assert train.steps == (3000, 4000, 5000, 6000, 7000, 8000)
    assert (train.schedule, train.optimizer, train.eval_period) == ("multistep", "sgd", 5000)
    assert (train.warmup_iters, train.weight_decay, train.flip) == (1000, 0.0001, True)
    assert (train.use_gpu, train.deterministic, train.precision) == (True, False, "fp32")
    predict = config.predict
    assert (predict.person, predict.score_threshold, predict.fallback_threshold) == ("score", 0.7, 0.7)
    assert (predict.fusion, predict.missing, predict.gpus_per_actor) == ("mean", "fill", 1)
    assert predict.precision == "fp32"
    assert len(config.augment.recipes) == 18
    assert config.tune.num_trials == 0


@pytest.mark.parametrize("preset", CONFIG_PRESETS)
def test_every_preset_is_a_valid_config(preset: str) -> None:
    assert load_config(None, [f"preset={preset}"]).preset == preset
