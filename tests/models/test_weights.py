"""Saved members, and starting weights from files and URLs; no test reaches the model zoo's host."""

import functools
import http.server
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.train
import simplejpeg
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

from kp_ray.errors import ModelError, StorageError
from kp_ray.keypoints import DACON24, Skeleton
from kp_ray.member_files import is_trained
from kp_ray.models.keypoint_head import COCO_NAMES, LAST_LAYER
from kp_ray.models.presets import build_model
from kp_ray.models.weights import load_member, load_weights, read_keypoint_names, save_model
from kp_ray.prediction.task import PredictionTask
from kp_ray.training.checkpoint import CHECKPOINT_NAME, _read_checkpoint
from tests.helpers.data import tiny_config
from tests.helpers.rows import random_row
from tests.helpers.stores import write_small_store


@pytest.fixture(scope="module")
def model(cfg: Any) -> torch.nn.Module:
    """Build an R-18; tests overwrite its weights."""
    return build_model(cfg)


def load_starting_weights(model: torch.nn.Module, weights: Path | str, skeleton: Skeleton = DACON24) -> list[str]:
    """Load weights into an R-18; return the names of the tensors that stay random."""
    return list(load_weights(model, str(weights), preset="r18", skeleton=skeleton).random_tensors)


def test_a_saved_member_loads_again_and_opens_in_plain_detectron2(cfg: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    assert not is_trained(str(tmp_path))
    save_model(model, cfg, str(tmp_path), DACON24)
    assert is_trained(str(tmp_path))
    loaded_model, _ = load_member(str(tmp_path), "cpu", DACON24.names)
    pairs = zip(model.state_dict().values(), loaded_model.state_dict().values(), strict=True)
    assert all(torch.equal(value, loaded_value) for value, loaded_value in pairs)
    detectron2_cfg = get_cfg()
    detectron2_cfg.merge_from_file(str(tmp_path / "config.yaml"))
    detectron2_cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    detectron2_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    image = simplejpeg.decode_jpeg(random_row()["image"], "BGR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = DefaultPredictor(detectron2_cfg)(image)["instances"]
    assert output.pred_keypoints.shape[1:] == (24, 3)


def test_a_member_that_predicts_other_keypoints_is_refused(model: torch.nn.Module, cfg: Any, tmp_path: Path) -> None:
    save_model(model, cfg, str(tmp_path), DACON24)
    with pytest.raises(ModelError, match=f"^{tmp_path}: predicts other keypoints"):
        load_member(str(tmp_path), "cpu", DACON24.names[::-1])


@pytest.mark.parametrize("name", ["config.yaml", "model_final.pth"])
def test_the_error_about_a_missing_or_damaged_file_of_a_member_names_the_file(
    model: torch.nn.Module, cfg: Any, tmp_path: Path, name: str
) -> None:
    save_model(model, cfg, str(tmp_path), DACON24)
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ModelError, match=rf"^{path}: there is no such file.*: run train"):
        load_member(str(tmp_path), "cpu")
    path.write_bytes(content[: len(content) // 2] + b"{")
    with pytest.raises(ModelError, match=rf"^{path}: damaged"):
        load_member(str(tmp_path), "cpu")


@pytest.mark.parametrize(
    "content",
    [[1, 2], {"weights": 1}, {"model": [1, 2]}, {"model": {}, "keypoints": 3}, {"model": {}, "keypoints": []}],
)
def test_a_weights_file_of_another_program_is_refused(
    model: torch.nn.Module, cfg: Any, tmp_path: Path, content: Any
) -> None:
    save_model(model, cfg, str(tmp_path), DACON24)
    torch.save(content, tmp_path / "model_final.pth")
    with pytest.raises(ModelError, match=rf"^{tmp_path}/model_final\.pth: damaged"):
        load_member(str(tmp_path), "cpu")


@pytest.mark.parametrize("line", ["FOO: 1", "MODEL: {META_ARCHITECTURE: Other}", "MODEL: {RESNETS: {DEPTH: 7}}"])
def test_a_config_that_no_member_can_have_is_refused_and_the_weights_are_kept(
    model: torch.nn.Module, cfg: Any, tmp_path: Path, line: str
) -> None:
    save_model(model, cfg, str(tmp_path), DACON24)
    (tmp_path / "config.yaml").write_text(line)
    with pytest.raises(
        ModelError, match=rf"^{tmp_path}/config\.yaml: damaged \(.*\): restore it, or delete {tmp_path}"
    ):
        load_member(str(tmp_path), "cpu")


def test_a_member_that_does_not_fit_the_memory_or_the_gpu_is_not_called_damaged(
    model: torch.nn.Module, cfg: Any, tmp_path: Path
) -> None:
    save_model(model, cfg, str(tmp_path), DACON24)
    with pytest.raises((RuntimeError, AssertionError), match=r"CUDA|NVIDIA"):
        load_member(str(tmp_path), "cuda:99")
    large_cfg = cfg.clone()
    large_cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 10**13
    (tmp_path / "config.yaml").write_text(large_cfg.dump())
    with pytest.raises(ModelError, match=rf"^{tmp_path}/config\.yaml: there is not enough memory .*: free memory, or"):
        load_member(str(tmp_path), "cpu")


def test_a_member_whose_weights_do_not_fit_its_config_is_refused(
    model: torch.nn.Module, cfg: Any, tmp_path: Path
) -> None:
    other_cfg = cfg.clone()
    other_cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    save_model(model, other_cfg, str(tmp_path), DACON24)
    with pytest.raises(ModelError, match=r"model_final\.pth: does not fit the config\.yaml"):
        load_member(str(tmp_path), "cpu")


def test_weights_come_from_a_pth_file_and_from_a_zoo_pickle(model: torch.nn.Module, tmp_path: Path) -> None:
    state = {name: value + 1 for name, value in model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "w.pth")
    arrays = {name: value.numpy() for name, value in state.items()}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, 2))
    for name in ("w.pth", "w.pkl"):
        for value in model.state_dict().values():
            value.zero_()
        assert load_starting_weights(model, tmp_path / name) == []
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_weights_come_from_a_url(model: torch.nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    state = {name: value + 1 for name, value in model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "w.pth")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert load_starting_weights(model, f"http://127.0.0.1:{server.server_port}/w.pth") == []
        server.shutdown()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_tensors_of_another_shape_stay_unchanged_and_are_named(model: torch.nn.Module, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    name = "roi_heads.keypoint_head.score_lowres.bias"
    random_bias = state[name].clone()
    state[name] = torch.zeros(17)
    torch.save({"model": state}, tmp_path / "w.pth")
    assert load_starting_weights(model, tmp_path / "w.pth") == [name]
    assert torch.equal(model.state_dict()[name], random_bias)


def test_the_zoos_head_is_transferred_by_name_and_from_the_nearest_joints(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    """The file is like the model zoo's: a pickle of NumPy arrays with 17 channels in COCO's order.

    The file does not name its keypoints, so kp_ray takes COCO's names.
    """
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    rng = np.random.default_rng(0)
    state[f"{LAST_LAYER}.weight"] = weight = rng.normal(size=(64, 17, 4, 4)).astype(np.float32)
    state[f"{LAST_LAYER}.bias"] = bias = rng.normal(size=17).astype(np.float32)
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}, 2))
    loaded_weights = load_weights(model, str(tmp_path / "zoo.pkl"), preset="r18", skeleton=DACON24)
    assert (loaded_weights.random_tensors, loaded_weights.head) == (
        (),
        "17 keypoints by name, 7 from the nearest joints",
    )
    new_weight, new_bias = (model.state_dict()[f"{LAST_LAYER}.{part}"].numpy() for part in ("weight", "bias"))
    channels = dict(zip(COCO_NAMES, range(17), strict=True))
    trunk = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
    expected = {name: (name,) for name in COCO_NAMES} | {
        "neck": trunk[:2],
        "left_palm": ("left_wrist",),
        "right_palm": ("right_wrist",),
        "spine2(back)": trunk,
        "spine1(waist)": trunk,
        "left_instep": ("left_ankle",),
        "right_instep": ("right_ankle",),
    }
    for number, name in enumerate(DACON24.names):
        joints = [channels[joint] for joint in expected[name]]
        np.testing.assert_allclose(new_weight[:, number], weight[:, joints].mean(axis=1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(new_bias[number], bias[joints].mean(), rtol=1e-5, atol=1e-6)


def test_a_members_head_is_transferred_to_any_skeleton_that_shares_a_keypoint(
    model: torch.nn.Module, cfg: Any, tmp_path: Path
) -> None:
    save_model(model, cfg, str(tmp_path), DACON24)
    path = str(tmp_path / "model_final.pth")
    saved_bias = model.state_dict()[f"{LAST_LAYER}.bias"].clone()
    names = ("tail", "right_knee", "left_knee")
    skeleton = Skeleton(names=names, flip_pairs=(names[1:],), sigmas=(0.1,) * 3)
    small_cfg = cfg.clone()
    small_cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
    small_model = build_model(small_cfg)
    random_bias = small_model.state_dict()[f"{LAST_LAYER}.bias"].clone()
    loaded_weights = load_weights(small_model, path, preset="r18", skeleton=skeleton)
    assert (loaded_weights.random_tensors, loaded_weights.head) == ((), "2 keypoints by name, 1 from scratch")
    expected = [random_bias[0], *(saved_bias[DACON24.names.index(name)] for name in names[1:])]
    assert small_model.state_dict()[f"{LAST_LAYER}.bias"].tolist() == [float(value) for value in expected]
    reversed_skeleton = Skeleton(names=DACON24.names[::-1], flip_pairs=(), sigmas=DACON24.sigmas)
    loaded_weights = load_weights(model, path, preset="r18", skeleton=reversed_skeleton)
    assert loaded_weights.head == "24 keypoints by name"
    assert torch.equal(model.state_dict()[f"{LAST_LAYER}.bias"], saved_bias.flip(0))


def test_no_channel_of_another_order_stays_if_the_last_layers_inputs_differ(
    model: torch.nn.Module, cfg: Any, tmp_path: Path
) -> None:
    wide_cfg = cfg.clone()
    wide_cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = [32]
    reversed_skeleton = Skeleton(names=DACON24.names[::-1], flip_pairs=(), sigmas=DACON24.sigmas)
    wide_model = build_model(wide_cfg)
    torch.nn.init.ones_(wide_model.state_dict()[f"{LAST_LAYER}.bias"])
    save_model(wide_model, wide_cfg, str(tmp_path), reversed_skeleton)
    bias = model.state_dict()[f"{LAST_LAYER}.bias"].clone()
    loaded_weights = load_weights(model, str(tmp_path / "model_final.pth"), preset="r18", skeleton=DACON24)
    assert loaded_weights.head == "24 from scratch"
    assert f"{LAST_LAYER}.bias" in loaded_weights.random_tensors
    assert torch.equal(model.state_dict()[f"{LAST_LAYER}.bias"], bias)


def test_weights_that_share_no_keypoint_are_refused(model: torch.nn.Module, cfg: Any, tmp_path: Path) -> None:
    save_model(model, cfg, str(tmp_path), DACON24)
    path = tmp_path / "model_final.pth"
    assert load_starting_weights(model, path) == []
    tail = Skeleton(names=("tail",), flip_pairs=(), sigmas=(0.1,))
    with pytest.raises(ModelError, match=rf"^model\.weights: {path}: these weights share no keypoint"):
        load_starting_weights(model, path, tail)


def test_the_error_about_weights_that_cannot_be_read_names_the_setting_and_the_path(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"model": {"nothing": torch.zeros(3)}}, tmp_path / "other.pth")
    torch.save({"model": {LAST_LAYER + ".weight": 3}}, tmp_path / "number.pth")
    torch.save({"model": model.state_dict(), "keypoints": []}, tmp_path / "names.pth")
    torch.save(model.state_dict(), legacy := tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    legacy.write_bytes(legacy.read_bytes()[:-8])
    names = ("missing.pth", "text.pth", "other.pth", "number.pth", "names.pth", "legacy.pth")
    files = [str(tmp_path / name) for name in names]
    for weights in (*files, "http://127.0.0.1:9/model.pth", "http://127.0.0.1:9/my model.pth"):
        with pytest.raises(ModelError, match=f"^model.weights: {weights}: "):
            load_starting_weights(model, weights)


class CodeOnLoad:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_weights_cannot_run_code(model: torch.nn.Module, tmp_path: Path, suffix: str) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / f"evil.{suffix}"
    if suffix == "pth":
        torch.save({"model": CodeOnLoad(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": CodeOnLoad(marker)}))
    with pytest.raises(ModelError):
        load_starting_weights(model, path)
    assert not marker.exists()


def read_checkpoint(folder: str) -> object:
    """Read the training checkpoint in a folder as a resumed run does."""
    return _read_checkpoint(ray.train.Checkpoint.from_directory(folder), folder)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda folder: load_member(folder, "cpu"), "model_final.pth"),
        (read_keypoint_names, "model_final.pth"),
        (read_checkpoint, CHECKPOINT_NAME),
    ],
    ids=["member", "keypoint names", "checkpoint"],
)
def test_the_weights_of_a_member_and_its_checkpoints_cannot_run_code(
    model: torch.nn.Module, cfg: Any, tmp_path: Path, read: Callable[[str], object], name: str
) -> None:
    marker = tmp_path / "ran"
    save_model(model, cfg, str(tmp_path), DACON24)
    content = {"model": model.state_dict(), "keypoints": list(DACON24.names)}
    torch.save(content, tmp_path / name)
    read(str(tmp_path))  # the file without the code is valid
    torch.save({**content, "extra": CodeOnLoad(marker)}, tmp_path / name)
    with pytest.raises((ModelError, StorageError), match=rf"{tmp_path}/{name}: .*damaged"):
        read(str(tmp_path))
    assert not marker.exists()


def test_the_config_of_a_member_cannot_run_code(model: torch.nn.Module, cfg: Any, tmp_path: Path) -> None:
    folder, marker = tmp_path / "run" / "members" / "a", tmp_path / "ran"
    save_model(model, cfg, str(folder), DACON24)
    with (folder / "config.yaml").open("a") as file:
        file.write(f"OUTPUT_DIR: !!python/object/apply:os.mkdir [{marker}]\n")
    with pytest.raises(ModelError, match=rf"^{folder}/config\.yaml: damaged"):
        load_member(str(folder), "cpu")
    write_small_store(tmp_path / "run" / "store")
    (tmp_path / "x.jpg").touch()
    config = tiny_config({"test_images": str(tmp_path)}, tmp_path / "run")
    with pytest.raises(ModelError, match=rf"^{folder}/config\.yaml: damaged"):
        PredictionTask(config)
    assert not marker.exists()
