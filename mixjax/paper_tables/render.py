"""The tables of the papers as text or Markdown, with our numbers beside theirs."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence

from mixjax.paper_tables import commands_of_rows, gradable, shown_rows
from mixjax.paper_tables.match_ledger import Number

NOT_RUN = "not run"
MIXTURES = {"unmix": "Un-Mix", "mixmask": "MixMask", "mixmask+unmix": "MixMask*"}
MIXTURES |= {"erase": "erasing", "cutmix": "CutMix"}
MIXTURES |= {"lam_a1": "approach 1", "lam_a2": "approach 2"}
PROTOCOLS = {
    "knn5": "5-nn",
    "knn200": "kNN of 200",
    "finetune": "fine-tuned",
    "ablation_finetune": "fine-tuned",
    "ablation_linear": "linear",
    "ablation_segmentation_ade20k": "segmentation",
    "segmentation_ade20k": "segmentation",
    "detection_coco": "detection",
    "detection_voc": "detection",
    "instance_coco": "instances",
    "lowshot1": "1 % of the labels",
    "lowshot10": "10 % of the labels",
    "robustness_a": "fine-tuned",
    "robustness_c": "fine-tuned",
    "pretrain_loss": "pre-training",
}
REMARKS = {  # settings that weaken a number -> what is said of it
    "placeholder": "not in the text",
    "approximate": "approximate",
    "upper_bound": "upper bound",
    "from_figure": "from a figure",
    "k_inferred": "k is inferred",
    "epochs_inferred": "epochs are inferred",
}
HEADS = ("row", "what", "measured", "paper", "ours", "difference", "remarks", "made by")


def what(row: Mapping) -> str:
    """A row's method, mixture, backbone, data and epochs, in words."""
    mixture = MIXTURES.get(row["mixture"])
    name = f"{row['method']} + {mixture}" if mixture else row["method"]
    epochs = f"{row['epochs']} epochs" if row["epochs"] else None
    parts = (name, row["backbone"], row["pretrain_data"], epochs)
    return ", ".join(filter(None, parts))


def measured(row: Mapping) -> str:
    """A row's protocol, its data set if not the pre-training's, and its metric."""
    protocol = commands_of_rows.protocol(row)
    dataset = row["dataset"] if row["dataset"] != row["pretrain_data"] else None
    parts = (PROTOCOLS.get(protocol, protocol), dataset, row["metric"])
    return ", ".join(filter(None, parts))


def remarks(row: Mapping) -> str:
    """What to know before comparing with a row: weak, quoted or contradicted."""
    notes = [text for key, text in REMARKS.items() if row["settings"].get(key)]
    if row["quoted"]:
        notes.append("quoted")
    if row["settings"].get("outcome"):
        notes.append(row["settings"]["outcome"])
    contradiction = commands_of_rows.first(row, shown_rows.CONTRADICTED)
    if contradiction:
        notes.append(f"contradicted: {contradiction}")
    return "; ".join(notes)


def theirs(row: Mapping) -> str:
    """The paper's number."""
    return "unreadable" if row["value"] is None else str(row["value"])


def ours(numbers: Sequence[Number]) -> str:
    """Mean and standard deviation of our numbers; a star if a run departs."""
    if not numbers:
        return NOT_RUN
    values = [n.value for n in numbers]
    star = "*" if any(n.departs for n in numbers) else ""
    shown = f"{statistics.fmean(values):.2f}{star}"
    if len(values) == 1:
        return shown
    return f"{shown} ± {statistics.stdev(values):.2f} of {len(values)} runs"


def difference(row: Mapping, numbers: Sequence[Number]) -> str:
    """Ours minus theirs, "" unless theirs may be compared with."""
    if not numbers or not gradable(row):
        return ""
    return f"{statistics.fmean(n.value for n in numbers) - row['value']:+.2f}"


def made_by(plan: commands_of_rows.Plan) -> str:
    """The recipes of a row in order, or why there are none."""
    if plan.reason:
        return plan.reason
    steps = (plan.pretrain, plan.downstream, plan.evals)
    return ", then ".join(f"`{step}`" for step in steps if step)


def cells(row: Mapping, numbers: Sequence[Number]) -> tuple[str, ...]:
    """A line of a table: a cell for each of HEADS."""
    shown = (theirs(row), ours(numbers), difference(row, numbers))
    made = made_by(commands_of_rows.plan(row))
    return (row["id"], what(row), measured(row), *shown, remarks(row), made)


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    # A bare | would end the cell, and * would set text in italics.
    escape = lambda line: [re.sub(r"([|*])", r"\\\1", cell) for cell in line]
    rows = [heads, ["---"] * len(heads), *map(escape, lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def plain(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in columns, for a terminal."""
    rows = [[cell.replace("`", "") for cell in line] for line in (heads, *lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    pairs = [zip(row, widths, strict=True) for row in rows]
    return "\n".join("  ".join(c.ljust(w) for c, w in p).rstrip() for p in pairs)


def run(row_id: str, number: Number) -> str:
    """One line on a number of ours: how it was measured, and by which run."""
    entry = number.entry
    parts = [
        f"{row_id}: {number.value:.2f}",
        f"{entry['protocol']} at step {entry['step']}",
        f"seed {', '.join(map(str, entry['seeds']))}",
        f"batch {entry['effective_batch']}",
        f"{entry['examples_seen']} examples",
        f"{entry['hours']:.2f} h on {entry['hardware']}",
        f"commit {entry['commit'][:7] or 'unknown'}",
        f"config {entry['config_hash'][:7]}",
    ]
    departs = f"; departs in {', '.join(number.departs)}" if number.departs else ""
    return ", ".join(parts) + departs


def stray(entry: Mapping, nearest: str, why: Sequence[str]) -> str:
    """One line on an entry of no row: what it is, and how it differs from a row."""
    source = entry["config"]["data"]["source"]
    method = entry["config"]["method"]["name"]
    summary = f"{entry['protocol']} of {method} on {source}, step {entry['step']}"
    if not nearest:
        return f"{summary}: no row has this protocol and metric"
    reasons = ", ".join(why[:4])  # four are enough to tell the runs apart
    reasons += f" and {len(why) - 4} more" if len(why) > 4 else ""
    return f"{summary}: nearest is {nearest}, but {reasons}"
