"""python -m mixjax.results [--runs=DIR,...] [--paper=mimae] [--markdown [--readme]]

Prints every row of the tables of the papers, its number beside ours. Ours are the
entries of results/ledger/, and of runs given with --runs; a row that nothing has been
measured for says so. What an entry must be to count as a row is in mixjax/paper_tables.

  --runs=DIR,DIR    folders of runs, or of many runs, to look for entries in, too
  --paper=NAME      one paper: unmix, mixmask, lam, mixedae or mimae
  --row=ID          the commands that make one row
  --markdown        as Markdown
  --readme          with --markdown: writes README.md's block and results/tables.md
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mixjax import errors, paper_tables
from mixjax.config import recipes
from mixjax.paper_tables import commands_of_rows, match_ledger, recipes_of_rows, render
from mixjax.run import ledger
from mixjax.runtime import cli

ROOT = Path(__file__).parents[1]
LEDGER = ROOT / "results" / "ledger"
SWITCHES = ("--markdown", "--readme")
BEGIN, END = "<!-- results -->", "<!-- /results -->"
WRITTEN = "<!-- written by python -m mixjax.results --markdown --readme -->"

INTRODUCTION = """\
A line is a number. "made by" has the recipes in configs/, the second begun from the
first, or why there is none. "difference" is ours less theirs, left out where theirs is
approximate, a bound or contradicted by the paper itself. A star: the run departs from
the recipe in what is said below. MixMask\\* is `mixture=both`.
`python -m mixjax.results --row=ROW` prints the commands."""
SUMMARY = """\
The numbers that matter most, of all rows in [results/tables.md](results/tables.md);
`python -m mixjax.results --runs=runs` puts what you have measured beside them.
MixMask\\* is `mixture=both`."""


class Results(NamedTuple):
    """Entries of the ledger by row, and those that are no row."""

    numbers: Mapping  # id of a row -> [match.Number]
    strays: list  # (entry, id of the nearest row, why it is not that)


def collect(folders: Sequence[str]) -> Results:
    """The entries of results/ledger/ and of `folders`, on their rows."""
    entries = ledger.read(LEDGER) if LEDGER.is_dir() else []
    for folder in folders:
        entries += ledger.read(Path(folder))
    return Results(*match_ledger.place(paper_tables.all_rows(), entries))


def by_table(name: str) -> dict[str, list[dict]]:
    """{"Table 1": its rows} of a paper."""
    found = {}
    for row in paper_tables.rows(name):
        found.setdefault(row["table"], []).append(row)
    return found


def title(name: str) -> str:
    """The title of a paper, and where it appeared."""
    paper = paper_tables.paper(name)
    place = paper["venue"] or (f"arXiv {paper['arxiv']}" if paper["arxiv"] else "")
    return f"{paper['title']} ({place})" if place else paper["title"]


def runs(results: Results, names: Sequence[str]) -> list[str]:
    """A line for each number of ours in the tables of these papers."""
    known = [row["id"] for name in names for row in paper_tables.rows(name)]
    placed = [(i, n) for i in known for n in results.numbers.get(i, [])]
    return [render.run(row_id, number) for row_id, number in placed]


def as_text(results: Results, names: Sequence[str]) -> str:
    """All tables in columns; the columns "what" and "measured" are in the ids."""
    keep = [i for i, h in enumerate(render.HEADS) if h not in ("what", "measured")]
    short = lambda line: tuple(line[i] for i in keep)
    parts = []
    for name in names:
        parts.append(title(name))
        for table, rows in by_table(name).items():
            lines = [short(line_of(row, results)) for row in rows]
            parts.append(f"{table}\n{render.plain(short(render.HEADS), lines)}")
    said = runs(results, names)
    if said:
        parts.append("\n".join(["Ours (* departs from the recipe)", *said]))
    lost = [render.stray(*s) for s in results.strays]
    if lost:
        parts.append("\n".join(["Measured, but no row of these tables", *lost]))
    return "\n\n".join(parts)


def line_of(row: Mapping, results: Results) -> tuple[str, ...]:
    """A row with what is known of it."""
    return render.cells(row, results.numbers.get(row["id"], []))


def as_markdown(results: Results, names: Sequence[str]) -> str:
    """The same in Markdown: what results/tables.md holds."""
    parts = ["# Every number of the papers, and ours", WRITTEN, INTRODUCTION]
    for name in names:
        parts.append(f"## {title(name)}")
        for table, rows in by_table(name).items():
            lines = [line_of(row, results) for row in rows]
            parts.append(f"### {table}\n\n{render.markdown(render.HEADS, lines)}")
    said = runs(results, names)
    if said:
        parts.append("## Runs\n\n" + "\n".join(f"- {line}" for line in said))
    lost = [render.stray(*s) for s in results.strays]
    if lost:
        listed = "\n".join(f"- {line}" for line in lost)
        parts.append("## Measured, but no row of these tables\n\n" + listed)
    return "\n\n".join(parts) + "\n"


def headlines(results: Results) -> str:
    """The block between the markers of README.md: a few rows of every paper."""
    parts = [WRITTEN, SUMMARY]
    for name in paper_tables.PAPERS:
        rows = {row["id"]: row for row in paper_tables.rows(name)}
        lines = []
        for row_id in recipes_of_rows.HEADLINES[name]:
            row, numbers = rows[row_id], results.numbers.get(row_id, [])
            said = (render.what(row), render.measured(row), render.theirs(row))
            lines.append((*said, render.ours(numbers)))
        heads = (recipes_of_rows.SHORT[name], "measured", "paper", "ours")
        parts.append(render.markdown(heads, lines))
    return "\n\n".join(parts)


def with_block(text: str, block: str) -> str:
    """`text` with what stands between the markers replaced; UsageError without them."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise errors.UsageError(f"README.md has no lines {BEGIN} and {END}.")
    return f"{head}{begin}\n{block}\n\n{end}{tail}"


def write(results: Results) -> list[Path]:
    """Writes README.md's block and results/tables.md; returns both paths."""
    readme, long = ROOT / "README.md", ROOT / "results" / "tables.md"
    readme.write_text(with_block(readme.read_text(), headlines(results)))
    long.write_text(as_markdown(results, paper_tables.PAPERS))
    return [readme, long]


def command_lines(row_id: str) -> str:
    """How to make one row, or why there is no way."""
    rows = {row["id"]: row for row in paper_tables.all_rows()}
    errors.check_name("--row", row_id, rows)
    row = rows[row_id]
    plan = commands_of_rows.plan(row)
    said = [f"{render.what(row)}: {render.measured(row)} {render.theirs(row)}"]
    said += filter(None, (render.remarks(row), row["note"]))
    said += [plan.reason] if plan.reason else commands_of_rows.commands(plan)
    return "\n".join(said)


def run(argv: list[str]) -> int:
    """Prints what the flags (without the program's name) ask for; returns the code."""
    return cli.code(lambda: show(argv))


def show(argv: list[str]) -> int:
    """As run(), but raises UsageError."""
    switches = {word for word in argv if word in SWITCHES}
    given = dict(recipes.pairs([word for word in argv if word not in SWITCHES]))
    for flag in given:
        errors.check_name("flag", flag, ("runs", "paper", "row", "markdown", "readme"))
    if "row" in given:
        print(command_lines(given["row"]))
        return errors.DONE
    names = paper_tables.PAPERS
    if "paper" in given:
        errors.check_name("--paper", given["paper"], names)
        names = (given["paper"],)
    if "--readme" in switches and ("--markdown" not in switches or given):
        raise errors.UsageError(
            "--readme goes with --markdown alone: files hold only results/ledger/."
        )
    results = collect([f for f in given.get("runs", "").split(",") if f])
    if "--readme" in switches:
        print("\n".join(f"wrote {path}" for path in write(results)))
    else:
        shown = as_markdown if "--markdown" in switches else as_text
        print(shown(results, names))
    return errors.DONE


if __name__ == "__main__":
    cli.start(__doc__, run)
