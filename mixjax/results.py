"""python -m mixjax.results [--runs=DIR,...] [--paper=mimae] [--markdown [--readme]]

Prints every row of the papers' tables, with our number beside the paper's. Ours are
the entries of results/ledger/ and of the folders given by --runs; a row without any
reads "not run". The rules by which an entry counts as a row are in mixjax/paper_tables.

  --runs=DIR,DIR    folders to search for entries too: a run, or many runs
  --paper=NAME      only one paper: unmix, mixmask, lam, mixedae or mimae
  --row=ID          the commands that reproduce one row
  --markdown        print Markdown
  --readme          with --markdown: write README.md's block and results/tables.md
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mixjax import errors, paper_tables
from mixjax.config import recipes
from mixjax.paper_tables import commands_of_rows, match_ledger, render, shown_rows
from mixjax.run import ledger
from mixjax.runtime import cli

ROOT = Path(__file__).parents[1]
LEDGER = ROOT / "results" / "ledger"
SWITCHES = ("--markdown", "--readme")
BEGIN, END = "<!-- results -->", "<!-- /results -->"
WRITTEN = "<!-- written by python -m mixjax.results --markdown --readme -->"

INTRODUCTION = """\
Each line is one number of a paper. "made by" names the recipes in configs/ that
reproduce it, the second starting from the first, or says why there is none.
"difference" is ours minus the paper's; it is left out where the paper's number is
approximate, a bound or contradicted by the paper itself. A star marks a run that
departs from the recipe, as listed under "Runs". MixMask\\* is `mixture=both`.
`python -m mixjax.results --row=ROW` prints the commands of a row."""
SUMMARY = """\
The numbers that matter most, of all rows in [results/tables.md](results/tables.md);
`python -m mixjax.results --runs=runs` puts what you have measured beside them.
MixMask\\* is `mixture=both`."""
STRAYS = "Entries that belong to no row of these tables"


class Results(NamedTuple):
    """Entries of the ledger by row, and those that belong to no row."""

    numbers: Mapping  # id of a row -> [match_ledger.Number]
    strays: list  # (entry, id of the nearest row, why it is not that row)


def collect(folders: Sequence[str]) -> Results:
    """Reads results/ledger/ and `folders`, and finds the row of each entry."""
    entries = ledger.read(LEDGER) if LEDGER.is_dir() else []
    for folder in folders:
        entries += ledger.read(Path(folder))
    return Results(*match_ledger.place(paper_tables.all_rows(), entries))


def by_table(name: str) -> dict[str, list[dict]]:
    """The rows of a paper by table: {"Table 1": rows}."""
    tables = {}
    for row in paper_tables.rows(name):
        tables.setdefault(row["table"], []).append(row)
    return tables


def title(name: str) -> str:
    """The title of a paper, with its venue or arXiv number."""
    paper = paper_tables.paper(name)
    arxiv = f"arXiv {paper['arxiv']}" if paper["arxiv"] else ""
    source = paper["venue"] or arxiv
    return f"{paper['title']} ({source})" if source else paper["title"]


def runs(results: Results, names: Sequence[str]) -> list[str]:
    """One line for each number of ours in the tables of these papers."""
    ids = [row["id"] for name in names for row in paper_tables.rows(name)]
    return [
        render.run(row_id, number)
        for row_id in ids
        for number in results.numbers.get(row_id, [])
    ]


def as_text(results: Results, names: Sequence[str]) -> str:
    """All tables in columns, for a terminal.

    The columns "what" and "measured" are left out: the ids of the rows imply them.
    """
    keep = [i for i, h in enumerate(render.HEADS) if h not in ("what", "measured")]
    short = lambda line: tuple(line[i] for i in keep)
    parts = []
    for name in names:
        parts.append(title(name))
        for table, rows in by_table(name).items():
            lines = [short(line_of(row, results)) for row in rows]
            parts.append(f"{table}\n{render.plain(short(render.HEADS), lines)}")
    run_lines = runs(results, names)
    if run_lines:
        parts.append("\n".join(["Ours (* departs from the recipe)", *run_lines]))
    strays = [render.stray(*s) for s in results.strays]
    if strays:
        parts.append("\n".join([STRAYS, *strays]))
    return "\n\n".join(parts)


def line_of(row: Mapping, results: Results) -> tuple[str, ...]:
    """The cells of a row."""
    return render.cells(row, results.numbers.get(row["id"], []))


def as_markdown(results: Results, names: Sequence[str]) -> str:
    """All tables in Markdown, as in results/tables.md."""
    parts = ["# Every number of the papers, and ours", WRITTEN, INTRODUCTION]
    for name in names:
        parts.append(f"## {title(name)}")
        for table, rows in by_table(name).items():
            lines = [line_of(row, results) for row in rows]
            parts.append(f"### {table}\n\n{render.markdown(render.HEADS, lines)}")
    run_lines = runs(results, names)
    if run_lines:
        parts.append("## Runs\n\n" + "\n".join(f"- {line}" for line in run_lines))
    strays = [render.stray(*s) for s in results.strays]
    if strays:
        bullets = "\n".join(f"- {line}" for line in strays)
        parts.append(f"## {STRAYS}\n\n{bullets}")
    return "\n\n".join(parts) + "\n"


def headlines(results: Results) -> str:
    """The block between the markers of README.md: a few rows of each paper."""
    parts = [WRITTEN, SUMMARY]
    for name in paper_tables.PAPERS:
        rows = {row["id"]: row for row in paper_tables.rows(name)}
        lines = []
        for row_id in shown_rows.HEADLINES[name]:
            row, numbers = rows[row_id], results.numbers.get(row_id, [])
            cells = (render.what(row), render.measured(row), render.theirs(row))
            lines.append((*cells, render.ours(numbers)))
        heads = (shown_rows.PAPER_NAMES[name], "measured", "paper", "ours")
        parts.append(render.markdown(heads, lines))
    return "\n\n".join(parts)


def with_block(text: str, block: str) -> str:
    """Replaces the block between the markers of `text`; UsageError without markers."""
    head, begin, after = text.partition(BEGIN)
    _, end, tail = after.partition(END)
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
    """The commands of a row, or why there are none; UsageError for an unknown id."""
    rows = {row["id"]: row for row in paper_tables.all_rows()}
    errors.check_name("--row", row_id, rows)
    row = rows[row_id]
    plan = commands_of_rows.plan(row)
    lines = [f"{render.what(row)}: {render.measured(row)} {render.theirs(row)}"]
    lines += filter(None, (render.remarks(row), row["note"]))
    lines += [plan.reason] if plan.reason else commands_of_rows.commands(plan)
    return "\n".join(lines)


def run(argv: list[str]) -> int:
    """Prints what the flags ask for and returns the exit code; argv has no program."""
    return cli.code(lambda: show(argv))


def show(argv: list[str]) -> int:
    """Like run(), but lets UsageError through."""
    switches = {word for word in argv if word in SWITCHES}
    options = dict(recipes.pairs([word for word in argv if word not in SWITCHES]))
    for flag in options:
        errors.check_name("flag", flag, ("runs", "paper", "row", "markdown", "readme"))
    if "row" in options:
        print(command_lines(options["row"]))
        return errors.DONE
    names = paper_tables.PAPERS
    if "paper" in options:
        errors.check_name("--paper", options["paper"], names)
        names = (options["paper"],)
    if "--readme" in switches and ("--markdown" not in switches or options):
        raise errors.UsageError(
            "--readme goes with --markdown alone: the files show only results/ledger/."
        )
    results = collect([f for f in options.get("runs", "").split(",") if f])
    if "--readme" in switches:
        print("\n".join(f"wrote {path}" for path in write(results)))
    else:
        render_tables = as_markdown if "--markdown" in switches else as_text
        print(render_tables(results, names))
    return errors.DONE


if __name__ == "__main__":
    cli.start(__doc__, run)
