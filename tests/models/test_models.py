"""Detectron2's side: what a row becomes, parity with its DatasetMapper, weights in and out."""

import copy
import functools
import http.server
import io
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kp_ray.config.load import build_config
from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError
from kp_ray.keypoints import DACON24, Skeleton
from kp_ray.models.decoding import detect_people, read_instances
from kp_ray.models.inputs import to_dataset_dict
from kp_ray.models.presets import build_cfg, build_model, scale_cfg
from kp_ray.models.weights import load_member, load_weights, save_model
from kp_ray.training.optimizer import update_ema
from tests.helpers.data import TINY_NET, tiny_config


def a_row(width: int = 320, height: int = 180, seed: int = 0) -> dict[str, Any]:
    """A smooth random picture with 24 random keypoints, two of them unlabelled."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 16, 3), dtype=np.uint8)
    import cv2

    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    keypoints = np.column_stack([rng.uniform(0, width, 24), rng.uniform(0, height, 24), np.full(24, 2.0)])
    keypoints[3] = np.nan, np.nan, 0
    keypoints[7, 2] = 0
    seen = keypoints[np.isfinite(keypoints[:, 0]), :2]
    return {
        "image": simplejpeg.encode_jpeg(picture, 95, colorspace="BGR"),
        "width": width,
        "height": height,
        "keypoints": keypoints.ravel().tolist(),
        "bbox_xyxy": [*seen.min(axis=0), *seen.max(axis=0)],
    }


@pytest.fixture(scope="module")
def cfg() -> Any:
    return build_cfg(build_config({"model": {"preset": "r18", "cfg": TINY_NET}}), DACON24, "cpu")


def mapped_by_detectron2(row: dict[str, Any], cfg: Any, picture: np.ndarray[Any, Any], *, flip: bool) -> dict[str, Any]:
    """The same row through Detectron2's own DatasetMapper, with the flip forced on or off."""
    import tempfile

    import cv2
    from detectron2.data import DatasetMapper, transforms
    from detectron2.structures import BoxMode

    moves = [transforms.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, "choice")]
    if flip:
        moves.append(transforms.RandomFlip(prob=1.0))
    mapper = DatasetMapper(
        True,
        augmentations=moves,
        image_format="BGR",
        use_keypoint=True,
        keypoint_hflip_indices=np.array(DACON24.flip_indices),
    )
    keypoints = np.array(row["keypoints"]).reshape(-1, 3)
    keypoints[:, :2] += 0.5
    keypoints[~np.isfinite(keypoints).all(axis=1)] = 0
    annotation = {
        "bbox": (np.array(row["bbox_xyxy"]) + 0.5).tolist(),
        "bbox_mode": BoxMode.XYXY_ABS,
        "keypoints": keypoints.ravel().tolist(),
        "category_id": 0,
        "iscrowd": 0,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/picture.png"
        cv2.imwrite(path, picture)
        record = {"file_name": path, "width": row["width"], "height": row["height"], "annotations": [annotation]}
        return dict(mapper(copy.deepcopy(record)))


class FixedFlip:
    """Stands in for the generator: picks the first size, and flips or not."""

    def __init__(self, flip: bool) -> None:
        self.flip = flip

    def integers(self, _: int) -> int:
        return 0

    def random(self) -> float:
        return 0.0 if self.flip else 0.9


@pytest.mark.parametrize("flip", [False, True])
@given(width=st.integers(90, 400), height=st.integers(90, 400), seed=st.integers(0, 50))
@settings(max_examples=12, deadline=None)
def test_a_row_becomes_what_detectron2s_mapper_makes_of_it(
    cfg: Any, flip: bool, width: int, height: int, seed: int
) -> None:
    row = a_row(width, height, seed)
    picture = simplejpeg.decode_jpeg(row["image"], "BGR")
    ours = to_dataset_dict({**row, "image": picture}, cfg, DACON24, FixedFlip(flip))  # type: ignore[arg-type]
    theirs = mapped_by_detectron2(row, cfg, picture, flip=flip)
    assert torch.equal(ours["image"], theirs["image"])
    mine, its = ours["instances"], theirs["instances"]
    assert torch.equal(mine.gt_boxes.tensor, its.gt_boxes.tensor)
    assert torch.equal(mine.gt_keypoints.tensor, its.gt_keypoints.tensor)
    assert torch.equal(mine.gt_classes, its.gt_classes)


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (1267, 717), (720, 540), (961, 1279)])
def test_decoding_at_a_smaller_scale_moves_nothing(cfg: Any, width: int, height: int) -> None:
    """A blob near the last corner, where a picture's rounded-up size would show, keeps its place to 0.02 px."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    blob = np.exp(-((x - (width - 100)) ** 2 + (y - (height - 100)) ** 2) / (2 * 24**2))
    picture = np.repeat(np.round(255 * blob).astype(np.uint8)[..., None], 3, axis=2)
    row = {"image": simplejpeg.encode_jpeg(picture, 95, colorspace="BGR"), "width": width, "height": height}
    places = []
    for image in (row["image"], simplejpeg.decode_jpeg(row["image"], "BGR")):
        mapped = to_dataset_dict({**row, "image": image}, cfg, DACON24, None)["image"][0].double()
        rows, columns = (torch.arange(side, dtype=torch.float64) for side in mapped.shape)
        places.append(torch.stack([mapped.sum(0) @ columns, mapped.sum(1) @ rows]) / mapped.sum())
    torch.testing.assert_close(places[0], places[1], atol=0.02, rtol=0)


@pytest.mark.parametrize("flip", [False, True])
def test_half_a_pixel_goes_on_once_and_comes_off_once(cfg: Any, flip: bool) -> None:
    from detectron2.structures import Boxes, Instances

    row = a_row()
    gt = to_dataset_dict(row, cfg, DACON24, FixedFlip(flip))["instances"]  # type: ignore[arg-type]
    scale = row["width"] / gt.image_size[1], row["height"] / gt.image_size[0]
    predicted = Instances((row["height"], row["width"]))
    predicted.pred_keypoints = gt.gt_keypoints.tensor * torch.tensor([*scale, 1.0])
    predicted.pred_boxes = Boxes(gt.gt_boxes.tensor * torch.tensor([*scale, *scale]))
    predicted.scores = torch.tensor([0.9])
    _, box, keypoints = read_instances(predicted)[0]
    if flip:  # of pixel indices, so x becomes width - 1 - x
        keypoints = keypoints[DACON24.flip_indices]
        keypoints[:, 0] = row["width"] - 1 - keypoints[:, 0]
        box[[2, 0]] = row["width"] - 1 - box[[0, 2]]
    wanted = np.array(row["keypoints"]).reshape(-1, 3)
    seen = wanted[:, 2] > 0
    np.testing.assert_allclose(keypoints[seen, :2], wanted[seen, :2], atol=1e-4)
    np.testing.assert_allclose(box, row["bbox_xyxy"], atol=1e-4)


def test_a_saved_member_loads_again_and_opens_in_plain_detectron2(cfg: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    save_model(model, cfg, str(tmp_path), DACON24)
    again, _ = load_member(str(tmp_path), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from detectron2.config import get_cfg
        from detectron2.engine import DefaultPredictor
    plain = get_cfg()
    plain.merge_from_file(str(tmp_path / "config.yaml"))
    plain.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    plain.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    picture = simplejpeg.decode_jpeg(a_row()["image"], "BGR")
    output = DefaultPredictor(plain)(picture)["instances"]
    assert output.pred_keypoints.shape[1:] == (24, 3)


def test_a_moving_average_follows_with_a_decay_that_grows() -> None:
    average, model = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    values = {name: torch.full_like(value, 11) for name, value in model.state_dict().items()}
    model.load_state_dict(values)
    average.load_state_dict({name: torch.full_like(value, 1) for name, value in values.items()})
    update_ema(average, model, 0.999, 0)
    assert average.weight.item() == pytest.approx(10)  # decay 0.1
    assert average.running_var.item() == pytest.approx(10)  # type: ignore[union-attr]
    assert average.num_batches_tracked.item() == 11  # type: ignore[union-attr]
    update_ema(average, model, 0.5, 1000)
    assert average.weight.item() == pytest.approx(10.5)


def test_predictions_come_best_first_in_pixels_of_the_stored_picture(cfg: Any) -> None:
    torch.manual_seed(0)
    low = cfg.clone()
    low.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    people = detect_people(build_model(low).eval(), low, DACON24, [a_row(), a_row(200, 300, 1)])
    assert len(people) == 2
    for row_people, (width, height) in zip(people, [(320, 180), (200, 300)], strict=True):
        scores = [score for score, _, _ in row_people]
        assert scores == sorted(scores, reverse=True)
        assert scores
        for _, box, keypoints in row_people:
            assert (box >= -0.5).all()
            assert (box[2:] <= [width, height]).all()
            assert keypoints.shape == (24, 3)


def test_workers_scale_lr_steps_and_iterations_by_detectron2s_rule() -> None:
    config = build_config({"preset": "dacon"})
    one = build_cfg(config, DACON24, "cpu")
    four = scale_cfg(one, 4)
    assert (one.SOLVER.BASE_LR, one.SOLVER.IMS_PER_BATCH, one.SOLVER.MAX_ITER) == (0.001, 2, 10000)
    assert (four.SOLVER.BASE_LR, four.SOLVER.IMS_PER_BATCH, four.SOLVER.MAX_ITER) == (0.004, 8, 2500)
    assert four.SOLVER.STEPS == (750, 1000, 1250, 1500, 1750, 2000)
    assert [four.SOLVER.WARMUP_ITERS, four.SOLVER.CHECKPOINT_PERIOD, four.TEST.EVAL_PERIOD] == [250, 250, 1250]
    assert one.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE == 256
    assert one.MODEL.RESNETS.NUM_GROUPS == 32
    assert one.MODEL.RESNETS.WIDTH_PER_GROUP == 8


@pytest.mark.parametrize(("eval_period", "scaled_period"), [(0, 0), (1, 1), (40, 1)])
def test_more_workers_than_iterations_still_train_and_evaluate(eval_period: int, scaled_period: int) -> None:
    train = {"max_iter": 20, "checkpoint_period": 1, "steps": [10, 15], "eval_period": eval_period}
    cfg = scale_cfg(build_cfg(build_config({"model": {"preset": "r18"}, "train": train}), DACON24, "cpu"), 64)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.STEPS) == (1, 1, ())
    assert scaled_period == cfg.TEST.EVAL_PERIOD


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MODEL.RPN.NO_SUCH_THING": 1}, "NO_SUCH_THING"),
        ({"SOLVER.MOMENTUM": "fast"}, "SOLVER.MOMENTUM"),
        ({"MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 17}, "follows from kp_ray's own settings"),
        ({"SOLVER.IMS_PER_BATCH": 64}, "set it under train or predict"),
    ],
)
def test_a_wrong_detectron2_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(KpRayError, match=message) as caught:
        build_cfg(build_config({"model": {"preset": "r18", "cfg": options}}), DACON24, "cpu")
    assert "\n" not in str(caught.value)


class TestWeights:
    """Starting weights from files; the model zoo's own host is not reached here."""

    @pytest.fixture(scope="class")
    def model(self, cfg: Any) -> torch.nn.Module:
        return build_model(cfg)

    @pytest.fixture
    def config(self, sample_data: dict[str, Any], tmp_path: Path) -> Config:
        return tiny_config(sample_data, tmp_path)

    def test_a_pth_and_a_zoo_pickle_of_arrays_are_read(
        self, model: torch.nn.Module, config: Config, tmp_path: Path
    ) -> None:
        state = {name: value + 1 for name, value in model.state_dict().items()}
        torch.save({"model": state}, tmp_path / "w.pth")
        arrays = {name: value.numpy() for name, value in state.items()}
        (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, 2))
        for name in ("w.pth", "w.pkl"):
            for value in model.state_dict().values():
                value.zero_()
            assert load_weights(model, config, str(tmp_path / name), DACON24) == []
            assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    def test_weights_come_from_a_url(
        self, model: torch.nn.Module, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
        state = {name: value + 1 for name, value in model.state_dict().items()}
        torch.save({"model": state}, tmp_path / "w.pth")
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            assert load_weights(model, config, f"http://127.0.0.1:{server.server_port}/w.pth", DACON24) == []
            server.shutdown()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

    def test_tensors_of_another_shape_stay_as_they_are_and_are_named(
        self, model: torch.nn.Module, config: Config, tmp_path: Path
    ) -> None:
        state = dict(model.state_dict())
        other = "roi_heads.keypoint_head.score_lowres.bias"
        state[other] = torch.zeros(17)
        torch.save({"model": state}, tmp_path / "w.pth")
        assert load_weights(model, config, str(tmp_path / "w.pth"), DACON24) == [other]

    def test_a_member_of_another_skeleton_is_one_line(
        self, model: torch.nn.Module, cfg: Any, config: Config, tmp_path: Path
    ) -> None:
        save_model(model, cfg, str(tmp_path), DACON24)
        assert load_weights(model, config, str(tmp_path / "model_final.pth"), DACON24) == []
        other = Skeleton(names=DACON24.names[:17], flip_pairs=(), sigmas=DACON24.sigmas[:17])
        with pytest.raises(KpRayError, match=r"a model of 24 keypoints .* than the labels' 17") as caught:
            load_weights(model, config, str(tmp_path / "model_final.pth"), other)
        assert "\n" not in str(caught.value)

    def test_what_cannot_be_reached_or_read_is_one_line(
        self, model: torch.nn.Module, config: Config, tmp_path: Path
    ) -> None:
        (tmp_path / "text.pth").write_text("not weights")
        torch.save({"model": {"nothing": torch.zeros(3)}}, tmp_path / "other.pth")
        unreachable = "http://127.0.0.1:9/model.pth"
        for weights in (
            str(tmp_path / "missing.pth"),
            str(tmp_path / "text.pth"),
            str(tmp_path / "other.pth"),
            unreachable,
        ):
            with pytest.raises(KpRayError) as caught:
                load_weights(model, config, weights, DACON24)
            assert "\n" not in str(caught.value)
            assert weights in str(caught.value)

    @pytest.mark.parametrize("suffix", ["pth", "pkl"])
    def test_weights_cannot_run_code(self, model: torch.nn.Module, config: Config, tmp_path: Path, suffix: str) -> None:
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
        with pytest.raises(KpRayError):
            load_weights(model, config, str(path), DACON24)
        assert not marker.exists()


@pytest.mark.slow
def test_the_published_model_trains_a_step_and_predicts_at_full_size() -> None:
    """X-101-32x8d-FPN with 24 keypoints on the CPU: one update on two pictures, one prediction."""
    import resource
    import time

    from detectron2.utils.events import EventStorage

    config = build_config({"preset": "dacon"})
    cfg = build_cfg(config, DACON24, "cpu")
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg.SOLVER.BASE_LR)
    before = model.roi_heads.keypoint_head.score_lowres.weight.detach().clone()
    began = time.monotonic()
    rng = np.random.default_rng(0)
    rows = [a_row(1920, 1080, seed) for seed in (0, 1)]
    model.train()
    with EventStorage(0):
        losses = model([to_dataset_dict(row, cfg, DACON24, rng) for row in rows])
        sum(losses.values()).backward()
        optimizer.step()
    step_s = time.monotonic() - began
    assert all(torch.isfinite(value) for value in losses.values())
    assert not torch.equal(before, model.roi_heads.keypoint_head.score_lowres.weight)
    began = time.monotonic()
    people = detect_people(model.eval(), cfg, DACON24, rows[:1])
    assert len(people) == 1
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    parameters = sum(value.numel() for value in model.parameters()) / 1e6
    print(
        f"\nX-101: {parameters:.0f} M parameters, step {step_s:.0f} s, prediction {time.monotonic() - began:.0f} s, "
        f"peak {peak_gib:.1f} GiB"
    )
