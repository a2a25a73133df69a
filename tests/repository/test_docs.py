"""The documents keep their word: commands, fields, files, functions and links exist."""

import ast
import functools
import importlib.util
import inspect
import re
import shlex

import jax
import jax.numpy as jnp
import pytest

from mixjax import main, mixtures
from mixjax.config import recipes, registry
from mixjax.data import splits, views
from mixjax.errors import UsageError
from tests.support import tiny

DOCS = sorted((tiny.ROOT / "docs").glob("*.md"))
PAGES = {
    str(path.relative_to(tiny.ROOT)): path.read_text()
    for path in (*DOCS, tiny.ROOT / "CONTRIBUTING.md", tiny.ROOT / "CHANGELOG.md")
    if path.is_file()
}
# Left in the tables of flags.md stand names of other projects.
PAGES["docs/flags.md"] = re.sub(
    r"^\| [^|]*\|", "| |", PAGES.get("docs/flags.md", ""), flags=re.MULTILINE
)
ROOMS = ("methods", "objectives", "mixtures", "models", "evals")


def pages_of_methods() -> dict[str, tuple[str, ...]]:
    """{method.name: the pages that must hold every field of it}, by methods.md's table.

    A row links to a page and has the names of its methods in the third column.
    """
    pages: dict[str, tuple[str, ...]] = {}
    for line in PAGES["docs/methods.md"].splitlines():
        if page := re.match(r"\| \[[^]]+\]\((\w+)\.md\)", line):
            for name in re.findall(r"`(\w+)`", line.split("|")[3]):
                pages[name] = (*pages.get(name, ()), page[1])
    return pages


METHODS = pages_of_methods()
SECTIONS = "data model method optim schedule evals checkpoint mesh watchdog log"
EXAMPLES = {  # names that the text makes up, of fields that one may add
    "mixjax/methods/mine.py",
    "mixjax/mixtures/mine.py",
    "mixjax/objectives/mine.py",
    "mixjax/models/mine.py",
    "mixjax/evals/mine.py",
    "configs/mine.py",
    "tests/methods/test_mine.py",
}


# --- what the text holds -------------------------------------------------------------


def blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def prose(text: str) -> str:
    """The text without its blocks."""
    return re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """What stands between backticks, on one line."""
    return [re.sub(r"\s+", " ", s) for s in re.findall(r"`([^`]+)`", prose(text))]


def commands(text: str) -> list[str]:
    """The command lines of blocks and of spans."""
    lines = [line for b in blocks(text) for line in b.replace("\\\n", " ").splitlines()]
    found = [*lines, *spans(text)]
    wanted = r"(python -m mixjax\b|launch/[\w/]+\.sh\b)"
    return [re.sub(r"^.*?(?=" + wanted + ")", "", x) for x in found if matches(x)]


def matches(line: str) -> bool:
    return bool(re.match(r"(\w+=\S+ )*(python -m mixjax\.|launch/[\w/]+\.sh)", line))


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of table rows whose first cell starts with a backtick and `first`."""
    found = re.findall(rf"^\| (`{first}.*)\|$", text, flags=re.MULTILINE)
    return [[cell.strip() for cell in re.split(r" \|(?: |$)", row)] for row in found]


def each(find) -> list:
    """(page, what `find` finds in its text), without repetition."""
    return [(p, x) for p, text in PAGES.items() for x in dict.fromkeys(find(text))]


# --- what the code has ---------------------------------------------------------------


@functools.cache
def known_recipes() -> dict[str, dict]:
    """{FILE:ARG: its fields} of all recipes, in the variants that add fields."""
    found = {}
    for path in sorted((tiny.ROOT / "configs").glob("*.py")):
        if path.stem in recipes.NO_RECIPES:
            continue
        config = recipes.load(str(path))
        found[path.stem] = recipes.flat(config.to_dict())
        variants = ["epochs=2"] if "variants:" in path.read_text() else []
        if config.method.name in ("siamese", "multiscale"):
            variants = [mixtures.variant(m) for m in registry.names("mixjax.mixtures")]
            variants += ["mixture=both"]
            variants += ["symmetric=1", "views=4"]
        if path.stem.startswith("c10_lam_a2"):
            variants = ["positive=region", "reverse=consistent"]
        for variant in variants:
            try:
                config = recipes.load(f"{path}:{variant}")
            except UsageError:  # a recipe need not have it
                continue
            found[f"{path.stem}:{variant}"] = recipes.flat(config.to_dict())
    return found


def fields_of(method: str) -> dict[str, set[str]]:
    """{field: its values as text} of the recipes of a method, "method." in front."""
    found = {}
    for fields in known_recipes().values():
        if fields["method.name"] != method:
            continue
        for name, value in fields.items():
            name = name.replace("method.method.", "method.")
            found.setdefault(name, set()).add(str(value))
    return found


@functools.cache
def every_field() -> set[str]:
    """All fields, and sections, of all recipes and of files of evaluations."""
    found = {name for fields in known_recipes().values() for name in fields}
    for name in ("probe", "robustness"):
        config = recipes.load(str(tiny.ROOT / f"configs/{name}.py"))
        found |= {f"evals.{field}" for field in recipes.flat(config.to_dict())}
    for name in list(found):
        words = name.split(".")
        found |= {".".join(words[:n]) for n in range(1, len(words))}
    return found


def source_of(module: str):
    """The file of mixjax.NAME, or of its __main__."""
    spec = importlib.util.find_spec(module)
    assert spec, f"there is no module {module}"
    if spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{module}.__main__")
        assert spec, f"{module} is no command"
    return spec.origin


@functools.cache
def help_of(module: str) -> str:
    with open(source_of(module)) as file:
        return ast.get_docstring(ast.parse(file.read()))


@functools.cache
def names_in(path: str) -> set[str]:
    """All functions and classes of a file, and what it assigns at its top."""
    tree = ast.parse((tiny.ROOT / path).read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    found = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return found


# --- commands ------------------------------------------------------------------------


def check_views(config) -> None:
    """What is written in the languages of views and splits can be read."""
    for text in (*config.data.views, config.data.eval_view):
        views.parse(text, "data.views")
    for text in (config.data.split, config.data.eval_split):
        splits.parse(text, "data.split")


def check_recipe(words: list[str]) -> None:
    """The words that begin with --config fit together."""
    given = [w for w in words if re.match(r"--config[.=]", w)]
    if any(w.startswith("--config=") for w in given):
        check_views(recipes.read(given)[0])
        return
    for word in given:
        name = word.partition("=")[0].removeprefix("--config.")
        assert name in every_field() or name == "FIELD", f"{word} is not a field"


@pytest.mark.parametrize("page, command", each(commands))
def test_commands_parse(page, command, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    words = shlex.split(command, comments=True)
    if words[0] != "python":
        assert (tiny.ROOT / words[0]).is_file()
        check_recipe(words[1:])
        return
    module, words = words[2], words[3:]
    text = help_of(module)
    if module == "mixjax.main" and words:
        others = dict.fromkeys(main.FLAGS)
        check_views(recipes.read(words, explain="", **others)[0])
        return
    known = set(re.findall(r"--([a-z]\w*)", text))
    for word in words:
        flag = word.partition("=")[0].removeprefix("--")
        if word.startswith("--") and not flag.startswith("config."):
            assert flag in known, f"{module} has no flag --{flag}"
        value = word.partition("=")[2].partition(":")[0]
        if value.startswith("configs/"):
            assert (tiny.ROOT / value).is_file(), value
    check_recipe(words)


def scripts(text: str) -> list[str]:
    return re.findall(r"launch/[\w/]+(?:\.\w+)?", text)


@pytest.mark.parametrize("page, script", each(scripts))
def test_launch_scripts_exist(page, script):
    assert (tiny.ROOT / script).exists(), script


# --- fields --------------------------------------------------------------------------


def given_fields(text: str) -> list[str]:
    return [s for s in spans(text) if s.startswith("--config.") and "FIELD" not in s]


@pytest.mark.parametrize("page, flag", each(given_fields))
def test_fields_can_be_given(page, flag, monkeypatch):
    """Some recipe has the field, and takes the value."""
    monkeypatch.chdir(tiny.ROOT)
    flag = shlex.split(flag)[0]
    name, equals, value = flag.removeprefix("--config.").partition("=")
    assert name in every_field(), f"no recipe has {name}"
    if equals and value and "..." not in value:
        has = next(k for k, fields in known_recipes().items() if name in fields)
        recipes.read(
            [
                f"--config=configs/{has.replace(':', '.py:', 1)}"
                if ":" in has
                else f"--config=configs/{has}.py",
                flag,
            ]
        )


def named_fields(text: str) -> list[str]:
    """Dotted names in backticks that begin with a section of a config."""
    begin = "|".join(SECTIONS.split())
    pattern = (
        rf"(?:config\.)?((?:{begin})(?:\.[a-z_]\w*)+)(?:=.*)?|config\.(\w+)(?:=.*)?"
    )
    found = [re.fullmatch(pattern, s) for s in spans(text)]
    return [m[1] or m[2] for m in found if m and not m[0].endswith(".py")]


@pytest.mark.parametrize("page, name", each(named_fields))
def test_named_fields_exist(page, name):
    assert name in every_field(), f"no recipe has {name}"


def tables() -> list[tuple[str, list[str]]]:
    pages = dict.fromkeys(page for pages in METHODS.values() for page in pages)
    return [
        (page, row)
        for page in pages
        for row in rows(PAGES[f"docs/{page}.md"], r"(?:method|model)\.")
    ]


@pytest.mark.parametrize(
    "page, row", tables(), ids=lambda x: x if isinstance(x, str) else x[0]
)
def test_tables_name_fields_and_their_values(page, row):
    """A field of a page's table is one of its methods' recipes, with that default."""
    name, default = row[0].strip("`"), row[1]
    methods = [m for m, pages in METHODS.items() if page in pages]
    values = set().union(*(fields_of(m).get(name, set()) for m in methods))
    text = " ".join(PAGES[f"docs/{page}.md"].split())
    usual = re.search(r"Defaults are those of `configs/(\w+)\.py`", text)
    if usual and name in known_recipes()[usual[1]]:
        values = {str(known_recipes()[usual[1]][name])}
    if not values and default == "`{}`":
        return
    assert values, f"no recipe of {', '.join(methods)} has {name}"
    if default:
        shown = default.strip("`")
        assert shown in values, f"{name} is {', '.join(sorted(values))}, not {shown}"


@pytest.mark.parametrize("method", METHODS)
def test_every_field_of_a_method_is_on_its_page(method):
    text = "\n".join(PAGES[f"docs/{page}.md"] for page in METHODS[method])
    shown = {row[0].strip("`") for row in rows(text, "method\\.")}
    wanted = {f for f in fields_of(method) if f.startswith("method.")}
    assert wanted, f"no recipe of {method}"
    assert not wanted - shown


def test_every_method_has_a_page():
    """In the table of methods.md, whose third column METHODS is read from."""
    used = {fields["method.name"] for fields in known_recipes().values()}
    assert used == METHODS.keys()


def entries() -> list[tuple[str, str]]:
    return [(r, name) for r in ROOMS for name in registry.names(f"mixjax.{r}")]


@pytest.mark.parametrize("room, name", entries())
def test_every_entry_of_a_registry_is_in_a_page(room, name):
    """In backticks, as a value or as its file; a new file is found by looking."""
    texts = [text for page, text in PAGES.items() if "adding_a" not in page]
    texts += [(tiny.ROOT / "README.md").read_text()]
    forms = {name, f"mixjax/{room}/{name}.py", f"'{name}'", f"{name}.py"}
    where = [text for text in texts if forms & set(spans(text))]
    assert where, f"mixjax/{room}/{name}.py is mentioned in no page of docs/ or README"


# --- files, functions, links ---------------------------------------------------------


def files(text: str) -> list[str]:
    begin = r"(?:mixjax|configs|bench|tests|launch|downstream|results|docs)/"
    found = [re.match(rf"{begin}[\w./]+\.\w+", s) for s in spans(text)]
    words = " ".join(blocks(text)).split()
    found += [re.match(r"(?:tests|bench)/[\w./]+\.py", word) for word in words]
    return [m[0] for m in found if m and m[0] not in EXAMPLES]


@pytest.mark.parametrize("page, path", each(files))
def test_files_exist(page, path):
    assert (tiny.ROOT / path).is_file(), path


def variants(text: str) -> list[str]:
    found = [re.fullmatch(r"(?:configs/)?(\w+\.py:[\w=.,+-]+)", s) for s in spans(text)]
    return [m[1] for m in found if m]


@pytest.mark.parametrize("page, recipe", each(variants))
def test_variants_exist(page, recipe):
    recipes.load(f"{tiny.ROOT}/configs/{recipe}")


def functions(text: str) -> list[tuple[str, str]]:
    """(name, file) of "`a`, `b` and `c` in `mixjax/FILE.py`"."""
    text = re.sub(r"\s+", " ", prose(text))
    found = re.findall(
        r"((?:`\w+`(?:, | and )?)+) (?:inside `\w+` )?in `(mixjax/[\w/]+\.py)`", text
    )
    return [
        (n, file)
        for names, file in found
        for n in re.findall(r"\w+", names)
        if n != "and"
    ]


@pytest.mark.parametrize("page, function", each(functions))
def test_functions_exist(page, function):
    name, file = function
    if file not in EXAMPLES:
        assert name in names_in(file), f"{file} has no {name}"


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=16 | 8), flags=re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page, link", each(lambda t: re.findall(r"\]\(([^)]+)\)", t)))
def test_links_lead_somewhere(page, link):
    assert "://" not in link, "documents point to what is here"
    path, hash_, anchor = link.partition("#")
    target = (tiny.ROOT / page).parent / path if path else tiny.ROOT / page
    assert target.exists(), link
    assert not hash_ or anchor in slugs(target.read_text()), link


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short(page):
    for line in PAGES[page].splitlines():
        free = line.startswith("|") or "](" in line or "--config" in line
        assert free or len(line) <= 88, line


# --- code in the text ----------------------------------------------------------------


def examples(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page, code", each(examples))
def test_examples_are_code_and_quotations_stand_in_their_files(page, code):
    ast.parse(code)
    first, _, rest = code.partition("\n")
    if first.startswith("# "):
        lines = (tiny.ROOT / first[2:]).read_text().splitlines()
        assert not set(rest.splitlines()) - set(lines)


def test_the_example_of_a_mixture_mixes():
    code = [c for _, c in each(examples) if "def mixture" in c]
    scope = {}
    exec(code[0], scope)
    fields = dict(share=0.25, permutation="reverse", shared=False, groups=2)
    images = jnp.repeat(jnp.arange(2.0), 2)[jnp.array([0, 2, 1, 3] * 2)]
    images = jnp.broadcast_to(images[:, None, None, None], (8, 16, 12, 3))
    (mixed,) = scope["make"](**fields)(jax.random.key(0), images)
    wanted = mixed.lam * images[:, 0, 0, 0]
    partner = images.reshape(2, 4, -1)[:, ::-1, 0].reshape(-1)
    wanted += (1 - mixed.lam) * partner
    assert jnp.allclose(mixed.images.mean(axis=(1, 2, 3)), wanted, atol=1e-6)
    assert jnp.allclose(mixed.lam, 0.25, atol=1 / 16)


def test_the_example_of_an_evaluator_evaluates():
    code = [c for _, c in each(examples) if "def run(state" in c]
    scope = {}
    exec(code[0], scope)
    taken = inspect.signature(scope["make"]).parameters
    known = {"sets", "method", "network", "mesh", "workdir", "check"}
    assert set(taken) - known == {"examples"}


# --- the languages of own_data.md, the card ------------------------------------------


def operations(ops: dict) -> dict[str, list[str]]:
    return {name: list(inspect.signature(op).parameters) for name, op in ops.items()}


@pytest.mark.parametrize("ops", [views.OPS, splits.OPS], ids=["views", "splits"])
def test_every_operation_is_told_with_its_arguments(ops):
    shown = {}
    for row in rows(PAGES["docs/own_data.md"], r"\w+\("):
        call = ast.parse(row[0].strip("`"), mode="eval").body
        names = [a.id for a in call.args] + [k.arg for k in call.keywords]
        shown[call.func.id] = names
        known = operations(ops).get(call.func.id)
        for word in call.keywords:
            if known:
                default = inspect.signature(ops[call.func.id]).parameters[word.arg]
                value = ast.literal_eval(word.value)
                assert value == pytest.approx(default.default, abs=1e-3) or (
                    value == default.default
                ), f"{call.func.id}: {word.arg}"
    for name, arguments in operations(ops).items():
        assert shown.get(name) == arguments, name


def test_every_view_of_own_data_can_be_read():
    lines = [x for b in blocks(PAGES["docs/own_data.md"]) for x in b.splitlines()]
    found = [line for line in lines if re.match(r"(decode|crop)\w*[( ].*\|", line)]
    assert found
    for text in found:
        views.parse(text, "data.views")


def test_the_model_card_is_told_line_by_line():
    source = (tiny.ROOT / "mixjax/export/card.py").read_text()
    labels = re.findall(r'f"- (\w[\w ]*): ', source)
    assert labels
    for label in labels:
        assert f"| {label} |" in PAGES["docs/model_card.md"], label
