"""The README keeps its word: its commands parse, its numbers stand in results/."""

import json
import re
import shlex

import pytest

from mixjax import recipes
from tests import tiny

TEXT = (tiny.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    line
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if "python -m" in line
]


def arguments(command: str) -> list[str]:
    """What follows "python -m mixjax.main" in a command line."""
    return shlex.split(command.partition("-m mixjax.main ")[2])


@pytest.mark.parametrize("command", [c for c in COMMANDS if "mixjax.main" in c])
def test_commands_parse(command, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    config, _ = recipes.read(arguments(command), workdir=None)
    assert config.batch > 0


@pytest.mark.parametrize("flag", re.findall(r"`(--config\.[^`]*[^`=])`", TEXT))
def test_fields_exist(flag, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    recipes.read(["--config=configs/mae_vitb.py", flag], workdir=None)


def test_the_tests_run_as_the_readme_says():
    (command,) = [c for c in COMMANDS if "pytest" in c]
    assert command in (tiny.ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("path", re.findall(r"\]\(([\w./]+)\)", TEXT))
def test_links_lead_somewhere(path):
    assert (tiny.ROOT / path).exists()


def test_every_recipe_is_listed():
    found = {p.stem for p in (tiny.ROOT / "configs").glob("*.py")}
    listed = set(re.findall(r"\| `configs/(\w+)\.py`", TEXT))
    assert listed == found - set(recipes.NO_RECIPES)


def said(path: str) -> set[str]:
    """The texts that a file of results offers for the README."""
    return set(json.loads((tiny.ROOT / path).read_text())["readme"])


@pytest.mark.parametrize("path", sorted(set(re.findall(r"results/\w+\.json", TEXT))))
def test_numbers_stand_in_results(path):
    """Each sentence that a result has for the README is there, word for word."""
    sentences = said(path)
    assert sentences
    text = " ".join(TEXT.split())
    for sentence in sentences:
        assert sentence in text, f"{path} says {sentence!r}"
