"""The house: no import runs upward, and some names stay in one room."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mixjax"

FLOORS = {
    0: "errors state",
    1: "config dense profiling sharding",
    2: "chips data detection mixtures models objectives optim runtime",
    3: "evals methods run",
    4: "export paper_tables report",
    5: "training",
    6: "main doctor drill prepare look evaluate transfer results import_weights",
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}
NO_METHODS = {"evals", "export"}  # they get what they need from method.features


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Full names of everything that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_used(path: Path) -> set[str]:
    words = [name.split(".") for name in imports(path)]
    return {w[1] for w in words if w[0] == "mixjax" and len(w) > 1}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_import_runs_upward(path):
    room = room_of(path)
    if room == "__init__":
        assert not rooms_used(path)
        return
    for used in rooms_used(path) - {room, "__version__"}:
        assert used in FLOOR, f"{room} imports {used}, which is on no floor"
        below = FLOOR[used] < FLOOR[room]
        assert below, f"{room} (floor {FLOOR[room]}) imports {used}"
    if room in NO_METHODS:
        assert "methods" not in rooms_used(path)
    if room == "methods":
        assert "models" not in rooms_used(path), "methods see models only as Network"


def test_every_room_is_on_a_floor():
    rooms = {room_of(p) for p in modules()} - {"__init__"}
    assert rooms <= FLOOR.keys()


def test_the_tour_names_every_room_on_its_floor():
    rows = re.findall(r"^\| (\d) \|(.*)\|$", (ROOT / "docs/tour.md").read_text(), re.M)
    named = {int(n): set(re.findall(r"`(?:mixjax/)?(\w+)", row)) for n, row in rows}
    assert named == {floor: set(rooms.split()) for floor, rooms in FLOORS.items()}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")))
def test_configs_import_only_configs(path):
    allowed = ("ml_collections", "configs", "difflib")
    assert all(name.startswith(allowed) for name in imports(path))


ONLY = {  # name -> the one file that may say it
    "orbax": {"checkpoints.py"},
    "jax.sharding": {"meshes.py"},
    "tensorflow": {"prepare.py"},
    "tensorboard": {"metrics_writer.py"},
    "pickle": set(),
    "torch": {"torch_side.py"},  # a program of its own, for --check
}


@pytest.mark.parametrize("name", ONLY)
def test_names_stay_in_their_file(name):
    users = {
        p.name
        for p in modules()
        if any(i == name or i.startswith(name + ".") for i in imports(p))
    }
    assert users <= ONLY[name]


def test_flax_linen_stays_in_models():
    for path in modules():
        if any(name.startswith("flax.linen") for name in imports(path)):
            assert room_of(path) == "models"


def test_main_imports_jax_late():
    """Main imports next to nothing at the top, so that --help is quick."""
    tree = ast.parse((PACKAGE / "main.py").read_text())
    top = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {getattr(n, "module", None) or n.names[0].name for n in top}
    assert names <= {"sys", "pathlib", "mixjax", "mixjax.runtime"}
    assert imports(PACKAGE / "errors.py") <= {
        "difflib",
        "re",
        "collections.abc.Iterable",
    }


AT_THE_TOP = 11  # files directly in mixjax/: the commands, errors, state, __init__


def test_the_top_of_the_package_stays_small():
    """New code belongs in a room; only a command may be a file of its own."""
    files = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(files) <= AT_THE_TOP, files


# Folders of tests/ that test no single room.
ACROSS_ROOMS = {
    "support",  # what several tests share; holds no tests
    "parity",  # against reference implementations
    "commands",  # whole runs, started as a user starts them
    "repository",  # the layout, documents, launch scripts
    "recipes",  # configs/
    "bench",  # bench/
}


def folders(parent: Path) -> set[str]:
    """Names of the folders in `parent` that hold Python files."""
    return {path.parent.name for path in parent.glob("*/*.py")}


def test_tests_mirror_the_package():
    assert ACROSS_ROOMS.isdisjoint(folders(PACKAGE)), "a room's tests need its name"
    assert folders(ROOT / "tests") <= folders(PACKAGE) | ACROSS_ROOMS


LONGEST = 60  # lines of a function, from `def` to its end: about one screen
LONGER: dict[str, str] = {}  # file:function -> why it may be longer


def long_functions(path: Path) -> dict[str, int]:
    """The functions and methods of a file with more than LONGEST lines, at any depth.

    Decorators do not count; docstrings, comments and inner functions do.
    """
    name = path.relative_to(PACKAGE).as_posix()
    return {
        f"{name}:{node.name}": node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > LONGEST
    }


def test_functions_fit_on_a_screen():
    """Networks are exempt: splitting a linen module renames its parameters."""
    paths = [path for path in modules() if room_of(path) != "models"]
    too_long = {k: n for path in paths for k, n in long_functions(path).items()}
    assert too_long.keys() == LONGER.keys(), too_long


EMPTY = {"found", "how", "given", "said", "seen", "own"}  # they say nothing of a value


def names_bound(path: Path):
    """(name, line) of every variable, parameter and keyword of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.keyword):
            yield node.arg, node.value.lineno


def test_names_say_what_they_hold():
    empty = [
        f"{path.relative_to(PACKAGE)}:{line} {name}"
        for path in modules()
        for name, line in names_bound(path)
        if name in EMPTY
    ]
    assert not empty
