"""Whether the packages that are here go together.

requirements.txt, beside the package, says what mixjax needs; what each of those needs
in turn stands in its own metadata. Only what neither can say is written here.
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
    """{name: package} of all that Python finds; the first of a name counts."""
    found = {}
    for package in importlib.metadata.distributions():
        if package.metadata["Name"]:
            found.setdefault(canonicalize_name(package.metadata["Name"]), package)
    return found


def check(file: Path = FILE) -> tuple[str, list[str]]:
    """(the versions of the main packages in a line, what is wrong with any).

    file: the requirements.
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
        line += f"; {file} is not there, so bounds are not known"
    return line, [*bounds(wanted, packages), *pairs(versions)]


def plugins(versions: dict[str, str]) -> list[str]:
    """Names of the packages through which jax sees an accelerator."""
    return sorted(n for n in versions if PLUGIN.fullmatch(n) or n == "libtpu")


def requirements(file: Path) -> list[Requirement]:
    """The lines of a requirements file that name a package."""
    lines = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def bounds(wanted: list[Requirement], packages: dict) -> list[str]:
    """A sentence for each package that is absent or outside of what another asks."""
    found, seen = [], set()
    rest = [("requirements.txt", requirement) for requirement in wanted]
    while rest:
        who, requirement = rest.pop(0)
        name = canonicalize_name(requirement.name)
        if (who, name) in seen:
            continue
        seen.add((who, name))
        mend = f'run pip install "{requirement.name}{requirement.specifier}"'
        if name not in packages:
            found.append(f"{who} needs {requirement.name}, which is not here; {mend}.")
            continue
        version = packages[name].version
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(
                f"{who} needs {requirement.name}{requirement.specifier}, but "
                f"{version} is here; {mend}."
            )
        whole = f"{requirement.name} {version}"
        rest += [(whole, needed) for needed in needs(packages[name], requirement)]
    return found


def needs(package: importlib.metadata.Distribution, wanted: Requirement) -> list:
    """What `package` needs on this machine, with the extras that `wanted` names."""
    extras = ("", *wanted.extras)
    every = [Requirement(text) for text in package.requires or ()]
    return [
        r
        for r in every
        if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)
    ]


def pairs(versions: dict[str, str]) -> list[str]:
    """A sentence for each pair of packages whose versions must be the same."""
    jax, jaxlib = versions.get("jax"), versions.get("jaxlib")
    found = []
    if jax and jaxlib and jax != jaxlib:
        found.append(
            f"jax is {jax}, but jaxlib is {jaxlib}; they must be the same: "
            f"run pip install jax=={jax} jaxlib=={jax}."
        )
    gpu = {name: PLUGIN.fullmatch(name)[1] for name in versions if PLUGIN.match(name)}
    for name, kind in gpu.items():
        if jaxlib and versions[name] != jaxlib:
            found.append(
                f"{name} is {versions[name]}, but jaxlib is {jaxlib}; they must be the "
                f'same: run pip install "jax[{kind}]=={jaxlib}".'
            )
    if len(set(gpu.values())) > 1:
        kinds = " and ".join(sorted(set(gpu.values())))
        found.append(f"jax has plugins for {kinds}; uninstall all but one.")
    return found
