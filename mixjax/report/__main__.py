"""python -m mixjax.report --workdir=RUN [--out=FILE]

Writes an HTML page about a run: its progress, curves, evaluations, pictures and
configuration, and the code and machine that produced it. The page is a single file
without scripts or external resources: it can be mailed, archived beside a paper or read
on a phone. It can be written while the run is going on.

  --workdir=RUN   the folder of a run
  --out=FILE      the page to write; default: RUN/report.html
"""

import json
import re
from pathlib import Path

from mixjax import errors
from mixjax.config import recipes
from mixjax.report import charts, page
from mixjax.report.read_run import RunFiles, gather
from mixjax.runtime import cli

# Metrics without a chart: counters, and rates that a chart of another unit shows.
HIDDEN = r"train/(examples_seen|epoch)|perf/(eta_s|.*_per_device)|(.*/)?(examples|bank)"
# Charts are sorted by the first of these expressions that their metric matches.
ORDER = (r"train/loss$", r"train/loss", r".*top1", r"train/lr", r"train/grad_norm")
ORDER += (r"train/", r"health/", r"perf/img_per_sec$", r"perf/")
SHOWN = 24  # the newest pictures; more would make the page too heavy to send
# Lines of train.log that the report repeats.
WARNING = r"collaps|unreadable|wait for data|not finite|cannot be read"


def order(name: str) -> tuple:
    """The sort key of a metric: its place in ORDER, then its name."""
    rank = (i for i, regex in enumerate(ORDER) if re.match(regex, name))
    return next(rank, len(ORDER)), name


def total_steps(run: RunFiles) -> int | None:
    """The length of the run in steps, None if unknown.

    From an evaluation, else from the estimated time left, else from the configuration.
    """
    if run.entries:
        return run.entries[-1]["total_steps"]
    eta, step_ms = run.curves.get("perf/eta_s"), run.curves.get("perf/step_ms")
    if eta and step_ms and step_ms[-1][1] > 0:
        step, seconds_left = eta[-1]
        return step + round(1e3 * seconds_left / step_ms[-1][1])
    return run.config.get("steps")


def facts(run: RunFiles) -> dict[str, str]:
    """The facts at the top of the page, {word: value}; empty ones are left out."""
    last = {name: points[-1][1] for name, points in run.curves.items()}
    reached = max((points[-1][0] for points in run.curves.values()), default=0)
    total, config = total_steps(run), recipes.flat(run.config)
    devices = re.search(r"^devices: (.*)$", run.texts["env.txt"], re.MULTILINE)
    pairs = {
        "status": run.status,
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
        "commit": run.texts["git.txt"].partition("\n")[0][:12],
    }
    return {k: page.shown(v) for k, v in pairs.items() if v not in (None, "")}


def at_the_top(run: RunFiles) -> str:
    """The facts as an HTML list, followed by notes on what could not be read."""
    pairs = facts(run).items()
    items = "".join(
        f"<div><dt>{page.escape(word)}</dt><dd>{page.escape(fact)}</dd></div>"
        for word, fact in pairs
    )
    notes = "".join(f"<li>{page.escape(note)}</li>" for note in run.notes)
    return f'<dl class="facts">{items}</dl>' + (f"<ul>{notes}</ul>" if notes else "")


def shown_curves(run: RunFiles) -> list[str]:
    """The names of the metrics that get a chart, in order."""
    names = (n for n in run.curves if not re.fullmatch(HIDDEN, n))
    return sorted(names, key=order)


def draw_charts(run: RunFiles) -> str:
    """A small chart for each metric."""
    figures = []
    for name in shown_curves(run):
        points = run.curves[name]
        log = " (log)" if charts.is_wide([y for _, y in points]) else ""
        last = charts.short(points[-1][1])
        caption = f"<b>{page.escape(name)}</b>{log} <span>{last}</span>"
        chart = charts.curve(name, points)
        figures.append(f"<figure><figcaption>{caption}</figcaption>{chart}</figure>")
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def measured(run: RunFiles) -> str:
    """A table of the newest entry of every protocol, with a line for each metric."""
    # Entries are sorted by step, so the last of a protocol wins.
    newest_of = {e["protocol"]: e for e in run.entries}
    heads = ("protocol", "step", "metric", "value", "batch", "hours", "hardware")
    lines = [
        (e["protocol"], e["step"], metric, "" if value is None else value)
        + (e["effective_batch"], e["hours"], e["hardware"])
        for e in newest_of.values()
        for metric, value in e["metrics"].items()
    ]
    return page.table(heads, lines, "Evaluations") if lines else ""


def values(run: RunFiles, prefix: str, label: str) -> str:
    """A table of the first and last value of every metric that begins with `prefix`."""
    names = sorted((n for n in run.curves if n.startswith(prefix)), key=order)
    ends = [(n, run.curves[n][0], run.curves[n][-1]) for n in names]
    lines = [(n, first[1], last[1], last[0]) for n, first, last in ends]
    heads = ("metric", "first", "last", "step")
    return page.table(heads, lines, label) if lines else ""


def warnings(run: RunFiles) -> str:
    """The last 20 lines of the log that match WARNING."""
    lines = [x for x in run.texts["train.log"].splitlines() if re.search(WARNING, x)]
    return page.preformatted("\n".join(lines[-20:]))


def pictures(run: RunFiles) -> str:
    """The newest pictures, and notes on broken and older ones."""
    figures, broken = [], []
    for path in run.pictures[:SHOWN]:
        try:
            image = page.embedded(path)
        except (OSError, SyntaxError) as error:  # Pillow's errors for broken files
            broken.append(f"{path.name} cannot be read: {error}.")
            continue
        caption = f"<figcaption>{page.escape(path.name)}</figcaption>"
        figures.append(f"<figure>{caption}{image}</figure>")
    older = len(run.pictures) - SHOWN
    texts = broken + ([f"{older} older pictures are in figures/."] if older > 0 else [])
    notes = "".join(f"<p>{page.escape(x)}</p>" for x in texts)
    return (f'<div class="wide">{"".join(figures)}</div>' if figures else "") + notes


def configuration(run: RunFiles) -> str:
    """A folded table of all fields and their values."""
    lines = [(k, json.dumps(v)) for k, v in recipes.flat(run.config).items()]
    fields = page.table(("field", "value"), lines, "Fields") if lines else ""
    return page.folded(f"{len(lines)} fields", fields)


def parts(run: RunFiles) -> dict[str, tuple[str, ...]]:
    """The sections in order, {anchor: (title, HTML, ...)}; HTML may be empty."""
    commit, _, changes = run.texts["git.txt"].partition("\n")
    everything = values(run, "", "All numbers")
    return {
        "curves": ("Curves", draw_charts(run)),
        "evaluations": ("Evaluations", measured(run)),
        "pictures": ("Pictures", pictures(run)),
        "health": ("Health", values(run, "health/", "Health"), warnings(run)),
        "numbers": (
            "Numbers",
            page.folded("first and last value of each metric", everything),
        ),
        "configuration": ("Configuration", configuration(run)),
        "made": (
            "Provenance",
            page.listing(run.texts["env.txt"], "versions, devices, command"),
            page.listing(commit, "commit"),
            page.listing(changes, "changes since the commit"),
            page.listing(run.texts["parameters.txt"], "parameters"),
        ),
    }


def render(run: RunFiles) -> str:
    """The page of a run."""
    sections = {
        name: (title, page.section(name, title, *bodies))
        for name, (title, *bodies) in parts(run).items()
    }
    links = "".join(
        f'<a href="#{name}">{title}</a>'
        for name, (title, section) in sections.items()
        if section  # empty sections are left out, and so are links to them
    )
    head = f"<h1>{page.escape(run.name)}</h1>{at_the_top(run)}"
    title = f"{run.name}: {run.status}"
    body = [section for _, section in sections.values()]
    return page.document(title, links, head, body)


def write(workdir: str, out: str | None) -> str:
    """Writes the page of a run and returns a sentence on it; UsageError if it fails."""
    text = render(gather(workdir))
    path = Path(out or Path(workdir) / "report.html").expanduser()
    try:
        path.write_text(text)
    except OSError as error:
        raise errors.UsageError(f"--out={path} cannot be written: {error}.") from error
    return f"wrote {path} ({len(text) / 1e6:.1f} MB)"


def run(argv: list[str]) -> int:
    """Writes the page that the flags ask for and returns the exit code."""

    def work():
        options, _ = cli.flags(argv, ("workdir", "out"))
        folder = cli.need(options, "workdir", "name the folder of a run")
        print(write(folder, options.get("out")))

    return cli.code(work)


if __name__ == "__main__":
    cli.start(__doc__, run)
