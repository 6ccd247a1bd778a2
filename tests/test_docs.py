"""Commands, files, links and settings that the README and the docs name exist, and their Python code runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

from kp_ray.augmentation.recipes import RECIPES
from kp_ray.cli.main import app
from kp_ray.config.load import load_config
from kp_ray.config.reference import config_reference
from kp_ray.config.schema import Config
from kp_ray.keypoints import DACON24
from tests.helpers.data import ROOT
from tests.helpers.stores import write_small_store

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
VERBS: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
UsageError = typer.BadParameter.__mro__[1]  # not `click.UsageError`: Typer bundles a Click of its own


def code_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield (language, content) of each fenced or indented code block of a page; a block without a language has ""."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    unfenced = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.findall(r"(?:^ {4}.*\n)+", unfenced, re.MULTILINE):
        yield "", re.sub(r"^ {4}", "", block, flags=re.MULTILINE)


def find_commands(text: str) -> list[list[str]]:
    """Return the words of every command on a page, in code blocks and in running text, without comments."""
    lines = [line for _, block in code_blocks(text) for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    prefixes = ("kp-ray ", "make ", "python ", "python3 ", "ray ", "RAY_AUTH_MODE=token ray ")
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in lines if line.startswith(prefixes)]


COMMANDS = [
    pytest.param(words, id=f"{page.stem}-{' '.join(words)[:60]}")
    for page in PAGES
    for words in find_commands(page.read_text(encoding="utf-8"))
]


def parse_command(words: list[str]) -> click.Context:
    """Parse `kp-ray VERB ...` as the command line does, without running it."""
    verb = VERBS.get(words[1])
    assert verb is not None, f"no such verb: {words[1]}"
    is_mention = len(words) == 2  # text that speaks of a verb leaves out its arguments
    return verb.make_context(words[1], list(words[2:]), resilient_parsing=is_mention)


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_exists(words: list[str]) -> None:
    check_command(words)


def check_command(words: list[str]) -> None:
    """Fail if a command names a verb, option, setting, make target, script or Ray command that does not exist."""
    words = [word for word in words if not re.fullmatch(r"RAY_\w+=\S+", word)]
    if words[0] == "kp-ray":
        words = [words[0], *(word for word in words[1:] if word not in ("-q", "-v"))]
        if words[1] in ("--help", "--version", "--install-completion", "--show-completion", "VERB"):
            return
        context = parse_command(words)
        settings = [
            setting
            for setting in context.params.get("overrides") or ()
            if not any(mark in setting for mark in ("$(", "KEY="))  # shell commands and placeholders
        ]
        load_config(None, settings)
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:2]) <= set(targets)
    elif words[0].startswith("python"):
        scripts = [word for word in words if word.endswith(".py")]
        assert all((ROOT / script).is_file() for script in scripts)
    else:
        scripts = [word for word in words if word.endswith(".py")]
        assert all((ROOT / script).is_file() for script in scripts)
        from ray.scripts.scripts import cli as ray_cli

        assert words[1].split()[0] in ray_cli.commands


@pytest.mark.parametrize("line", ["kp-ray show x --recipes R", "kp-ray trian x", "kp-ray show --num 3", "make tests"])
def test_a_command_that_does_not_exist_is_detected(line: str) -> None:
    with pytest.raises((UsageError, AssertionError)):
        check_command(find_commands(f"    {line}\n")[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text)
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
    paths = re.findall(r"`((?:kp_ray|jobs|tests|benchmarks|docs|\.ci)/[\w./{},<>*-]+|[A-Z]\w+file|\w+\.toml)`", text)
    exact_paths = [path.rstrip("/") for path in paths if not set(path) & set("{}<>*")]
    assert [path for path in exact_paths if not (ROOT / path).exists()] == []


def setting_names(section: type[Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings of a config section."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            yield from setting_names(field.annotation, f"{prefix}{name}.")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_a_page_names_exist(page: Path) -> None:
    settings = set(setting_names(Config))
    sections = "|".join(
        name for name, field in Config.model_fields.items() if hasattr(field.annotation, "model_fields")
    )
    names = re.findall(rf"`((?:{sections})\.\w+)(?=[`:.= ])", page.read_text(encoding="utf-8"))
    files = ("train.py", "tune.py", "augment.py", "predict.py", "predict.json", "augment.json", "cluster.yaml")
    assert [name for name in names if name not in settings and name not in files] == []


PYTHON_BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(
        block for language, block in code_blocks(page.read_text(encoding="utf-8")) if language in ("python", "py")
    )
]


@pytest.mark.parametrize("code", PYTHON_BLOCKS)
def test_python_in_the_docs_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code in a folder that holds a small store at the path that the pages use."""
    write_small_store(tmp_path / "runs" / "demo" / "store")
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE):
        pytest.importorskip(name)
    exec(compile(code, "docs", "exec"), {})


def test_the_flip_indices_of_the_docs_are_those_of_the_skeleton() -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    match = re.search(r"flip_idx: \[([\d, ]+)\]", text)
    assert match
    assert [int(number) for number in match[1].split(",")] == DACON24.flip_indices


def test_the_recipes_page_lists_every_recipe() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    names = set()
    for row in re.findall(r"^\| (`[A-Z].*?) \|", text, re.MULTILINE):
        # A row names several recipes as `RandomCrop_1`, `_2`: the suffixes replace that of the first name.
        base_name, *suffixes = re.findall(r"`(\w+)`", row)
        names |= {base_name, *(base_name.rsplit("_", 1)[0] + suffix for suffix in suffixes)}
    assert names == set(RECIPES)
    assert (ROOT / "docs" / "recipes.jpg").stat().st_size < 300_000


def test_the_configuration_page_is_up_to_date() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert text == config_reference(), "run: python -m kp_ray.config.reference > docs/configuration.md"


def test_the_index_links_every_page() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.parent != ROOT} - {"index.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", text)) == pages


def test_the_readme_is_short_and_quotes_only_measured_figures() -> None:
    """All figures in a row of the README's table are in the results file that the row links."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 120
    rows = [line for line in lines if line.startswith("|") and "](benchmarks/results/" in line]
    assert len(rows) > 5
    for row in rows:
        _, baseline, result, source = row.strip("|").split("|")
        path = re.search(r"\((benchmarks/results/\w+\.md)\)", source)
        assert path, row
        measured_figures = re.findall(r"\d+(?:\.\d+)?", (ROOT / path[1]).read_text(encoding="utf-8"))
        quoted_figures = re.findall(r"\d+(?:\.\d+)?", f"{baseline.rpartition(':')[2]} {result}")
        assert [figure for figure in quoted_figures if figure not in measured_figures] == [], row
