"""Test the actor's work on a batch, without Ray."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch

from kp_ray.config.schema import Config
from kp_ray.config.types import DecodeMethod
from kp_ray.errors import DivergedError, ModelError
from kp_ray.images import decode
from kp_ray.keypoints import DACON24
from kp_ray.models.decoding import mirror_detection
from kp_ray.models.precision import set_precision
from kp_ray.models.weights import load_member
from kp_ray.prediction.decode import InputSize, decode_batch, refs_table
from kp_ray.prediction.images import ImageRef
from kp_ray.prediction.predictor import BatchResult, InputImage, Predictor
from kp_ray.prediction.settings import view_scales
from tests.helpers.detections import detect_people
from tests.helpers.linked_runs import configure_run, first_image

LinkMembers = Callable[..., Config]


def make_predictor(config: Config, members: Sequence[str] = ("a",)) -> Predictor:
    """Load members as an actor without a GPU does."""
    folders = {name: config.member_dir(name) for name in members}
    return Predictor(config.to_dict(), folders, DACON24.names, config.path("predictions", "test"), has_gpu=False)


def decode_files(predictor: Predictor, *paths: Path) -> pa.Table:
    """Decode image files to a batch for the predictor."""
    _, cfg = predictor.members["a"]
    input_size = InputSize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    sizes = [input_size.scale(scale) for scale in view_scales(predictor.config)]
    return decode_batch(refs_table([ImageRef(path.name, str(path), None, "1:2") for path in paths]), sizes)


@pytest.fixture
def link_members(run_with_members: Config, tmp_path: Path) -> LinkMembers:
    """Return a function that links the members into a run folder with other settings of the `predict` section."""

    def link(name: str = "run", **section: Any) -> Config:
        (tmp_path / name).mkdir()
        (tmp_path / name / "members").symlink_to(run_with_members.path("members"))
        return configure_run(run_with_members, tmp_path / name, **section)

    return link


@pytest.mark.parametrize("tta", [["flip"], ["flip", 0.75, 1.5]])
def test_with_flips_a_mirrored_image_has_mirrored_people(
    run_with_members: Config, link_members: LinkMembers, tta: list[Any], tmp_path: Path
) -> None:
    predictor = make_predictor(link_members(tta=tta, fallback_threshold=0.0))
    pixels = simplejpeg.decode_jpeg(first_image(run_with_members).read_bytes(), "RGB")
    PIL.Image.fromarray(pixels).save(tmp_path / "plain.png")
    PIL.Image.fromarray(pixels[:, ::-1]).save(tmp_path / "mirrored.png")
    batch = decode_files(predictor, tmp_path / "plain.png", tmp_path / "mirrored.png")
    images = [InputImage(batch.slice(i, 1)) for i in range(2)]
    people, mirrored_people = predictor.find_people("a", images)
    assert people
    assert len(people) == len(mirrored_people)
    best_person = people[0]
    candidates = [mirror_detection(person, 320, DACON24) for person in mirrored_people]
    # The order of people with equal scores is arbitrary.
    counterpart = min(candidates, key=lambda person: float(np.abs(person.bbox_xyxy - best_person.bbox_xyxy).max()))
    assert counterpart.score == pytest.approx(best_person.score, abs=1e-5)
    np.testing.assert_allclose(counterpart.bbox_xyxy, best_person.bbox_xyxy, atol=1e-2)
    np.testing.assert_allclose(counterpart.keypoints, best_person.keypoints, atol=1e-2)
    predictor = make_predictor(link_members("without_tta", fallback_threshold=0.0))
    people = predictor.find_people("a", images[:1])[0]
    changes = [np.abs(person.keypoints - best_person.keypoints).max() for person in people]
    assert min(changes) > 0.1, "TTA changes the result"


@pytest.mark.parametrize("decode_method", ["argmax", "expectation"])
def test_people_have_the_points_and_boxes_that_the_model_finds_without_predict(
    run_with_members: Config, link_members: LinkMembers, decode_method: DecodeMethod, tmp_path: Path
) -> None:
    predictor = make_predictor(link_members(fallback_threshold=0.0, decode=decode_method))
    model, cfg = predictor.members["a"]
    path = first_image(run_with_members)
    PIL.Image.open(path).crop((0, 0, 200, 180)).save(tmp_path / "narrow.png")
    batch = decode_files(predictor, path, tmp_path / "narrow.png")
    narrow_pixels, _ = decode((tmp_path / "narrow.png").read_bytes())
    rows: list[dict[str, Any]] = [
        {"image": path.read_bytes(), "width": 320, "height": 180},
        {"image": narrow_pixels, "width": 200, "height": 180},
    ]
    people_by_image = predictor.find_people("a", [InputImage(batch.slice(i, 1)) for i in range(2)])
    for row, people in zip(rows, people_by_image, strict=True):
        (expected,) = detect_people(model, cfg, DACON24, [row], decode_method)
        assert people
        assert len(people) == len(expected)
        for person, expected_person in zip(people, expected, strict=True):
            assert person.score == pytest.approx(expected_person.score, abs=1e-5)
            np.testing.assert_allclose(person.bbox_xyxy, expected_person.bbox_xyxy, atol=1e-2)
            np.testing.assert_allclose(person.keypoints, expected_person.keypoints, atol=1e-2)


def test_a_member_with_input_format_rgb_gets_rgb_images(run_with_members: Config, link_members: LinkMembers) -> None:
    predictor = make_predictor(link_members(fallback_threshold=0.0, decode="argmax"))
    model, cfg = predictor.members["a"]
    cfg.INPUT.FORMAT = "RGB"
    path = first_image(run_with_members)
    (people,) = predictor.find_people("a", [InputImage(decode_files(predictor, path))])
    (expected,) = detect_people(model, cfg, DACON24, [{"image": path.read_bytes(), "width": 320, "height": 180}])
    assert people
    assert [person.score for person in people] == [person.score for person in expected]


def test_a_batch_becomes_one_part_and_a_retry_replaces_it(
    run_with_members: Config, link_members: LinkMembers, tmp_path: Path
) -> None:
    config = link_members()
    predictor = make_predictor(config, ["a", "b"])
    path = first_image(run_with_members)
    (tmp_path / "invalid.jpg").write_bytes(b"not an image")
    batch = decode_files(predictor, tmp_path / "invalid.jpg", path)
    for _ in range(2):
        (values,) = predictor(batch).to_pylist()
        result = BatchResult(**values)
        assert (result.num_images, result.device_and_precision, result.error_class) == (2, "cpu, fp32", "")
    (part,) = Path(config.path("predictions", "test")).iterdir()
    rows = pq.read_table(part).to_pylist()
    assert {(row["image"], row["version"], row["member"]) for row in rows} == {
        (name, "1:2", member) for name in ("invalid.jpg", path.name) for member in ("a", "b")
    }
    for row in rows:
        is_invalid = row["image"] == "invalid.jpg"
        width = 0 if is_invalid else 320
        assert (row["score"] == 0, bool(row["reason"]), row["width"]) == (is_invalid, is_invalid, width)


def test_images_of_different_sizes_in_a_batch_are_predicted_as_if_each_were_alone(
    run_with_members: Config, link_members: LinkMembers, tmp_path: Path
) -> None:
    predictor = make_predictor(link_members(fallback_threshold=0.0))
    path = first_image(run_with_members)
    PIL.Image.open(path).crop((0, 0, 200, 180)).save(tmp_path / "narrow.png")
    batch = decode_files(predictor, path, tmp_path / "narrow.png", path)
    images = [InputImage(batch.slice(i, 1)) for i in range(3)]
    for image, people in zip(images, predictor.find_people("a", images), strict=True):
        (expected,) = predictor.find_people("a", [image])
        assert people
        scores, expected_scores = ([person.score for person in group] for group in (people, expected))
        np.testing.assert_allclose(scores, expected_scores, atol=1e-5)


def test_a_model_finds_at_most_ten_people_unless_the_config_sets_another_number(link_members: LinkMembers) -> None:
    def max_detections(config: Config) -> int:
        model, _ = make_predictor(config).members["a"]
        return int(model.roi_heads.box_predictor.test_topk_per_image)

    config = link_members()
    assert max_detections(config) == 10
    section = config.model.model_copy(update={"cfg": {"TEST.DETECTIONS_PER_IMAGE": 3}})
    assert max_detections(config.model_copy(update={"model": section})) == 3


def test_if_a_member_cannot_be_loaded_every_batch_returns_the_error(
    run_with_members: Config, link_members: LinkMembers
) -> None:
    predictor = make_predictor(link_members(), ["a", "untrained"])
    (values,) = predictor(decode_files(predictor, first_image(run_with_members))).to_pylist()
    result = BatchResult(**values)
    assert result.num_images == 0
    with pytest.raises(ModelError, match="untrained"):
        result.raise_if_failed()


def test_a_member_whose_heat_maps_overflow_is_named(run_with_members: Config, link_members: LinkMembers) -> None:
    predictor = make_predictor(link_members(fallback_threshold=0.0))
    with torch.no_grad():
        for parameter in predictor.members["a"][0].roi_heads.keypoint_head.parameters():
            parameter.mul_(1e15)
    (values,) = predictor(decode_files(predictor, first_image(run_with_members))).to_pylist()
    with pytest.raises(DivergedError, match=r"^member a: heat maps are no longer finite: "):
        BatchResult(**values).raise_if_failed()


def test_mixed_precision_does_not_round_coordinates(run_with_members: Config) -> None:
    """In bf16, coordinates above 256 px would be rounded to even numbers."""
    image, _ = decode(first_image(run_with_members).read_bytes())
    row = {"image": image, "width": 320, "height": 180}
    model, cfg = load_member(run_with_members.member_dir("a"), "cpu")
    (expected_people,) = detect_people(model, cfg, DACON24, [row])
    set_precision(model, "cpu", "bf16")
    dtypes: list[torch.dtype] = []
    model.backbone.bottom_up.stem.conv1.register_forward_hook(
        lambda _model, _inputs, output: dtypes.append(output.dtype)
    )
    (people,) = detect_people(model, cfg, DACON24, [row])
    assert dtypes == [torch.bfloat16]
    assert people
    assert people[0].score == pytest.approx(expected_people[0].score, abs=0.05)
    coordinates = np.concatenate([person.bbox_xyxy for person in people])
    # bf16 would round a coordinate of 32 px or more to a multiple of 0.25 px or of a larger step.
    assert (coordinates[coordinates >= 32] % 0.25 > 1e-3).any()
