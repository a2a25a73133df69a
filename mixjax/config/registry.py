"""From names in a config to code: the folder is the registry.

`method.name = "mae"` is the file mixjax/methods/mae.py, and the other fields of that
section are the arguments of the function `make` in that file.
"""

import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from mixjax.errors import UsageError, check_name, nearest

# At the start of a line, so at the top level: a def, a class or an assignment.
MAKE = re.compile(r"^(?:def|class) make\b|^make\s*[:=]", re.MULTILINE)


def names(package: str) -> list[str]:
    """The entries of the registry `package`: its files that define `make`.

    The files are read as text: to import each of them for its name alone would cost
    seconds at every start.
    """
    folders = importlib.util.find_spec(package).submodule_search_locations
    files = sorted(file for folder in folders for file in Path(folder).glob("*.py"))
    return [
        file.stem
        for file in files
        if not file.stem.startswith("__") and MAKE.search(file.read_text("utf-8"))
    ]


def load(package: ModuleType | str, name: str, field: str) -> ModuleType:
    """Imports the entry `name` of the registry `package`, a module with a `make`.

    UsageError names `field` and the nearest entries if there is no such file, or if
    the file defines no `make`.
    """
    package = package if isinstance(package, str) else package.__name__
    check_name(field, name, names(package))
    return importlib.import_module(f"{package}.{name}")


def take(section: str, fields: dict, *names: str) -> list:
    """Removes `names` from the fields of a config section and returns their values.

    UsageError names all that are missing.
    """
    check_complete(section, [name for name in names if name not in fields])
    return [fields.pop(name) for name in names]


def check_complete(section: str, missing: list[str]) -> None:
    """Raises UsageError if fields are missing from a config section."""
    if missing:
        listed = " and ".join(f"{section}.{name}" for name in missing)
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(f"{listed} {verb} missing from the config.")


def call(section: str, function: Callable, fields: Mapping, **context):
    """Calls `function` with the fields of a config section.

    `name` only chose the function and is not passed on. context: values that are not
    configuration; the function gets those that it has an argument for. UsageError
    names a field that is not an argument, or the arguments without a field.
    """
    fields = {k: v for k, v in fields.items() if k != "name"}
    arguments = {
        k: p
        for k, p in inspect.signature(function).parameters.items()
        if k not in ("parent", "name")  # linen gives these two to every module
    }
    known = [k for k in arguments if k not in context]
    for key in fields:
        if key not in known:
            raise UsageError(f"{section}.{key} is not a field; {nearest(key, known)}")
    required = [k for k in known if arguments[k].default is inspect.Parameter.empty]
    check_complete(section, [key for key in required if key not in fields])
    return function(**fields, **{k: v for k, v in context.items() if k in arguments})
