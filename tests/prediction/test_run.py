"""Batch inference over an actor pool, the fused submission, and its evaluation, on members that know nothing."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import simplejpeg
import torch
from ray.util.state import list_actors

from kp_ray.config.schema import Config
from kp_ray.data.load import load_annotations
from kp_ray.data.submission import SampleSubmission, read_sample_submission, read_submission
from kp_ray.errors import KpRayError
from kp_ray.keypoints import DACON24
from kp_ray.models.decoding import mirror_detection
from kp_ray.models.presets import build_cfg, build_model
from kp_ray.models.weights import load_member, save_model
from kp_ray.prediction.evaluate import evaluate
from kp_ray.prediction.fuse import write_fused
from kp_ray.prediction.images import ImageRef, list_image_refs
from kp_ray.prediction.predictor import Predictor, _Picture
from kp_ray.prediction.run import PredictionTask, is_finished, predict
from kp_ray.store.plan import plan
from kp_ray.store.write import write_store
from tests.helpers.data import tiny_config

MEMBERS = [{"name": "a", "seed": 1}, {"name": "b", "seed": 2}]
NUM_COPIES = 2
K = len(DACON24)


@pytest.fixture(scope="module")
def trained(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Config:
    """Two members as training begins with them, and a store of which two scenes validate."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(
        sample_data, folder, train={"members": MEMBERS}, split={"fraction": 0.6}, predict={"batch_size": 2}
    )
    write_store(plan(config))
    cfg = build_cfg(config, DACON24, "cpu")
    for member in config.train.members:
        torch.manual_seed(member.seed)
        save_model(build_model(cfg), cfg, config.member_dir(member.name), DACON24)
    return config


def in_folder(trained: Config, run_dir: Path, data: dict[str, Any] | None = None, **section: Any) -> Config:
    """The config of another run folder with the same members and store."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in ("members", "store"):
        (run_dir / name).symlink_to(trained.path(name))
    changed = {**trained.data.model_dump(), **(data or {})}
    return tiny_config(changed, run_dir, train={"members": MEMBERS}, split={"fraction": 0.6}, predict=section)


@pytest.fixture(scope="module")
def many(sample_data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The test frames several times over, under other names, without a form."""
    folder = tmp_path_factory.mktemp("many")
    for copy in range(NUM_COPIES):
        for path in Path(sample_data["test_images"]).iterdir():
            (folder / f"{copy}{path.name}").symlink_to(path)
    return {"test_images": str(folder), "sample_submission": None, "truth": None}


@pytest.fixture(scope="module")
def undisturbed(trained: Config, many: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """`predictions.parquet` of the many images, predicted in one go."""
    config = in_folder(trained, tmp_path_factory.mktemp("undisturbed"), many, batch_size=1)
    predict(config)
    return Path(config.path("predictions.parquet")).read_bytes()


def parts_of(config: Config) -> list[Path]:
    return sorted(Path(config.path("predictions")).rglob("*.parquet"))


def predictor_of(config: Config, members: Sequence[str] = ("a",)) -> Predictor:
    return Predictor(config.to_dict(), members, DACON24.names, config.path("predictions", "test"))


def test_every_image_has_a_row_of_every_member_and_the_submission_is_valid(trained: Config) -> None:
    result = predict(trained)
    form = read_sample_submission(trained.require_input("sample_submission"))
    table = pq.read_table(trained.path("predictions.parquet")).to_pandas()
    assert table[["image", "member"]].to_numpy().tolist() == [[i, m] for i in form.images for m in ("a", "b")]
    assert (table["found"] == (table["score"] >= trained.predict.score_threshold)).all()
    assert (table["num_people"] > 0).tolist() == (table["score"] > 0).tolist()
    a, b = (table[table["member"] == member]["score"].to_numpy() for member in ("a", "b"))
    assert not np.array_equal(a, b), "members of other seeds are other models"
    points = read_submission(trained.path("submission.csv"), form, DACON24, size=None)
    assert np.isfinite(points).all()
    assert result["images"] == len(form.images)
    details = json.loads(Path(trained.path("predict.json")).read_text())
    assert len(details["filled"]) == sum(details["fallbacks"].values()) == result["filled"]
    assert details["people"]["rule"] == "track"
    assert details["took"]["predicted"] == len(form.images)
    assert details["took"]["seconds"] > 0
    assert predict(trained)["predicted"] == 0
    assert json.loads(Path(trained.path("predict.json")).read_text())["took"] == details["took"]


def test_predicting_again_asks_only_about_what_is_missing_or_changed_and_lists_what_is_broken(
    trained: Config, tmp_path: Path
) -> None:
    predict(trained)
    images = tmp_path / "images"
    shutil.copytree(trained.require_input("test_images"), images)
    config = in_folder(trained, tmp_path / "run", {"test_images": str(images)}, batch_size=2)
    shutil.copytree(trained.path("predictions"), config.path("predictions"))
    shutil.copy(trained.path("predictions.parquet"), config.run_dir)
    assert is_finished(config)
    lost, doubled, *_ = parts_of(config)
    asked_again = set(pq.read_table(lost)["image"].to_pylist())
    lost.unlink()
    assert not is_finished(config)
    doubled.with_name(f"copy-{doubled.name}").write_bytes(doubled.read_bytes())
    form = read_sample_submission(config.require_input("sample_submission"))
    broken, gone = [name for name in form.images if name not in asked_again][:2]
    (images / broken).write_bytes(b"no picture")
    (images / gone).unlink()
    result = predict(config)
    assert result["predicted"] == len(asked_again) + 2
    assert result["unusable"] == 2
    whole = pq.read_table(trained.path("predictions.parquet")).to_pylist()
    again = pq.read_table(config.path("predictions.parquet")).to_pylist()
    same = [row for row in again if row["image"] not in (broken, gone)]
    wanted = [row for row in whole if row["image"] not in (broken, gone)]
    assert str(same) == str(wanted), "a part found twice doubles no row"  # NaN, nobody found, equals nothing
    listed = {
        row["image"]: row["reason"] for row in json.loads(Path(config.path("predict.json")).read_text())["unusable"]
    }
    assert "not a picture" in listed[broken]
    assert "no such file" in listed[gone]
    points = read_submission(config.path("submission.csv"), form, DACON24, size=None)  # complete, no zeros
    assert len(points) == len(form.images)
    shutil.copy2(Path(trained.require_input("test_images"), gone), images)
    changed = next(name for name in reversed(form.images) if name not in (broken, gone))
    (images / changed).write_bytes((images / gone).read_bytes())
    missing = [one.image for one in PredictionTask(config).missing()]
    assert missing == [changed, broken], "new ones first; what came back as it was is known"
    other = tiny_config(
        config.data.model_dump(), tmp_path / "run", train={"members": MEMBERS}, predict={"tta": ["flip"]}
    )
    assert len(PredictionTask(other).missing()) == 10, "another setting is another prediction"


DRIVER = """
import os, sys
import ray
from kp_ray.config.load import load_config
from kp_ray.prediction.run import predict

def progress(done, total):
    if done >= 3:
        os.kill(os.getpid(), 9)

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
predict(load_config(sys.argv[2]), progress)
"""


@pytest.mark.slow
def test_after_a_killed_driver_only_the_rest_is_predicted_and_a_killed_actor_costs_no_row(
    trained: Config, many: dict[str, Any], undisturbed: bytes, tmp_path: Path
) -> None:
    config = in_folder(trained, tmp_path / "run", many, batch_size=1)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", DRIVER, address, str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not Path(config.path("predictions.parquet")).exists()
    finished = len(parts_of(config))
    assert 3 <= finished < 10 * NUM_COPIES
    killed: list[int] = []

    def kill_one(done: int, total: int) -> None:
        if not killed and done >= 2:
            actors = list_actors(address=address, filters=[("state", "=", "ALIVE")], detail=True)
            killed.extend(actor.pid for actor in actors if "Predictor" in actor.class_name)
            os.kill(killed[0], signal.SIGKILL)

    assert predict(config, kill_one)["predicted"] <= 10 * NUM_COPIES - finished
    assert killed
    assert Path(config.path("predictions.parquet")).read_bytes() == undisturbed


NODES = """
import sys
import ray
from ray.cluster_utils import Cluster
from kp_ray.config.load import load_config
from kp_ray.prediction.run import predict

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)

def progress(done, total):
    global second
    if second and len([one for one in ray.nodes() if one["Alive"]]) == 2 and done >= 4:
        cluster.remove_node(second, allow_graceful=False)
        second = None

result = predict(load_config(sys.argv[1]), progress)
print("lost a node:", second is None, "images:", result["images"])
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_lost_node_costs_no_row_and_doubles_none(
    trained: Config, many: dict[str, Any], undisturbed: bytes, tmp_path: Path
) -> None:
    config = in_folder(trained, tmp_path / "run", many, batch_size=1, actors=[2, 2])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-c", NODES, str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert f"lost a node: True images: {10 * NUM_COPIES}" in done.stdout, done.stderr[-3000:]
    assert Path(config.path("predictions.parquet")).read_bytes() == undisturbed


def test_points_that_lead_out_of_their_frame_are_kept_inside(trained: Config, tmp_path: Path) -> None:
    predict(trained)
    config = in_folder(trained, tmp_path / "run")
    table = pq.read_table(trained.path("predictions.parquet"))
    far = pa.array((np.array(table["keypoints"].to_pylist()) + 1000).tolist(), table.schema.field("keypoints").type)
    column = table.schema.get_field_index("keypoints")
    pq.write_table(table.set_column(column, "keypoints", far), config.path("predictions.parquet"))
    write_fused(config, {"predicted": 0})
    points = read_submission(
        config.path("submission.csv"), read_sample_submission(config.require_input("sample_submission")), DACON24
    )
    assert (points == [319, 179]).all()


def test_evaluation_scores_the_ensemble_and_each_member(trained: Config) -> None:
    predict(trained)
    evaluation = evaluate(trained)
    assert json.loads(Path(trained.path("evaluation.json")).read_text()) == json.loads(json.dumps(evaluation))
    assert set(evaluation["members"]) == {"a", "b"}
    form = read_sample_submission(trained.require_input("sample_submission"))
    points = read_submission(trained.path("submission.csv"), form, DACON24, size=None)
    truth = load_annotations(trained.require_input("truth"))
    wanted = truth.keypoints[[truth.images.index(image) for image in form.images], :, :2]
    assert evaluation["rmse"] == pytest.approx(float(np.sqrt(np.mean((points - wanted) ** 2))))
    low, high = evaluation["rmse_interval"]
    assert low <= evaluation["rmse"] <= high
    alone = evaluate(trained, submission=trained.path("submission.csv"))
    assert alone["rmse"] == pytest.approx(evaluation["rmse"])


def test_a_truth_in_another_order_of_columns_scores_the_same(trained: Config, tmp_path: Path) -> None:
    """The 24 names are put in order whatever the header; of other names the order is the header's."""
    renamed = {name: f"p{i:02d}" for i, name in enumerate(DACON24.names)}
    skeleton = {"flip_pairs": [["p00", "p01"]], "sigmas": [0.05] * K}
    columns = {f"{name}_{axis}": f"{new}_{axis}" for name, new in renamed.items() for axis in "xy"}
    form = pd.read_csv(trained.require_input("sample_submission")).rename(columns=columns)
    truth = pd.read_csv(trained.require_input("truth")).rename(columns=columns)
    form.to_csv(tmp_path / "form.csv", index=False)
    scores = []
    pairs_of = [list(truth.columns[i : i + 2]) for i in range(1, len(truth.columns), 2)]
    for number, ordered in enumerate((pairs_of, pairs_of[::-1])):
        order = ["image", *(column for pair in ordered for column in pair)]
        truth[order].to_csv(tmp_path / f"truth{number}.csv", index=False)
        shifted = form.assign(
            **{c: truth.set_index("image").loc[form["image"], c].to_numpy() for c in form.columns[1:]}
        )
        shifted[[c for c in form.columns if c.startswith("p03")]] += 24
        shifted.to_csv(tmp_path / "submission.csv", index=False)
        data = {"sample_submission": str(tmp_path / "form.csv"), "truth": str(tmp_path / f"truth{number}.csv")}
        config = tiny_config({**trained.data.model_dump(), **data}, tmp_path / "run", skeleton=skeleton)
        scores.append(evaluate(config, submission=str(tmp_path / "submission.csv"))["by_keypoint"]["p03"]["rmse"])
    assert scores == pytest.approx([24, 24])


def test_a_perfect_submission_scores_zero_and_a_shifted_one_its_shift(trained: Config, tmp_path: Path) -> None:
    table = pd.read_csv(trained.require_input("truth"))
    order = list(read_sample_submission(trained.require_input("sample_submission")).images)
    table = table.set_index("image").loc[order].reset_index()
    table.to_csv(tmp_path / "perfect.csv", index=False)
    assert evaluate(trained, submission=str(tmp_path / "perfect.csv"))["rmse"] == pytest.approx(0)
    table[DACON24.columns] += 3
    table.to_csv(tmp_path / "shifted.csv", index=False)
    assert evaluate(trained, submission=str(tmp_path / "shifted.csv"))["rmse"] == pytest.approx(3)
    table[DACON24.columns] += 400
    table.to_csv(tmp_path / "far.csv", index=False)
    with pytest.raises(KpRayError, match="lies more than 100 px outside the 320x180 frame"):
        evaluate(trained, submission=str(tmp_path / "far.csv"))


def test_another_way_to_fuse_leaves_no_scores_of_the_one_before(trained: Config, tmp_path: Path) -> None:
    predict(trained)
    config = in_folder(trained, tmp_path / "run", {"sample_submission": None})
    for name in ("predictions", "predictions.parquet"):
        (tmp_path / "run" / name).symlink_to(trained.path(name))
    write_fused(config, {"predicted": 0})
    own = evaluate(config, submission=config.path("submission.csv"))
    assert own["rmse"] == pytest.approx(evaluate(config)["rmse"]), "the rows are the folder's, not the truth's"
    write_fused(config, {"predicted": 0})
    assert Path(config.path("evaluation.json")).exists()
    one = config.model_copy(update={"predict": config.predict.model_copy(update={"weights": {"a": 1, "b": 0}})})
    write_fused(one, {"predicted": 0})
    assert not Path(config.path("evaluation.json")).exists()
    short = tmp_path / "short.csv"
    short.write_text("".join(Path(config.path("submission.csv")).read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(KpRayError, match=r"of data\.truth is missing, 1 in all: add its row"):
        evaluate(config, submission=str(short))


def test_weights_are_fitted_on_the_validation_scenes(trained: Config, tmp_path: Path) -> None:
    config = in_folder(trained, tmp_path / "run", weights="fitted", images="store:train", score_threshold=0.0)
    with pytest.raises(KpRayError, match="fitted on store:val"):
        predict(config.model_copy(update={"predict": config.predict.model_copy(update={"images": "store:val"})}))
    result = predict(config)
    told = json.loads(Path(config.path("predict.json")).read_text())["weights"]
    assert told["val_images"] == 8
    assert told["val_scenes"] == 2
    assert told["val_rmse_fitted"] <= told["val_rmse_equal"]
    for point in ("nose", "neck"):
        assert sum(told["weights"][member][point] for member in ("a", "b")) == pytest.approx(1)
    own = evaluate(
        tiny_config(
            {**config.data.model_dump(), "truth": None}, tmp_path / "run", train={"members": MEMBERS},
            predict={"images": "store:train"},
        )
    )  # fmt: skip
    assert own["num_images"] == result["images"] == 4, "a store's split has its own labels"
    given = {"weights": {"a": 1, "b": 0}, "images": "store:val"}
    only_a = tiny_config(config.data.model_dump(), tmp_path / "run", train={"members": MEMBERS}, predict=given)
    predict(only_a)
    first = pq.read_table(only_a.path("predictions.parquet"), filters=[("member", "=", "a")]).to_pylist()
    written = pd.read_csv(only_a.path("submission.csv")).to_numpy()
    found = [i for i, row in enumerate(first) if row["score"] > 0]
    for i in found:
        np.testing.assert_allclose(
            written[i, 1:].astype(float).reshape(-1, 2), np.reshape(first[i]["keypoints"], (-1, 3))[:, :2], atol=1e-9
        )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"c": 1}, "predict.weights: c: is no member; train.members has a, b"),
        ({"a": {"tail": 1}}, "predict.weights: a: tail: is no keypoint"),
        ({"a": 0, "b": {"nose": 0}}, "every member has weight 0 for nose"),
        ({"a": {"nose": -1}}, "predict: weights: a: a weight is 0 or more"),
    ],
)
def test_weights_of_nothing_known_are_refused(
    trained: Config, tmp_path: Path, weights: dict[str, Any], message: str
) -> None:
    with pytest.raises(KpRayError, match=message):
        predict(in_folder(trained, tmp_path / "run", weights=weights))


@pytest.mark.slow
def test_actors_that_never_start_are_one_line(trained: Config, tmp_path: Path) -> None:
    config = in_folder(trained, tmp_path / "run")
    (tmp_path / "run" / "members").unlink()
    shutil.copytree(trained.path("members"), tmp_path / "run" / "members")
    model = Path(config.member_dir("b"), "model_final.pth")
    model.write_bytes(model.read_bytes()[:100_000])
    with pytest.raises(KpRayError, match=r"predicting stopped with 10 images left, .* what is finished is kept"):
        predict(config)


def test_an_actor_that_fits_no_node_is_refused_at_once(trained: Config, tmp_path: Path) -> None:
    for section in ({"gpus_per_actor": 1}, {"cpus_per_actor": 64}):
        with pytest.raises(KpRayError, match=r"no node has .* for an actor: lower predict\.cpus_per_actor"):
            predict(in_folder(trained, tmp_path / next(iter(section)), **section))


def test_members_that_do_not_fit_are_refused_before_any_work(trained: Config, tmp_path: Path) -> None:
    for member in ("a", "b"):
        folder = tmp_path / "members" / member
        folder.mkdir(parents=True)
        for name in ("model_final.pth", "config.yaml"):
            (folder / name).write_bytes(Path(trained.member_dir(member), name).read_bytes())
    cfg = folder / "config.yaml"
    written = cfg.read_text()
    flip = tiny_config(trained.data.model_dump(), tmp_path, train={"members": MEMBERS}, predict={"tta": ["flip"]})
    assert len(PredictionTask(flip).missing()) == 10
    cfg.write_text(written.replace("RANDOM_FLIP: horizontal", "RANDOM_FLIP: none"))
    with pytest.raises(KpRayError, match=r"predict\.tta: flip: member b was trained without flips"):
        predict(flip)
    cfg.write_text(written.replace("NUM_KEYPOINTS: 24", "NUM_KEYPOINTS: 17"))
    with pytest.raises(KpRayError, match="member b predicts 17 keypoints, 24 are asked for"):
        predict(flip)


def test_members_of_the_same_keypoints_in_another_order_are_refused(trained: Config) -> None:
    swapped = (*DACON24.names[1::-1], *DACON24.names[2:])
    with pytest.raises(KpRayError, match="predicts other keypoints than are asked for, or in another order"):
        load_member(trained.member_dir("a"), "cpu", swapped)
    load_member(trained.member_dir("a"), "cpu", DACON24.names)


def test_images_come_from_a_folder_a_list_a_csv_the_form_or_the_store(trained: Config, tmp_path: Path) -> None:
    folder = Path(trained.require_input("test_images"))
    names = sorted(path.name for path in folder.iterdir())
    form = SampleSubmission((names[3], names[1]), ("image", *DACON24.columns))

    def asked(images: str | None, form: SampleSubmission | None = None) -> list[ImageRef]:
        data = trained.data.model_dump()
        values = {"images": images}
        return list_image_refs(tiny_config(data, Path(trained.run_dir), predict=values), form)

    assert [one.image for one in asked(None)] == names
    assert [one.image for one in asked(None, form)] == [names[3], names[1]]
    assert [one.image for one in asked(str(folder), form)] == names
    (tmp_path / "list.txt").write_text(f"{names[2]}\n\n{folder / names[0]}\n")
    by_list = asked(str(tmp_path / "list.txt"))
    assert [(one.image, one.path) for one in by_list] == [
        (names[2], str(folder / names[2])), (str(folder / names[0]), str(folder / names[0])),
    ]  # fmt: skip
    found = (folder / names[0]).stat()
    assert by_list[1].version == f"{found.st_size}:{found.st_mtime_ns}"
    (tmp_path / "list.csv").write_text(f"camera,image\nA,{names[4]}\n")
    assert [one.image for one in asked(str(tmp_path / "list.csv"))] == [names[4]]
    stored = asked("store:train")
    assert len(stored) == 4
    assert all(one.row is not None for one in stored)
    for content, message in [
        ("", "names no picture"), ("a.jpg\na.jpg\n", "a.jpg stands in it 2 times"), ("../a.jpg\n", "leaves the image"),
    ]:  # fmt: skip
        (tmp_path / "wrong.txt").write_text(content)
        with pytest.raises(KpRayError, match=message):
            asked(str(tmp_path / "wrong.txt"))
    (tmp_path / "wrong.csv").write_text("picture\na.jpg\n")
    with pytest.raises(KpRayError, match="there is no column `image`"):
        asked(str(tmp_path / "wrong.csv"))


def test_pictures_of_every_kind_are_predicted_upright_or_told(trained: Config, tmp_path: Path) -> None:
    name = read_sample_submission(trained.require_input("sample_submission")).images[0]
    content = Path(trained.require_input("test_images"), name).read_bytes()
    picture = PIL.Image.open(io.BytesIO(content))
    turned = picture.transpose(PIL.Image.Transpose.ROTATE_90)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    picture.save(tmp_path / "plain.png")
    turned.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    picture.convert("L").save(tmp_path / "grey.jpg", quality=95)
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "whole.jpg").write_bytes(content)
    names = ["whole.jpg", "plain.png", "turned.jpg", "grey.jpg", "cut.jpg"]
    predictor = predictor_of(trained)
    rows = list(predictor.rows([ImageRef(one, str(tmp_path / one), None, "") for one in names]))
    best = {row["image"]: row for row in reversed(rows)}
    assert [(best[one]["width"], best[one]["height"]) for one in names[:4]] == [(320, 180)] * 4
    assert not any(best[one]["reason"] for one in names[:4])
    _, cfg = predictor.members["a"]
    seen = [_Picture((tmp_path / one).read_bytes()).record(cfg, 1.0, False, DACON24)["image"] for one in names[:4]]
    for one in seen[1:3]:
        assert (one.float() - seen[0].float()).abs().mean() < 4, "another kind of file, the same upright picture"
    assert "cut" in best["cut.jpg"]["reason"] or "decoded" in best["cut.jpg"]["reason"]
    assert best["cut.jpg"]["score"] == 0


@pytest.mark.parametrize("tta", [["flip"], ["flip", 0.75, 1.5]])
def test_tta_on_a_mirrored_picture_gives_the_mirrored_answer(trained: Config, tta: list[Any], tmp_path: Path) -> None:
    predictor = predictor_of(in_folder(trained, tmp_path / "run", tta=tta, fallback_threshold=0.0))
    name = read_sample_submission(trained.require_input("sample_submission")).images[0]
    pixels = simplejpeg.decode_jpeg(Path(trained.require_input("test_images"), name).read_bytes(), "RGB")
    pictures = []
    for view in (pixels, pixels[:, ::-1]):
        png = io.BytesIO()
        PIL.Image.fromarray(view).save(png, format="PNG")
        pictures.append(_Picture(png.getvalue()))
    plain, mirrored = predictor.people("a", pictures)
    assert plain
    assert len(plain) == len(mirrored)
    back = [mirror_detection(person, 320, DACON24) for person in mirrored]  # in any order where scores are equal
    score, box, keypoints = min(back, key=lambda person: float(np.abs(person[1] - plain[0][1]).max()))
    assert score == pytest.approx(plain[0][0], abs=1e-5)
    np.testing.assert_allclose(box, plain[0][1], atol=1e-2)
    np.testing.assert_allclose(keypoints, plain[0][2], atol=1e-2)
    without = predictor_of(in_folder(trained, tmp_path / "other", fallback_threshold=0.0)).people("a", pictures[:1])
    nearest = min(np.abs(person[2] - plain[0][2]).max() for person in without[0])
    assert nearest > 0.1, "the other views count"


def test_what_is_missing_is_one_line(tiny: Config) -> None:
    with pytest.raises(KpRayError, match="member a is not trained; run train first"):
        predict(tiny)
    with pytest.raises(KpRayError, match="there are no predictions: run predict first"):
        evaluate(tiny)


PLACES = """
import sys
import ray
from ray.util.state import list_actors
from kp_ray.config.load import load_config
from kp_ray.prediction.run import predict

ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=True, logging_level="ERROR", log_to_driver=False)
seen = []

def look(done, total):
    address = ray.get_runtime_context().gcs_address
    alive = [one for one in list_actors(address=address, detail=True) if one.state == "ALIVE"]
    seen.append(sorted(one.required_resources["GPU"] for one in alive if "GPU" in one.required_resources))

print(predict(load_config(sys.argv[1]), look)["images"], max(seen, key=len))
"""


@pytest.mark.slow
def test_actors_take_the_gpu_share_that_the_config_asks_for(
    trained: Config, many: dict[str, Any], tmp_path: Path
) -> None:
    """Fake GPUs in a cluster of its own: two actors share one GPU; the CPU does the work."""
    config = in_folder(trained, tmp_path / "run", many, gpus_per_actor=0.5, actors=[2, 3], batch_size=2)
    (tmp_path / "gpu.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-c", PLACES, str(tmp_path / "gpu.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip().splitlines()[-1:] == [f"{10 * NUM_COPIES} [0.5, 0.5]"], done.stderr[-2000:]
