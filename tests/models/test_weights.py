"""Saved members, and starting weights from files and URLs; the model zoo's own host is not reached here."""

import functools
import http.server
import io
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import simplejpeg
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

from kp_ray.errors import ModelError
from kp_ray.keypoints import DACON24, Skeleton
from kp_ray.models.presets import build_model
from kp_ray.models.weights import is_trained, load_member, load_weights, save_model
from tests.helpers.rows import random_row


@pytest.fixture(scope="module")
def model(cfg: Any) -> torch.nn.Module:
    """Build an R-18; tests overwrite its weights."""
    return build_model(cfg)


def load_starting_weights(model: torch.nn.Module, weights: Path | str, skeleton: Skeleton = DACON24) -> list[str]:
    """Load weights into an R-18; return the names of the tensors that stay random."""
    return load_weights(model, str(weights), preset="r18", skeleton=skeleton)


def test_a_saved_member_loads_again_and_opens_in_plain_detectron2(cfg: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    assert not is_trained(str(tmp_path))
    save_model(model, cfg, str(tmp_path), DACON24)
    assert is_trained(str(tmp_path))
    loaded, _ = load_member(str(tmp_path), "cpu", DACON24.names)
    pairs = zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    assert all(torch.equal(saved, value) for saved, value in pairs)
    detectron2_cfg = get_cfg()
    detectron2_cfg.merge_from_file(str(tmp_path / "config.yaml"))
    detectron2_cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    detectron2_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    image = simplejpeg.decode_jpeg(random_row()["image"], "BGR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = DefaultPredictor(detectron2_cfg)(image)["instances"]
    assert output.pred_keypoints.shape[1:] == (24, 3)


def test_a_member_of_other_keypoints_is_refused(model: torch.nn.Module, cfg: Any, tmp_path: Path) -> None:
    save_model(model, cfg, str(tmp_path), DACON24)
    with pytest.raises(ModelError, match=f"^{tmp_path}: predicts other keypoints"):
        load_member(str(tmp_path), "cpu", DACON24.names[::-1])


@pytest.mark.parametrize("name", ["config.yaml", "model_final.pth"])
def test_a_member_with_a_missing_or_damaged_file_is_refused_by_its_name(
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


def test_a_member_whose_weights_do_not_fit_its_config_is_refused(
    model: torch.nn.Module, cfg: Any, tmp_path: Path
) -> None:
    changed = cfg.clone()
    changed.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    save_model(model, changed, str(tmp_path), DACON24)
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
    before = state[name].clone()
    state[name] = torch.zeros(17)
    torch.save({"model": state}, tmp_path / "w.pth")
    assert load_starting_weights(model, tmp_path / "w.pth") == [name]
    assert torch.equal(model.state_dict()[name], before)


def test_weights_of_another_skeleton_are_refused(model: torch.nn.Module, cfg: Any, tmp_path: Path) -> None:
    save_model(model, cfg, str(tmp_path), DACON24)
    path = tmp_path / "model_final.pth"
    assert load_starting_weights(model, path) == []
    coco = Skeleton(names=DACON24.names[:17], flip_pairs=(), sigmas=DACON24.sigmas[:17])
    with pytest.raises(ModelError, match=rf"^model\.weights: {path}: the keypoints of these weights"):
        load_starting_weights(model, path, coco)


def test_weights_that_cannot_be_reached_or_read_are_refused_by_setting_and_path(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"model": {"nothing": torch.zeros(3)}}, tmp_path / "other.pth")
    files = [str(tmp_path / name) for name in ("missing.pth", "text.pth", "other.pth")]
    for weights in (*files, "http://127.0.0.1:9/model.pth"):
        with pytest.raises(ModelError, match=f"^model.weights: {weights}: "):
            load_starting_weights(model, weights)


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_weights_cannot_run_code(model: torch.nn.Module, tmp_path: Path, suffix: str) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    path = tmp_path / f"evil.{suffix}"
    if suffix == "pth":
        torch.save({"model": Evil()}, path)
    else:
        stream = io.BytesIO()
        pickle.dump({"model": Evil()}, stream)
        path.write_bytes(stream.getvalue())
    with pytest.raises(ModelError):
        load_starting_weights(model, path)
    assert not marker.exists()
