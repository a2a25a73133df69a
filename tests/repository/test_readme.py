"""The README keeps its word: its commands parse, its numbers stand in results/."""

import re
import shlex

import pytest

from mixjax import main
from mixjax.config import recipes
from tests.support import tiny

TEXT = (tiny.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    line
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if "python -m" in line
]


FIELDS = [
    flag
    for flag in re.findall(r"`(--config\.[^`]*)`", TEXT)
    if not flag.endswith("=") and "FIELD" not in flag
]


def arguments(command: str) -> list[str]:
    """What follows "python -m mixjax.main" in a command line."""
    return shlex.split(command.partition("-m mixjax.main ")[2])


@pytest.mark.parametrize("command", [c for c in COMMANDS if "mixjax.main" in c])
def test_commands_parse(command, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    others = dict.fromkeys(main.FLAGS)
    config, _ = recipes.read(arguments(command), explain="", **others)
    assert config.batch > 0


@pytest.mark.parametrize("flag", FIELDS)
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


PARAGRAPHS = [p for p in re.split(r"\n\s*\n", TEXT) if "results/" in p]


@pytest.mark.parametrize("text", PARAGRAPHS, ids=lambda p: p.split("\n")[0][:40])
def test_numbers_stand_in_results(text):
    """Every decimal number of a paragraph is, rounded, one of the files it names."""
    files = re.findall(r"results/\w+\.json", text)
    known = " ".join((tiny.ROOT / file).read_text() for file in files)
    values = [float(x) for x in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", known)]
    for shown in re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", text):
        digits = len(shown.partition(".")[2])
        assert any(f"{x:.{digits}f}" == shown for x in values), shown
