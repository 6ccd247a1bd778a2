"""Batch inference over an actor pool, the fused submission, and its evaluation, on members trained for a moment."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import simplejpeg
from conftest import tiny_config

from kp_ray.annotations import load_annotations
from kp_ray.config import Config, InputError
from kp_ray.keypoints import DACON24
from kp_ray.predict import Predictor, evaluate, predict
from kp_ray.store import plan, write_store
from kp_ray.submission import read_form, read_submission
from kp_ray.train import train

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def trained(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Config:
    members = [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}]
    train_section = {"members": members, "max_iter": 2, "steps": [1], "eval_period": 0}
    config = tiny_config(sample_data, tmp_path_factory.mktemp("trained"), train=train_section)
    write_store(plan(config))
    train(config)
    return config


def test_every_image_has_a_row_of_every_member_and_the_submission_is_valid(trained: Config) -> None:
    result = predict(trained)
    form = read_form(trained.input("sample_submission"))
    table = pq.read_table(trained.path("predictions.parquet")).to_pandas()
    assert table[["image", "member"]].to_numpy().tolist() == [[i, m] for i in form.images for m in ("a", "b")]
    points = read_submission(trained.path("submission.csv"), form, DACON24, size=None)
    assert np.isfinite(points).all()
    assert result["images"] == len(form.images)


def test_evaluation_scores_the_ensemble_and_each_member(trained: Config) -> None:
    predict(trained)
    evaluation = evaluate(trained)
    assert json.loads(Path(trained.path("evaluation.json")).read_text()) == json.loads(json.dumps(evaluation))
    assert set(evaluation["members"]) == {"a", "b"}
    form = read_form(trained.input("sample_submission"))
    points = read_submission(trained.path("submission.csv"), form, DACON24, size=None)
    truth = load_annotations(trained.input("truth"))
    wanted = truth.keypoints[[truth.images.index(image) for image in form.images], :, :2]
    assert evaluation["rmse"] == pytest.approx(float(np.sqrt(np.mean((points - wanted) ** 2))))
    alone = evaluate(trained, submission=trained.path("submission.csv"))
    assert alone["rmse"] == pytest.approx(evaluation["rmse"])


def test_a_perfect_submission_scores_zero_and_a_shifted_one_its_shift(trained: Config, tmp_path: Path) -> None:
    table = pd.read_csv(trained.input("truth"))
    order = list(read_form(trained.input("sample_submission")).images)
    table = table.set_index("image").loc[order].reset_index()
    table.to_csv(tmp_path / "perfect.csv", index=False)
    assert evaluate(trained, submission=str(tmp_path / "perfect.csv"))["rmse"] == pytest.approx(0)
    table[DACON24.columns] += 3
    table.to_csv(tmp_path / "shifted.csv", index=False)
    assert evaluate(trained, submission=str(tmp_path / "shifted.csv"))["rmse"] == pytest.approx(3)


def test_broken_and_missing_images_keep_their_row_and_are_listed(trained: Config, tmp_path: Path) -> None:
    images = tmp_path / "test_imgs"
    images.mkdir()
    names = read_form(trained.input("sample_submission")).images
    for name in names[2:]:
        (images / name).write_bytes(Path(trained.input("test_images"), name).read_bytes())
    (images / names[0]).write_bytes(b"no picture")
    for member in ("a", "b"):
        target = tmp_path / "run" / "members" / member
        target.mkdir(parents=True)
        for file in ("model_final.pth", "config.yaml"):
            (target / file).write_bytes(Path(trained.member_dir(member), file).read_bytes())
    data = {**trained.data.model_dump(), "test_images": str(images)}
    members = [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}]
    config = tiny_config(data, tmp_path / "run", train={"members": members})
    result = predict(config)
    assert result["unusable"] == 2
    listed = {
        row["image"]: row["reason"] for row in json.loads(Path(config.path("predict.json")).read_text())["unusable"]
    }
    assert "not a picture" in listed[names[0]]
    assert "no such file" in listed[names[1]]
    form = read_form(trained.input("sample_submission"))
    points = read_submission(config.path("submission.csv"), form, DACON24, size=None)  # complete, no zeros
    assert len(points) == len(names)


def test_flip_tta_on_a_mirrored_picture_gives_the_mirrored_answer(trained: Config) -> None:
    with_flip = tiny_config(
        trained.data.model_dump(), Path(trained.run_dir), predict={"tta": ["flip"], "fallback_threshold": 0.0}
    )
    predictor = Predictor(with_flip.to_dict(), ["a"], DACON24.names)
    name = read_form(trained.input("sample_submission")).images[0]
    picture = simplejpeg.decode_jpeg(Path(trained.input("test_images"), name).read_bytes(), "BGR")
    height, width = picture.shape[:2]
    plain = predictor._person("a", picture, width, height)["keypoints"].reshape(-1, 3)
    mirrored = predictor._person("a", np.ascontiguousarray(picture[:, ::-1]), width, height)["keypoints"].reshape(-1, 3)
    back = mirrored[DACON24.flip_indices]
    back[:, 0] = width - 1 - back[:, 0]
    np.testing.assert_allclose(plain, back, atol=1e-3)


def test_what_is_missing_is_one_line(tiny: Config) -> None:
    with pytest.raises(InputError, match="member a is not trained; run train first"):
        predict(tiny)
    with pytest.raises(InputError, match="there are no predictions; run predict first"):
        evaluate(tiny)


def test_actors_take_the_gpu_share_that_the_config_asks_for(trained: Config) -> None:
    """Fake GPUs in a cluster of its own: two actors share one GPU; the CPU does the work."""
    import subprocess
    import sys

    script = f"""
import ray
from kp_ray.config import load
from kp_ray.predict import predict
ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
config = load({trained.path("gpu.yaml")!r})
print(predict(config)["images"])
"""
    values = trained.to_dict()
    values["predict"] |= {"gpus_per_actor": 0.5, "actors": [2, 2]}
    Path(trained.path("gpu.yaml")).write_text(__import__("yaml").safe_dump(values))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().splitlines()[-1:] == ["10"], done.stderr[-2000:]
