"""From a command line to a configuration: a recipe, then --config.FIELD=VALUE."""

import importlib.util
import json
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from mixjax.errors import UsageError, nearest

NO_RECIPES = ("__init__", "common", "masked", "siamese", "detmix", "supervised")
NO_RECIPES += ("dense",)
NO_RECIPES += ("probe", "robustness")  # sections of config.evals, for mixjax.evaluate


def read(argv: list[str], **others: str | None) -> tuple[ConfigDict, dict]:
    """Reads --config=FILE[:ARG], the fields set after it, and the flags in `others`.

    argv: without the program's name; "--name value" equals "--name=value". others: the
    names and defaults of further flags; a flag whose default is "" needs no value.
    Returns the configuration, and the values of `others` and of "config" as text.
    UsageError says in one sentence what is wrong.
    """
    values = {}
    switches = [flag for flag, default in others.items() if default == ""]
    for flag, value in pairs(argv, switches):
        if flag != "config" and flag not in others and not flag.startswith("config."):
            near = nearest(flag, ["config", *others])
            raise UsageError(f"--{flag} is not a flag; {near}")
        values[flag] = value
    if "config" not in values:
        raise UsageError("--config is missing; try --config=configs/quickstart.py.")
    config = load(values["config"])
    fields = {k: v for k, v in values.items() if k.startswith("config.")}
    config = override(config, fields)
    names = ("config", *others)
    return config, {k: values.get(k, others.get(k)) for k in names}


def recorded(path: Path) -> ConfigDict:
    """The configuration in the config.json of a run."""

    def restored(value):
        if isinstance(value, dict):
            return {k: restored(v) for k, v in value.items()}
        # JSON has no tuples, and recipes no lists.
        return tuple(map(restored, value)) if isinstance(value, list) else value

    return ConfigDict(restored(json.loads(path.read_text())))


def flat(config: Mapping, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}, values as JSON has them."""
    fields = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            fields |= flat(value, f"{prefix}{key}.")
        else:
            fields[f"{prefix}{key}"] = value
    return fields


def pairs(argv: list[str], switches: Sequence[str] = ()) -> list[tuple[str, str]]:
    """["--a=1", "--b", "2"] -> [("a", "1"), ("b", "2")].

    switches: flags that need no value; it is "1" unless one is given.
    """
    named_values, words = [], list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            raise UsageError(f"{word!r} is not a flag; write --name=value.")
        flag, equals, value = word.lstrip("-").partition("=")
        if not equals and flag in switches:
            value = "1"
        elif not equals:
            if not words or words[0].startswith("--"):
                raise UsageError(f"--{flag} needs a value; write --{flag}=value.")
            value = words.pop(0)
        named_values.append((flag, value))
    return named_values


def load(text: str, flag: str = "--config") -> ConfigDict:
    """The configuration of the recipe FILE[:ARG]: what its get_config(ARG) returns.

    flag: the flag that messages name.
    """
    name, _, argument = text.partition(":")
    path = Path(name).expanduser()
    if not path.is_file():
        here = path.parent if path.parent.is_dir() else Path("configs")
        known = [str(p) for p in here.glob("*.py") if p.stem not in NO_RECIPES]
        near = nearest(name, known or ["configs/quickstart.py"])
        raise UsageError(f"{flag}={name}: no such file; {near}")
    try:
        spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config(argument)
    except Exception as error:  # a user's own file may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if f.filename == str(path)]
        where = f", line {lines[-1]}" if lines else ""
        what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UsageError(f"{flag}={text}{where}: {what}{error}") from error


def override(config: ConfigDict, fields: dict[str, str]) -> ConfigDict:
    """`config` with {"config.a.b": text} applied, each in the type of the field."""
    argv = [""]
    for name, text in fields.items():
        kind = kind_of(config, name)
        if kind is int and is_whole(text):
            text = str(int(float(text)))  # 1e3 is an integer, too
        argv.append(f"--{name}={text}")
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except flags.Error as error:
        raise UsageError(f"{error}".replace("\n", " ")) from error
    return values["config"].value


def kind_of(config: ConfigDict, name: str):
    """The type of the field "config.a.b"; UsageError with the nearest if unknown."""
    *sections, last = name.split(".")[1:]
    for depth, word in enumerate([*sections, last]):
        if not isinstance(config, ConfigDict) or word not in config:
            here = ".".join(["config", *sections, last][: depth + 2])
            near = f"{here.rpartition('.')[0]} has no parts."
            if isinstance(config, ConfigDict):
                near = nearest(word, config)
            raise UsageError(f"{here} is not a field of the recipe; {near}")
        config, kind = config[word], config.get_type(word)
    return kind


def is_whole(text: str) -> bool:
    """Whether `text` is a whole number in any notation."""
    try:
        return float(text).is_integer()
    except ValueError:
        return False
