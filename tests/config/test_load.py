"""Configs are built from YAML files, overrides and presets, and a mistake is reported with its file and key."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kp_ray.config.load import build_config, load_config, load_run_config
from kp_ray.config.presets import CONFIG_PRESETS, DEFAULT_RECIPES
from kp_ray.config.schema import Config
from kp_ray.errors import ConfigError, KpRayError, StorageError

SHARED_TMP_PATH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
"""Allow a test to use `tmp_path`: all its examples overwrite the same config file."""


def write_config(folder: Path, content: str | bytes) -> str:
    """Write `config.yaml` and return its path."""
    path = folder / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def load_or_refuse(path: str | None, *overrides: str) -> str | None:
    """Load a config; return None, or the message of a KpRayError. Any other error fails the test."""
    try:
        load_config(path, overrides)
    except KpRayError as error:
        return str(error)
    return None


def refusal_message(path: str | None, *overrides: str) -> str:
    """Load a config that is refused; return the message of the ConfigError."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_a_config_reads_back_from_its_yaml(tmp_path: Path) -> None:
    text = "preset: dacon\nrun_dir: läufe/eins\ndata: {annotations: a.csv}\ntrain: {members: [{name: ä}]}\n"
    config = load_config(write_config(tmp_path, text), ["model.cfg.MODEL.RPN.NMS_THRESH=0.5", "predict.tta=[flip]"])
    loaded_config = load_config(write_config(tmp_path, config.to_yaml()))
    assert loaded_config == config
    assert loaded_config.to_yaml() == config.to_yaml()


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from(DEFAULT_RECIPES), max_size=5),
    st.floats(0, 0.99),
    st.sets(st.text("abcdefg-_ é", min_size=1, max_size=5), min_size=1, max_size=4),
    st.sampled_from([None, *CONFIG_PRESETS]),
)
@SHARED_TMP_PATH
def test_any_config_reads_back_from_its_yaml(
    tmp_path: Path, seed: int, recipes: list[str], fraction: float, names: set[str], preset: str | None
) -> None:
    values = {
        "seed": seed,
        "preset": preset,
        "split": {"fraction": fraction},
        "augment": {"recipes": recipes},
        "train": {"members": [{"name": name} for name in sorted(names)]},
    }
    config = build_config(values)
    assert load_config(write_config(tmp_path, config.to_yaml())) == config


def test_overrides_win_over_the_file_and_the_file_over_its_preset(tmp_path: Path) -> None:
    text = "preset: dacon\ntrain: {base_lr: 0.5, gamma: 0.25}\nmodel: {cfg: {MODEL.RPN.X: 1}}\n"
    config = load_config(write_config(tmp_path, text), ["train.gamma=0.75", "train.gamma=0.125"])
    assert config.train.max_iter == CONFIG_PRESETS["dacon"]["train"]["max_iter"]
    assert (config.train.base_lr, config.train.gamma) == (0.5, 0.125)
    assert config.model.cfg == {"MODEL.RPN.X": 1, **CONFIG_PRESETS["dacon"]["model"]["cfg"]}
    assert load_config(None, ["train.max_iter=7", "preset=dacon"]).train.max_iter == 7


def test_an_empty_section_has_the_values_of_the_preset(tmp_path: Path) -> None:
    path = write_config(tmp_path, "preset: demo\ntrain:\n  # max_iter: 5\ntune:\n")
    assert load_config(str(path)).train == load_config(None, ["preset=demo"]).train
    with pytest.raises(ConfigError, match=r"train: .* \(got None\)"):
        load_config(str(path), ["train=null"])


def test_an_override_can_take_the_preset_away(tmp_path: Path) -> None:
    assert load_config(write_config(tmp_path, "preset: demo"), ["preset=null"]) == Config()


def test_an_empty_mapping_replaces_a_setting_and_another_mapping_is_merged(tmp_path: Path) -> None:
    text = "preset: dacon\ntune: {recipes: {few: [Original]}}\npredict: {weights: {a: 2}}\nmodel: {cfg: {}}\n"
    path = write_config(tmp_path, text)
    assert load_config(path).model.cfg == {}
    config = load_config(path, ["tune.recipes={}", "predict.weights={b: 3}", "model.cfg.MODEL.RPN.X=1"])
    assert (config.tune.recipes, config.predict.weights) == ({}, {"a": 2, "b": 3})
    assert config.model.cfg == {"MODEL.RPN.X": 1}


def test_another_preset_for_a_saved_configuration_is_refused(tmp_path: Path) -> None:
    saved_path = write_config(tmp_path, load_config(None, ["preset=demo"]).to_yaml())
    with pytest.raises(ConfigError, match=r"^--set preset=best: .* is a saved configuration, .*: use the file from"):
        load_config(str(saved_path), ["preset=best"])
    own_path = write_config(tmp_path, "preset: demo")
    assert load_config(str(own_path), ["preset=best"]).model.preset == "x101"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("truin: {}", "truin: unknown key; did you mean train?"),
        ("train: {max_iters: 3}", "train.max_iters: unknown key; did you mean max_iter?"),
        ("train: {members: [{name: a, sead: 1}]}", "train.members.0.sead: unknown key; did you mean seed?"),
        ("zzz: 1", "zzz: unknown key: delete it, or correct its name"),
        ('"two\\nlines": 1', "two lines: unknown key"),
        ("1: 2", "1: Keys should be strings"),
        ("seed: first", "seed: Input should be a valid integer, unable to parse string as an integer (got 'first')"),
        ("seed: -1", "(got -1)"),
        ("seed: 4294967296", "(got 4294967296)"),
        ("train: {base_lr: fast}", "train.base_lr: "),
        ("train: {base_lr: .inf}", "train.base_lr: Input should be a finite number (got inf)"),
        ("skeleton: {sigmas: [.nan]}", "skeleton.sigmas.0: Input should be a finite number (got nan)"),
        ("split: {by: scnee}", "split.by: Input should be 'scene', 'clip' or 'frame' (got 'scnee')"),
        ("preset: dakon", "preset: Input should be 'demo', 'dacon' or 'best' (got 'dakon')"),
        ("train: {recipes: Original}", "train.recipes: Input should be a valid tuple (got 'Original')"),
        ("tune: {gamma: [0.9, 0.1]}", "tune.gamma: not a range (got [0.9, 0.1]): set [low, high] with 0 < low <= high"),
        (
            "predict: {actors: [4, 1]}",
            "predict.actors: [smallest, largest] is expected (got [4, 1]): exchange the numbers",
        ),
        (
            "predict: {gpus_per_actor: 1.5}",
            "predict.gpus_per_actor: Ray takes 0, a share of 0.01 to 1, or a whole number",
        ),
        ("predict: {gpus_per_actor: 0.001}", "(got 0.001): "),
        ("train: {members: []}", "train.members: name at least one"),
        ("train: {num_workers: {min: 3, max: 2}}", "train.num_workers.min: is more than max (got 3 and 2): lower it"),
        ("predict: {weights: {a: {nose: few}}}", "predict.weights.a.nose: Input should be a valid number, unable"),
        ("predict: {weights: few}", "predict.weights: Input should be 'equal'; or: Input should be a valid dictionary"),
        ("predict: {tta: [flop]}", "predict.tta.0: Input should be 'flip'; or: Input should be a valid number"),
        ("predict: {tta: [flip, flip]}", "predict.tta: a view is listed twice, or 1, which is always there"),
        ("predict: {tta: [1]}", "predict.tta: a view is listed twice, or 1"),
        ("predict: {images: store:test}", "predict.images: the store has no such split (got store:test): set store:t"),
        ("tune: {points: [{gamma: [1]}]}", "tune.points.0.gamma: Input should be a valid boolean; or: Input"),
        ("train: {num_workers: few}", "train.num_workers: Input should be a valid integer"),
        (
            "train: {members: [{name: a}, {name: b}, {name: a}]}",
            "train.members: two members share a name: a, b, a: rename one",
        ),
        ("train: {members: [{name: ensemble}]}", "members: `ensemble` names the fused result"),
        ("run_dir: ''", "run_dir: a path is expected"),
        ("data: {images: ''}", "data.images: a path is expected (got '')"),
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
def test_a_mistake_in_the_file_is_reported_in_a_short_message_that_begins_with_its_path(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = write_config(tmp_path, text)
    error = refusal_message(path)
    assert error.startswith(f"{path}: ")
    assert message in error
    assert len(error) < len(path) + 300


@pytest.mark.parametrize(
    ("override", "message"),
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
def test_a_mistake_in_an_override_is_reported_with_its_key(override: str, message: str) -> None:
    assert message in refusal_message(None, override)


def test_the_first_of_several_mistakes_is_reported_and_the_others_are_counted(tmp_path: Path) -> None:
    assert refusal_message(write_config(tmp_path, "seed: x\nsplit: {by: y}\nzzz: 1")).endswith("(and 2 more)")


@pytest.mark.parametrize("bucket", ["bucket", "b" * 200])
def test_credentials_in_a_path_are_refused_and_not_repeated(bucket: str) -> None:
    message = refusal_message(None, f"run_dir=s3://a-key:a-secret@{bucket}/run")
    assert message.startswith("config: run_dir: ")
    assert "credentials belong in the environment" in message
    assert "a-key" not in message
    assert "a-secret" not in message


def test_the_message_about_a_missing_file_or_a_folder_begins_with_its_path(tmp_path: Path) -> None:
    for path in (str(tmp_path / "nowhere" / "config.yaml"), str(tmp_path)):
        with pytest.raises(StorageError) as caught:
            load_config(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_a_run_folder_that_was_moved_becomes_the_run_dir_of_its_config(tmp_path: Path) -> None:
    build_config({"run_dir": str(tmp_path / "before"), "seed": 7}).save()
    (tmp_path / "before").rename(tmp_path / "after")
    config = load_run_config(str(tmp_path / "after"), ["train.max_iter=3"])
    assert (config.run_dir, config.seed, config.train.max_iter) == (str(tmp_path / "after"), 7, 3)
    assert load_run_config(str(tmp_path / "after" / "config.yaml")).run_dir == str(tmp_path / "before")


def test_a_repeated_key_is_refused_and_merged_keys_are_not(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train: {max_iter: 500}\nseed: 1\ntrain: {base_lr: 0.01}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: not valid YAML: the key train is there twice .*line 3"):
        load_config(str(path))
    with pytest.raises(ConfigError, match=r"^--set train=.*the key seed is there twice"):
        load_config(None, ["train={seed: 1, seed: 2}"])
    path.write_text("tune: &base {max_iter: 3, eval_period: 1}\ntrain: {<<: *base, max_iter: 5}\n")
    config = load_config(str(path))
    assert (config.train.max_iter, config.train.eval_period, config.tune.max_iter) == (5, 1, 3)


def test_a_folder_that_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{tmp_path}: holds no config\.yaml: name another run folder, or a config"):
        load_run_config(str(tmp_path))


def test_a_run_folder_may_have_any_character_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "läufe \U0001f680"
    build_config({"run_dir": str(folder)}).save()
    assert load_run_config(str(folder)).run_dir == str(folder)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "{}", "\ufeffseed: 42"])
def test_an_empty_file_and_a_byte_order_mark_are_accepted(tmp_path: Path, text: str) -> None:
    assert load_config(write_config(tmp_path, text)) == Config()


def test_a_detectron2_option_keeps_the_dots_in_its_name() -> None:
    config = load_config(
        None, ["model.cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE=64", "model.cfg.INPUT.MIN_SIZE_TRAIN=[640, 800]"]
    )
    assert config.model.cfg == {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 64, "INPUT.MIN_SIZE_TRAIN": [640, 800]}


def test_values_of_overrides_are_yaml() -> None:
    overrides = [
        "train.base_lr=1e-3",
        "augment.recipes=[Original]",
        "data.images=null",
        "train.flip=false",
        " seed = 3 ",
    ]
    config = load_config(None, overrides)
    assert config.train.base_lr == 0.001
    assert config.augment.recipes == ("Original",)
    assert config.data.images is None
    assert config.train.flip is False
    assert config.seed == 3


# Any input is accepted, or refused with an error for the user.

KEYS = st.sampled_from(
    [*Config.model_fields, "annotations", "members", "name", "base_lr", "cfg", "user_recipes", "steps"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4) | st.integers(), inner),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
@settings(SHARED_TMP_PATH, max_examples=150)
def test_any_settings_are_accepted_or_refused_with_the_path_of_their_file(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    path = write_config(tmp_path, yaml.safe_dump(values))
    message = load_or_refuse(path)
    assert message is None or message.startswith(f"{path}: ")


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")))
@example(b"&a [*a]")
@example(b"data: &a {annotations: *a}")
@example(b'"\\ud800": 1')
@settings(SHARED_TMP_PATH, max_examples=300)
def test_any_bytes_are_accepted_or_refused_with_the_path_of_their_file(tmp_path: Path, content: bytes) -> None:
    path = write_config(tmp_path, content)
    message = load_or_refuse(path)
    assert message is None or message.startswith(f"{path}: ")


@given(st.text(max_size=12), st.text("[]{}:,-&*!|>'\"%@` 0x_ab\n", max_size=12))
@settings(max_examples=200)
def test_any_override_is_accepted_or_refused_with_an_error_for_the_user(key: str, value: str) -> None:
    for override in (f"{key}={value}", f"seed={value}", key):
        load_or_refuse(None, override)
