"""From names in a config to code: the folder is the registry.

`method.name = "mae"` is the file mixjax/methods/mae.py; every other field of that
section is an argument of the function that the file offers.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType

from mixjax.errors import UsageError, check_name, nearest


def load(package: ModuleType | str, name: str, field: str) -> ModuleType:
    """Imports `package`/`name`.py; UsageError with the nearest file if none is."""
    if isinstance(package, str):
        package = importlib.import_module(package)
    check_name(field, name, [m.name for m in pkgutil.iter_modules(package.__path__)])
    return importlib.import_module(f"{package.__name__}.{name}")


def makers(package: ModuleType | str) -> dict[str, Callable]:
    """{file: its `make`} for the files of a folder that have one."""
    if isinstance(package, str):
        package = importlib.import_module(package)
    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    files = {n: importlib.import_module(f"{package.__name__}.{n}") for n in names}
    return {n: file.make for n, file in files.items() if hasattr(file, "make")}


def take(section: str, fields: dict, *names: str) -> list:
    """Removes `names` from the fields of a config section and returns their values.

    UsageError names the first that is missing.
    """
    for name in names:
        if name not in fields:
            raise UsageError(f"{section}.{name} is missing from the config.")
    return [fields.pop(name) for name in names]


def call(section: str, function: Callable, fields: Mapping, **context):
    """Calls `function` with the fields of a config section.

    A field that is not an argument, or an argument that is not a field, is a
    UsageError that names it; `name` only chose the function and is left out. context:
    what is not configuration; the function gets what it asks for.
    """
    fields = {k: v for k, v in fields.items() if k != "name"}
    asked = {
        k: p
        for k, p in inspect.signature(function).parameters.items()
        if k not in ("parent", "name")
    }
    known = [k for k in asked if k not in context]
    for key in fields:
        if key not in known:
            raise UsageError(f"{section}.{key} is no such field; {nearest(key, known)}")
    for key in known:
        if asked[key].default is inspect.Parameter.empty and key not in fields:
            raise UsageError(f"{section}.{key} is missing from the config.")
    return function(**fields, **{k: v for k, v in context.items() if k in asked})
