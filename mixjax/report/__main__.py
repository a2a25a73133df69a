"""python -m mixjax.report --workdir=RUN [--out=FILE]

Writes one HTML page about a run: how far it is, its curves, what was measured, its
pictures, its configuration and what made it. The page is a single file without scripts
or anything from elsewhere; it can be sent, kept beside a paper, read on a phone. It
may be written while the run goes on.

  --workdir=RUN   the folder of a run
  --out=FILE      the page; RUN/report.html unless given
"""

import json
import re
from pathlib import Path

from mixjax import errors
from mixjax.config import recipes
from mixjax.report import charts, page
from mixjax.report.read_run import Found, gather
from mixjax.runtime import cli

HIDDEN = r"train/(examples_seen|epoch)|perf/(eta_s|.*_per_device)|(.*/)?(examples|bank)"
ORDER = (r"train/loss$", r"train/loss", r".*top1", r"train/lr", r"train/grad_norm")
ORDER += (r"train/", r"health/", r"perf/img_per_sec$", r"perf/")
SHOWN = 24  # pictures, the newest
WARNING = r"collaps|unreadable|wait for data|not finite|cannot be read"


def order(name: str) -> tuple:
    """Where a metric stands among others."""
    rank = (i for i, regex in enumerate(ORDER) if re.match(regex, name))
    return next(rank, len(ORDER)), name


def total_steps(found: Found) -> int | None:
    """The length of the run in steps, if anything says it."""
    if found.entries:
        return found.entries[-1]["total_steps"]
    left, each = found.curves.get("perf/eta_s"), found.curves.get("perf/step_ms")
    if left and each and each[-1][1] > 0:
        return left[-1][0] + round(1e3 * left[-1][1] / each[-1][1])
    return found.config.get("steps")


def facts(found: Found) -> dict[str, str]:
    """What stands at the top: how far, how good, how fast, on what; no empty ones."""
    last = {name: points[-1][1] for name, points in found.curves.items()}
    reached = max((points[-1][0] for points in found.curves.values()), default=0)
    total, config = total_steps(found), recipes.flat(found.config)
    devices = re.search(r"^devices: (.*)$", found.texts["env.txt"], re.MULTILINE)
    known = {
        "status": found.status,
        "step": f"{reached} of {total}" if total else reached,
        **{name: value for name, value in last.items() if name.endswith("top1")},
        "loss": last.get("train/loss"),
        "examples seen": last.get("train/examples_seen"),
        "epochs": last.get("train/epoch"),
        "images/s": last.get("perf/img_per_sec"),
        "batch": config.get("batch"),
        "seed": config.get("seed"),
        "method": config.get("method.name"),
        "data": config.get("data.source"),
        "devices": devices and devices[1],
        "commit": found.texts["git.txt"].partition("\n")[0][:12],
    }
    return {k: page.shown(v) for k, v in known.items() if v not in (None, "")}


def at_the_top(found: Found) -> str:
    """Facts as a list of words and what they are, and what could not be read."""
    pairs = facts(found).items()
    inside = "".join(
        f"<div><dt>{page.escape(word)}</dt><dd>{page.escape(fact)}</dd></div>"
        for word, fact in pairs
    )
    notes = "".join(f"<li>{page.escape(note)}</li>" for note in found.notes)
    return f'<dl class="facts">{inside}</dl>' + (f"<ul>{notes}</ul>" if notes else "")


def shown_curves(found: Found) -> list[str]:
    """Names of the metrics that are drawn, in order."""
    names = (n for n in found.curves if not re.fullmatch(HIDDEN, n))
    return sorted(names, key=order)


def drawn(found: Found) -> str:
    """A small chart for each metric."""
    figures = []
    for name in shown_curves(found):
        points = found.curves[name]
        log = " (log)" if charts.is_wide([y for _, y in points]) else ""
        last = charts.short(points[-1][1])
        caption = f"<b>{page.escape(name)}</b>{log} <span>{last}</span>"
        chart = charts.curve(name, points)
        figures.append(f"<figure><figcaption>{caption}</figcaption>{chart}</figure>")
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def measured(found: Found) -> str:
    """The newest entry of every protocol, a line a metric."""
    newest_of = {e["protocol"]: e for e in found.entries}
    heads = ("protocol", "step", "metric", "value", "batch", "hours", "hardware")
    lines = [
        (e["protocol"], e["step"], metric, "" if value is None else value)
        + (e["effective_batch"], e["hours"], e["hardware"])
        for e in newest_of.values()
        for metric, value in e["metrics"].items()
    ]
    return page.table(heads, lines, "Evaluations") if lines else ""


def values(found: Found, prefix: str, label: str) -> str:
    """First and last value of every metric that begins with `prefix`."""
    names = sorted((n for n in found.curves if n.startswith(prefix)), key=order)
    ends = [(n, found.curves[n][0], found.curves[n][-1]) for n in names]
    lines = [(n, first[1], last[1], last[0]) for n, first, last in ends]
    heads = ("metric", "first", "last", "step")
    return page.table(heads, lines, label) if lines else ""


def warnings(found: Found) -> str:
    """Lines of the log about features that collapse, files and waiting."""
    lines = [x for x in found.texts["train.log"].splitlines() if re.search(WARNING, x)]
    return page.preformatted("\n".join(lines[-20:]))


def pictures(found: Found) -> str:
    """The newest pictures; how many older ones there are."""
    figures, broken = [], []
    for path in found.pictures[:SHOWN]:
        try:
            image = page.embedded(path)
        except (OSError, SyntaxError) as error:  # Pillow's words for a broken file
            broken.append(f"{path.name} cannot be read: {error}.")
            continue
        caption = f"<figcaption>{page.escape(path.name)}</figcaption>"
        figures.append(f"<figure>{caption}{image}</figure>")
    left = len(found.pictures) - SHOWN
    said = broken + ([f"{left} older pictures are in figures/."] if left > 0 else [])
    notes = "".join(f"<p>{page.escape(x)}</p>" for x in said)
    return (f'<div class="wide">{"".join(figures)}</div>' if figures else "") + notes


def configuration(found: Found) -> str:
    """Every field and its value, folded."""
    lines = [(k, json.dumps(v)) for k, v in recipes.flat(found.config).items()]
    inside = page.table(("field", "value"), lines, "Fields") if lines else ""
    return page.folded(f"{len(lines)} fields", inside)


def parts(found: Found) -> dict[str, tuple[str, ...]]:
    """{anchor: (title, its HTML, ...)} of the page, in order; some may be empty."""
    commit, _, changes = found.texts["git.txt"].partition("\n")
    everything = values(found, "", "All numbers")
    return {
        "curves": ("Curves", drawn(found)),
        "evaluations": ("Evaluations", measured(found)),
        "pictures": ("Pictures", pictures(found)),
        "health": ("Health", values(found, "health/", "Health"), warnings(found)),
        "numbers": ("Numbers", page.folded("first and last of all", everything)),
        "configuration": ("Configuration", configuration(found)),
        "made": (
            "What made it",
            page.listing(found.texts["env.txt"], "versions, devices, command"),
            page.listing(commit, "commit"),
            page.listing(changes, "changes beside the commit"),
            page.listing(found.texts["parameters.txt"], "parameters"),
        ),
    }


def render(found: Found) -> str:
    """The page of a run."""
    made = {
        name: (title, page.section(name, title, *inside))
        for name, (title, *inside) in parts(found).items()
    }
    links = "".join(f'<a href="#{n}">{t}</a>' for n, (t, body) in made.items() if body)
    head = f"<h1>{page.escape(found.name)}</h1>{at_the_top(found)}"
    title = f"{found.name}: {found.status}"
    return page.document(title, links, head, [body for _, body in made.values()])


def write(workdir: str, out: str | None) -> str:
    """Writes the page of a run; says where. UsageError if that is not possible."""
    text = render(gather(workdir))
    path = Path(out or Path(workdir) / "report.html").expanduser()
    try:
        path.write_text(text)
    except OSError as error:
        raise errors.UsageError(f"--out={path} cannot be written: {error}.") from error
    return f"wrote {path} ({len(text) / 1e6:.1f} MB)"


def run(argv: list[str]) -> int:
    """Writes the page that the flags (without the program's name) ask for."""

    def work():
        given, _ = cli.flags(argv, ("workdir", "out"))
        folder = cli.need(given, "workdir", "name the folder of a run")
        print(write(folder, given.get("out")))

    return cli.code(work)


if __name__ == "__main__":
    cli.start(__doc__, run)
