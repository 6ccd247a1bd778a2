"""The configuration: what is taken, what is refused and how it says so."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kp_ray.config.load import build_config, load_config
from kp_ray.config.presets import CONFIG_PRESETS, DEFAULT_RECIPES
from kp_ray.config.schema import Config
from kp_ray.errors import KpRayError, StorageError, shorten
from kp_ray.storage import exists, filesystem, join, read_bytes, write_bytes


def test_a_printed_message_is_one_line_of_bounded_length_whatever_it_quotes() -> None:
    assert str(KpRayError("a\n b")) == "a b"
    long = shorten(KpRayError("file.csv: " + "x" * 10**6 + " fix"))
    assert len(long) < 1100
    assert (long[:10], long[-4:]) == ("file.csv: ", " fix")


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(KpRayError, match="a path is expected"):
        filesystem("")


in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refused(path: str | None, *overrides: str) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(KpRayError) as raised:
        load_config(path, overrides)
    line = str(raised.value)
    assert len(line.splitlines()) == 1
    return line


def complaint(path: str | None, *overrides: str) -> str | None:
    """What `load` says when it refuses; None when it takes them."""
    try:
        assert isinstance(load_config(path, overrides), Config)
    except KpRayError as error:
        return str(error)
    return None


def test_no_file_gives_the_defaults_with_absolute_paths() -> None:
    config = load_config(None)
    assert config == Config()
    assert config.run_dir == os.path.abspath("runs/first")
    assert config.path("store", "manifest.json") == f"{config.run_dir}/store/manifest.json"
    assert config.member_dir("a") == f"{config.run_dir}/members/a"


def test_what_is_written_as_yaml_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(
        written(
            tmp_path, "preset: dacon\nrun_dir: läufe/eins\ndata: {annotations: a.csv}\ntrain: {members: [{name: ä}]}\n"
        ),
        ["model.cfg.MODEL.RPN.NMS_THRESH=0.5", "predict.tta=[flip]"],
    )
    again = load_config(written(tmp_path, config.to_yaml()))
    assert again == config
    assert again.to_yaml() == config.to_yaml()


@pytest.mark.parametrize(
    ("given", "message"),
    [({"min": 4, "max": 1}, "min 4 is more than max 1"), ({"min": 1}, "max: Field required"), (0, "greater than or")],
)
def test_a_wrong_number_of_workers_is_told_in_its_own_words(given: Any, message: str) -> None:
    with pytest.raises(KpRayError, match=f"train.num_workers.*{message}"):
        build_config({"train": {"num_workers": given}})
    assert build_config({"train": {"num_workers": {"min": 1, "max": 3}}}).train.worker_range == (1, 3)
    assert build_config({"train": {"num_workers": 3}}).train.worker_range == (3, 3)


def test_a_worker_rebuilds_the_config_from_plain_values() -> None:
    config = load_config(None, ["preset=demo", "train.members=[{name: x, recipes: [Original]}]"])
    values = config.to_dict()
    assert build_config(values) == config
    assert yaml.safe_load(yaml.safe_dump(values)) == values


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from(DEFAULT_RECIPES), max_size=5),
    st.floats(0, 0.99),
    st.sets(st.text("abcdefg-_ é", min_size=1, max_size=5), min_size=1, max_size=4),
    st.sampled_from([None, *CONFIG_PRESETS]),
)
@in_one_folder
def test_any_config_survives_the_file(
    tmp_path: Path, seed: int, recipes: list[str], fraction: float, names: set[str], preset: str | None
) -> None:
    values = {
        "seed": seed, "preset": preset, "split": {"fraction": fraction}, "augment": {"recipes": recipes},
        "train": {"members": [{"name": name} for name in sorted(names)]},
    }  # fmt: skip
    config = build_config(values)
    assert load_config(written(tmp_path, config.to_yaml())) == config


def test_the_file_lies_above_the_preset_and_overrides_above_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "preset: dacon\ntrain: {base_lr: 0.5, gamma: 0.25}\nmodel: {cfg: {MODEL.RPN.X: 1}}\n")
    config = load_config(path, ["train.gamma=0.75", "train.gamma=0.125"])
    assert config.train.max_iter == CONFIG_PRESETS["dacon"]["train"]["max_iter"]
    assert (config.train.base_lr, config.train.gamma) == (0.5, 0.125)
    assert config.model.cfg == {"MODEL.RPN.X": 1, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 256}
    assert load_config(None, ["train.max_iter=7", "preset=dacon"]).train.max_iter == 7


def test_dacon_is_the_published_recipe() -> None:
    config = load_config(None, ["preset=dacon"])
    assert (config.seed, config.split.seed) == (423, 42)
    assert (config.model.preset, config.model.weights) == ("x101", "zoo")
    assert config.model.cfg["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE"] == 256
    train = config.train
    assert (train.base_lr, train.max_iter, train.gamma, train.ims_per_batch) == (0.001, 10000, 0.8, 2)
    assert train.steps == (3000, 4000, 5000, 6000, 7000, 8000)
    assert (train.schedule, train.optimizer, train.eval_period) == ("multistep", "sgd", 5000)
    assert config.predict.score_threshold == 0.7
    assert len(config.augment.recipes) == 18


@pytest.mark.parametrize("preset", CONFIG_PRESETS)
def test_every_preset_is_a_config(preset: str) -> None:
    assert load_config(None, [f"preset={preset}"]).preset == preset


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("truin: {}", "truin: unknown key; did you mean train?"),
        ("train: {max_iters: 3}", "train.max_iters: unknown key; did you mean max_iter?"),
        ("train: {members: [{name: a, sead: 1}]}", "train.members.0.sead: unknown key; did you mean seed?"),
        ("zzz: 1", "zzz: unknown key"),
        ('"two\\nlines": 1', "two lines: unknown key"),
        ("1: 2", "1: Keys should be strings"),
        ("seed: first", "seed: Input should be a valid integer, unable to parse string as an integer (got 'first')"),
        ("seed: -1", "(got -1)"),
        ("seed: 4294967296", "(got 4294967296)"),
        ("train: {base_lr: fast}", "train.base_lr: "),
        ("train: {base_lr: .inf}", "train.base_lr: Input should be a finite number (got inf)"),
        ("skeleton: {sigmas: [.nan]}", "skeleton.sigmas.0: Input should be a finite number (got nan)"),
        ("split: {by: scnee}", "split.by: Input should be 'scene', 'clip' or 'frame' (got 'scnee')"),
        ("split: null", "split: "),
        ("preset: dakon", "preset: Input should be 'demo' or 'dacon' (got 'dakon')"),
        ("train: {recipes: Original}", "train.recipes: Input should be a valid tuple (got 'Original')"),
        ("tune: {gamma: [0.9, 0.1]}", "tune: gamma: a range is [low, high]"),
        ("predict: {actors: [4, 1]}", "predict: actors: [smallest, largest] expected, got [4, 1]"),
        ("train: {members: []}", "members: name at least one"),
        ("train: {members: [{name: a}, {name: b}, {name: a}]}", "two members share a name: a, b, a"),
        ("train: {members: [{name: ensemble}]}", "members: `ensemble` names the fused result"),
        ("run_dir: ''", "run_dir: a path is expected"),
        ("data: {images: ''}", "data.images: a path is expected, or null for none"),
        ('run_dir: "a\\0b"', "run_dir: a path is expected"),
        (f"seed: {'x' * 5000}", "seed: "),
        ("- a\n- b", "a mapping of settings is expected"),
        ("just text", "a mapping of settings is expected"),
        ("a: [1", "not valid YAML"),
        ("seed: 1\n---\nseed: 2", "not valid YAML"),
        ("seed: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("run_dir: 2001-99-99", "not valid YAML: month must be in 1..12"),
        ("seed: 0x_", "not valid YAML"),
        (b"seed: \xff", "not valid YAML"),
        ("a: " + "[" * 1100, "not valid YAML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_file_key_and_value(
    tmp_path: Path, text: str | bytes, told: str
) -> None:
    path = written(tmp_path, text)
    line = refused(path)
    assert line.startswith(f"{path}: ")
    assert told in line
    assert len(line) < len(path) + 300


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed", "--set seed: expected KEY=VALUE"),
        ("=1", "--set =1: expected KEY=VALUE"),
        ("train..gamma=1", "--set train..gamma=1: expected KEY=VALUE"),
        ("model.cfg.=1", "expected KEY=VALUE"),
        ("seed=[", "--set seed=[: the value is not YAML"),
        ("run_dir=2001-99-99", "the value is not YAML: month must be in 1..12"),
        ("train.max_iter=few", "train.max_iter: Input should be a valid integer"),
        ("train.maxiter=1", "train.maxiter: unknown key; did you mean max_iter?"),
        ("seed.x=1", "seed: Input should be a valid integer (got {'x': 1})"),
        ("a\nb=1", "a b: unknown key"),
    ],
)
def test_a_mistake_in_an_override_is_one_line(override: str, told: str) -> None:
    assert told in refused(None, override)


def test_several_mistakes_are_counted(tmp_path: Path) -> None:
    assert refused(written(tmp_path, "seed: x\nsplit: {by: y}\nzzz: 1")).endswith("(and 2 more)")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere" / "config.yaml")
    assert refused(path) == f"{path}: there is no such file"
    assert refused(str(tmp_path)).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize("text", ["", "# only a remark\n", "{}", "\ufeffseed: 42"])
def test_an_empty_file_and_a_byte_order_mark_are_fine(tmp_path: Path, text: str) -> None:
    assert load_config(written(tmp_path, text)) == Config()


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "/root", "a\\b", ".hidden", "a\0b", "a\nb"])
def test_a_name_that_becomes_a_folder_cannot_climb_out(name: str) -> None:
    with pytest.raises(KpRayError, match="cannot name a folder"):
        build_config({"train": {"members": [{"name": name}]}})
    with pytest.raises(KpRayError, match="cannot name a folder"):
        build_config({"augment": {"user_recipes": {name: {"transform": {}}}}})


def test_a_detectron2_option_keeps_its_dots() -> None:
    config = load_config(
        None, ["model.cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE=64", "model.cfg.INPUT.MIN_SIZE_TRAIN=[640, 800]"]
    )
    assert config.model.cfg == {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 64, "INPUT.MIN_SIZE_TRAIN": [640, 800]}


def test_overrides_are_yaml_values() -> None:
    sets = ["train.base_lr=1e-3", "augment.recipes=[Original]", "data.images=null", "train.flip=false", " seed = 3 "]
    config = load_config(None, sets)
    assert config.train.base_lr == 0.001
    assert config.augment.recipes == ("Original",)
    assert config.data.images is None
    assert config.train.flip is False
    assert config.seed == 3


def test_local_paths_are_made_absolute_and_urls_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    config = build_config(
        {
            "run_dir": "s3://bucket/run", "data": {"annotations": "a/../b.csv", "images": "~/frames"},
            "model": {"weights": "start.pth"},
            "train": {"members": [{"name": "a", "weights": "own.pth"}, {"name": "b", "weights": "zoo"}]},
        }
    )  # fmt: skip
    assert config.run_dir == "s3://bucket/run"
    assert config.path("store") == "s3://bucket/run/store"
    assert config.data.annotations == f"{tmp_path}/b.csv"
    assert config.data.images == "/home/somebody/frames"
    assert config.model.weights == f"{tmp_path}/start.pth"
    assert [member.weights for member in config.train.members] == [f"{tmp_path}/own.pth", "zoo"]
    assert build_config({"model": {"weights": "zoo"}}).model.weights == "zoo"


def test_an_input_that_is_not_set_names_its_key() -> None:
    with pytest.raises(KpRayError, match=r"data\.images is not set: add it to the config, or --set data\.images=PATH"):
        Config().require_input("images")
    assert build_config({"data": {"images": "/frames"}}).require_input("images") == "/frames"


def test_nothing_can_be_changed_afterwards() -> None:
    config = Config()
    for section, key in ((config, "seed"), (config.train, "max_iter"), (config.train.members[0], "name")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, key, getattr(section, key))


KEYS = st.sampled_from(
    [*Config.model_fields, "annotations", "members", "name", "base_lr", "cfg", "user_recipes", "steps"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4) | st.integers(), inner),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
@settings(in_one_folder, max_examples=150)
def test_settings_of_any_kind_are_taken_or_refused_in_one_line(tmp_path: Path, values: dict[str, Any]) -> None:
    path = written(tmp_path, yaml.safe_dump(values))
    said = complaint(path)
    assert said is None or (said.startswith(f"{path}: ") and len(said.splitlines()) == 1)


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")))
@example(b"&a [*a]")
@example(b"data: &a {annotations: *a}")
@example(b'"\\ud800": 1')
@settings(in_one_folder, max_examples=300)
def test_a_file_of_any_content_is_taken_or_refused(tmp_path: Path, content: bytes) -> None:
    path = written(tmp_path, content)
    said = complaint(path)
    assert said is None or (said.startswith(f"{path}: ") and len(said.splitlines()) == 1)


@given(st.text(max_size=12), st.text("[]{}:,-&*!|>'\"%@` 0x_ab\n", max_size=12))
@settings(deadline=None, max_examples=200)
def test_an_override_of_any_text_is_taken_or_refused(key: str, value: str) -> None:
    for override in (f"{key}={value}", f"seed={value}", key):
        said = complaint(None, override)
        assert said is None or len(said.splitlines()) == 1


def test_a_write_makes_its_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = str(tmp_path / "a" / "b" / "file.txt")
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert read_bytes(path) == b"two"
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["file.txt"]


def test_a_write_that_fails_keeps_the_old_file_and_no_partial(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_bytes(str(path), "not bytes")  # type: ignore[arg-type]
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="folder"):
        write_bytes(str(tmp_path / "folder"), b"new")
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.txt", "folder"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    write_bytes(str(path), b"old" * 1000)
    with path.open("rb") as opened_before:
        write_bytes(str(path), b"new" * 500)
        assert opened_before.read() == b"old" * 1000
    assert path.read_bytes() == b"new" * 500


def test_a_url_and_a_local_path_name_the_same_file(tmp_path: Path) -> None:
    write_bytes(f"file://{tmp_path}/x/y.txt", b"content")
    assert read_bytes(str(tmp_path / "x" / "y.txt")) == b"content"
    assert exists(f"file://{tmp_path}/x/y.txt")
    assert not exists(str(tmp_path / "z"))
    assert join("s3://bucket/run/", "a", "b") == "s3://bucket/run/a/b"


def test_a_url_of_an_unknown_kind_is_one_line() -> None:
    with pytest.raises(KpRayError, match="foo://x: cannot be reached") as raised:
        filesystem("foo://x")
    assert len(str(raised.value).splitlines()) == 1
