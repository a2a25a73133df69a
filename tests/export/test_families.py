"""Families of encoders: found by their files, each with everything it has to offer."""

import importlib.util
import sys
from pathlib import Path

import pytest

from mixjax.export import check, families, formats, recognise
from tests.support import random_checkpoints

EXPORTED = {m["encoder"]["name"] for m in random_checkpoints.MODELS.values()}


def test_a_family_is_a_file_with_an_encoders_name():
    assert {"vit", "beit", "swin", "resnet"} <= set(families.names())
    for name in families.names():
        path = Path(families.__file__).with_name(f"{name}.py")
        assert importlib.util.find_spec(f"mixjax.export.{name}").origin == str(path)
    assert EXPORTED <= set(families.names())


@pytest.mark.parametrize("name", families.names())
def test_a_family_offers_what_is_asked_of_it(name):
    family = families.find(name)
    assert family.rules.keys() <= formats.TARGETS.keys() - {"npz"}
    assert family.refusals.keys() <= family.rules.keys()
    assert family.torch.keys() <= family.rules.keys()
    assert ("hf" in family.rules) == (family.hf is not None)
    assert ("timm" in family.rules) == bool(family.timm_class)
    assert formats.targets_of(name) == [
        to for to in formats.TARGETS if to in family.rules or to == "npz"
    ]
    mine = [d for d in recognise.dialects() if d.encoder == name]
    assert [(d.title, d.rules) for d in mine] == list(family.dialects)
    for _, rules in family.dialects:
        assert any(
            family.first_kernel in (r.ours + x.ours) for r in rules for x in r.kind
        )


@pytest.mark.parametrize("name", families.names())
def test_a_family_has_a_reference_in_torch(name):
    assert check.default_reference(name)


def test_an_encoder_without_a_family_goes_nowhere():
    assert formats.targets_of("vit_dense") == []
    assert check.default_reference("vit_dense") == ""


CONE = """
from mixjax.export.families import Family
from mixjax.export.name_rules import CONV, Rule
RULES = (Rule("encoder/cone", "first_cone", CONV),)
FAMILY = Family({"timm": RULES}, (("a cone", RULES),), None, "encoder/cone/kernel")
"""


def test_a_new_file_is_all_that_a_new_family_needs(tmp_path, monkeypatch):
    """A copy of two folders' names, and an encoder that only this test has."""
    for folder in ("models", "export"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cone.py").write_text(CONE)
    monkeypatch.setattr(families, "__file__", str(tmp_path / "export" / "families.py"))
    spec = importlib.util.spec_from_file_location(
        "mixjax.export.cone", tmp_path / "export" / "cone.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "mixjax.export.cone", module)
    assert families.names() == ["cone"]
    assert formats.targets_of("cone") == ["timm", "npz"]
    dialect, _ = recognise.recognise({"module.first_cone.weight": None}, "it")
    assert (dialect.title, dialect.encoder) == ("a cone", "cone")
