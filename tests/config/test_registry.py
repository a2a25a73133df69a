"""Config sections to calls: what is wrong is named, with the nearest right word."""

import importlib
import pkgutil

import pytest

from mixjax import errors, methods, mixtures, models, objectives
from mixjax.config import registry
from mixjax.errors import UsageError


def build(*, width, depth=2, mesh, name="unset", parent=None):
    return {"width": width, "depth": depth, "mesh": mesh, "name": name}


def test_load_finds_the_file_of_a_package():
    from mixjax.methods import mae

    assert registry.load(methods, "mae", "method.name") is mae
    assert registry.load("mixjax.methods", "mae", "method.name") is mae


@pytest.mark.parametrize("name", ["mea", "../mae", "__init__", "mae.make", ""])
def test_load_refuses_what_is_no_file(name):
    with pytest.raises(UsageError, match=r"method\.name .* does not exist.*mae"):
        registry.load("mixjax.methods", name, "method.name")


FOLDERS = ("evals", "methods", "mixtures", "models", "objectives")


@pytest.mark.parametrize("folder", FOLDERS)
def test_entries_are_the_files_that_make_something(folder):
    """Read as text, and the same as when every file is imported."""
    package = importlib.import_module(f"mixjax.{folder}")
    files = [m.name for m in pkgutil.iter_modules(package.__path__)]
    modules = {n: importlib.import_module(f"mixjax.{folder}.{n}") for n in files}
    entries = [name for name, file in modules.items() if hasattr(file, "make")]
    assert registry.names(f"mixjax.{folder}") == sorted(entries)


def test_entries_are_listed_without_importing_them(tmp_path, monkeypatch):
    (tmp_path / "shelf").mkdir()
    for name, text in {
        "__init__": "def make(): pass",
        "called": "def make(): pass",
        "class_": "class make: pass",
        "assigned": "make = int",
        "annotated": "make: type = int",
        "without": "def make_mask(): pass",
        "inside": "class A:\n    def make(self): pass",
    }.items():
        code = text if name == "__init__" else f"{text}\nraise RuntimeError"
        (tmp_path / "shelf" / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    wanted = ["annotated", "assigned", "called", "class_"]
    assert registry.names("shelf") == wanted
    with pytest.raises(UsageError, match="section.name 'calld' .* 'called'"):
        registry.load("shelf", "calld", "section.name")
    with pytest.raises(UsageError, match="section.name 'without' does not exist"):
        registry.load("shelf", "without", "section.name")


ENCODER = {"precision": "float32", "encoder": {"name": "heads"}}


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: models.make(ENCODER), r"model\.encoder\.name 'heads'"),
        (lambda: mixtures.make({"a": {"name": "pairs"}}), r"mixtures\.a\.name 'pairs'"),
        (lambda: mixtures.make({"a": {"name": "unmx"}}), "did you mean 'unmix'"),
        (lambda: objectives.make({"name": "mixing"}, clock=None), "objective.name"),
        (lambda: objectives.make({"name": "moko"}, clock=None), "did you mean 'moco'"),
        (lambda: methods.make({"name": "mea"}, None, clock=None), "mean 'mae'"),
    ],
)
def test_a_file_that_makes_nothing_is_no_entry(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_call_passes_fields_and_only_the_context_asked_for():
    made = registry.call("part", build, {"width": 8}, mesh="m", sets="s", check=None)
    assert made == {"width": 8, "depth": 2, "mesh": "m", "name": "unset"}


def test_call_leaves_out_the_name_that_chose_the_function():
    fields = {"name": "build", "width": 8, "depth": 3}
    made = registry.call("part", build, fields, mesh=None)
    assert made["name"] == "unset" and made["depth"] == 3
    assert fields["name"] == "build", "the config must stay as it was"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"width": 8, "widht": 8}, r"part\.widht is not a field.*'width'"),
        (
            {"width": 8, "mesh": 1},
            r"part\.mesh is not a field; known: depth, width",
        ),
        ({"width": 8, "parent": 1}, r"part\.parent is not a field"),
        ({"depth": 8}, r"part\.width is missing"),
    ],
)
def test_call_names_the_wrong_field(fields, message):
    with pytest.raises(UsageError, match=message):
        registry.call("part", build, fields, mesh=None)


def test_call_names_all_that_is_missing():
    with pytest.raises(UsageError, match=r"part\.width and part\.mesh are missing"):
        registry.call("part", build, {})


def test_take_removes_and_names_what_is_missing():
    fields = {"a": 1, "b": 2, "c": 3}
    assert registry.take("part", fields, "c", "a") == [3, 1]
    assert fields == {"b": 2}
    with pytest.raises(UsageError, match=r"part\.a is missing from the config"):
        registry.take("part", fields, "b", "a")
    assert fields == {"b": 2}


@pytest.mark.parametrize(
    "known, end",
    [
        ((), "there are none here."),
        (("mae", "simmim"), "did you mean 'mae'?"),
        (("one", "two"), "known: one, two."),
        (map(str, range(20)), "and 8 more."),
    ],
)
def test_a_sentence_about_an_unknown_name_has_an_end(known, end):
    assert errors.nearest("mea", known).endswith(end)
