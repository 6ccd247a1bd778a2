"""The actor's work on a batch, without Ray."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import simplejpeg

from kp_ray.config.schema import Config
from kp_ray.data.submission import read_sample_submission
from kp_ray.errors import ModelError
from kp_ray.keypoints import DACON24
from kp_ray.models.decoding import mirror_detection
from kp_ray.prediction.images import ImageRef
from kp_ray.prediction.predictor import BatchResult, InputImage, Predictor, encode_batch
from tests.helpers.members import link_run


def make_predictor(config: Config, members: Sequence[str] = ("a",)) -> Predictor:
    return Predictor(config.to_dict(), members, DACON24.names, config.path("predictions", "test"))


def first_image(config: Config) -> Path:
    name = read_sample_submission(config.require_input("sample_submission")).images[0]
    return Path(config.require_input("test_images"), name)


def test_every_kind_of_picture_is_predicted_upright_and_a_damaged_one_has_a_reason(
    trained: Config, tmp_path: Path
) -> None:
    content = first_image(trained).read_bytes()
    image = PIL.Image.open(io.BytesIO(content))
    turned = image.transpose(PIL.Image.Transpose.ROTATE_90)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # viewers rotate the image by 90 degrees clockwise
    image.save(tmp_path / "plain.png")
    turned.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    image.convert("L").save(tmp_path / "grey.jpg", quality=95)
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "whole.jpg").write_bytes(content)
    names = ["whole.jpg", "plain.png", "turned.jpg", "grey.jpg", "cut.jpg"]
    predictor = make_predictor(trained)
    rows = list(predictor.rows([ImageRef(name, str(tmp_path / name), None, "") for name in names]))
    best = {row["image"]: row for row in reversed(rows)}
    assert [(best[name]["width"], best[name]["height"]) for name in names[:4]] == [(320, 180)] * 4
    assert not any(best[name]["reason"] for name in names[:4])
    _, cfg = predictor.members["a"]
    inputs = [
        InputImage((tmp_path / name).read_bytes()).model_input(cfg, 1.0, False, DACON24)["image"].float()
        for name in names[:3]
    ]
    for pixels in inputs[1:]:
        assert (pixels - inputs[0]).abs().mean() < 4, "another kind of file holds the same upright picture"
    assert "decoded" in best["cut.jpg"]["reason"]
    assert best["cut.jpg"]["score"] == 0


@pytest.mark.parametrize("tta", [["flip"], ["flip", 0.75, 1.5]])
def test_with_flips_a_mirrored_picture_gives_the_mirrored_people(
    trained: Config, tta: list[Any], tmp_path: Path
) -> None:
    predictor = make_predictor(link_run(trained, tmp_path / "run", tta=tta, fallback_threshold=0.0))
    pixels = simplejpeg.decode_jpeg(first_image(trained).read_bytes(), "RGB")
    images = []
    for view in (pixels, pixels[:, ::-1]):
        png = io.BytesIO()
        PIL.Image.fromarray(view).save(png, format="PNG")
        images.append(InputImage(png.getvalue()))
    plain, mirrored = predictor.find_people("a", images)
    assert plain
    assert len(plain) == len(mirrored)
    best = plain[0]
    back = [mirror_detection(person, 320, DACON24) for person in mirrored]  # people of equal scores have any order
    same = min(back, key=lambda person: float(np.abs(person.bbox_xyxy - best.bbox_xyxy).max()))
    assert same.score == pytest.approx(best.score, abs=1e-5)
    np.testing.assert_allclose(same.bbox_xyxy, best.bbox_xyxy, atol=1e-2)
    np.testing.assert_allclose(same.keypoints, best.keypoints, atol=1e-2)
    without = make_predictor(link_run(trained, tmp_path / "other", fallback_threshold=0.0))
    distances = [np.abs(person.keypoints - best.keypoints).max() for person in without.find_people("a", images[:1])[0]]
    assert min(distances) > 0.1, "the other views count"


def test_a_batch_becomes_one_part_and_a_retry_replaces_it(trained: Config, tmp_path: Path) -> None:
    config = link_run(trained, tmp_path / "run")
    predictor = make_predictor(config, ["a", "b"])
    path = first_image(trained)
    batch = {"batch": encode_batch([ImageRef(path.name, str(path), None, "1:2")])}
    for _ in range(2):
        result = BatchResult(**predictor(batch))
        assert (result.num_images, result.error_class) == (1, "")
    parts = list(Path(config.path("predictions", "test")).iterdir())
    assert len(parts) == 1
    rows = pq.read_table(parts[0]).to_pylist()
    assert {(row["image"], row["version"]) for row in rows} == {(path.name, "1:2")}
    assert {row["member"] for row in rows} == {"a", "b"}


def test_a_member_that_cannot_be_loaded_is_the_result_of_every_batch(trained: Config, tmp_path: Path) -> None:
    predictor = make_predictor(link_run(trained, tmp_path / "run"), ["a", "untrained"])
    result = BatchResult(**predictor({"batch": encode_batch([ImageRef("x.jpg", "/x.jpg", None, "")])}))
    assert result.num_images == 0
    with pytest.raises(ModelError, match="untrained"):
        result.raise_error()
