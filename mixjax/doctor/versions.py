"""Whether the versions of the installed packages fit together.

requirements.txt, beside the package, lists what mixjax needs, and the metadata of each
of those packages what it needs in turn. This file adds only rules that neither states.
"""

import importlib.metadata
import platform
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILE = Path(__file__).parents[2] / "requirements.txt"
SHOWN = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
PLUGIN = re.compile(r"jax-(cuda\d+)-(plugin|pjrt)")


def installed() -> dict[str, importlib.metadata.Distribution]:
    """{name: package} of all packages on Python's path."""
    packages = {}
    for package in importlib.metadata.distributions():
        # A folder left by a failed removal has no name. Of two packages of one name
        # the first is the one that Python imports.
        if name := package.metadata["Name"]:
            packages.setdefault(canonicalize_name(name), package)
    return packages


def check(file: Path = FILE) -> tuple[str, list[str]]:
    """(a line with the versions of the main packages, the problems of any package).

    file: a requirements file.
    """
    packages = installed()
    versions = {name: package.version for name, package in packages.items()}
    shown = [f"{name} {versions[name]}" for name in SHOWN if name in versions]
    shown += [f"{name} {versions[name]}" for name in plugins(versions)]
    line = ", ".join([f"python {platform.python_version()}", *shown])
    if not plugins(versions):
        line += "; jax has no plugin for a GPU or TPU here"
    wanted = requirements(file) if file.is_file() else []
    if not wanted:
        line += f"; without {file}, the versions required are not known"
    return line, [*bounds(wanted, packages), *pairs(versions)]


def plugins(versions: dict[str, str]) -> list[str]:
    """Names of the packages through which jax sees an accelerator."""
    return sorted(n for n in versions if PLUGIN.fullmatch(n) or n == "libtpu")


def requirements(file: Path) -> list[Requirement]:
    """The lines of a requirements file that name a package."""
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def bounds(wanted: list[Requirement], packages: dict) -> list[str]:
    """A problem for each package that is missing or has a version that does not fit."""
    problems, visited = [], set()
    queue = [("requirements.txt", requirement) for requirement in wanted]
    while queue:
        user, requirement = queue.pop(0)
        name = canonicalize_name(requirement.name)
        if (user, name) in visited:  # packages may need each other in a circle
            continue
        visited.add((user, name))
        needed = f"{requirement.name}{requirement.specifier}"
        remedy = f'run pip install "{needed}"'
        if name not in packages:
            problems.append(
                f"{user} needs {requirement.name}, which is not installed; {remedy}."
            )
            continue
        version = packages[name].version
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(
                f"{user} needs {needed}, but {version} is installed; {remedy}."
            )
        package = f"{requirement.name} {version}"
        queue += [(package, further) for further in needs(packages[name], requirement)]
    return problems


def needs(package: importlib.metadata.Distribution, wanted: Requirement) -> list:
    """The requirements of `package` here, with those of the extras in `wanted`."""
    extras = ("", *wanted.extras)
    requirements_ = [Requirement(text) for text in package.requires or ()]
    return [
        r
        for r in requirements_
        if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)
    ]


def pairs(versions: dict[str, str]) -> list[str]:
    """A problem for each two packages that must have one version but do not."""
    jax, jaxlib = versions.get("jax"), versions.get("jaxlib")
    problems = []
    if jax and jaxlib and jax != jaxlib:
        problems.append(
            f"jax is {jax}, but jaxlib is {jaxlib}; they must be the same: "
            f"run pip install jax=={jax} jaxlib=={jax}."
        )
    gpu = {name: PLUGIN.fullmatch(name)[1] for name in versions if PLUGIN.match(name)}
    for name, kind in gpu.items():
        if jaxlib and versions[name] != jaxlib:
            problems.append(
                f"{name} is {versions[name]}, but jaxlib is {jaxlib}; they must be the "
                f'same: run pip install "jax[{kind}]=={jaxlib}".'
            )
    if len(set(gpu.values())) > 1:
        kinds = " and ".join(sorted(set(gpu.values())))
        problems.append(f"jax has plugins for {kinds}; uninstall all but one.")
    return problems
