"""Which rows of the tables an entry of the ledger measures.

An entry belongs to a row if it has the row's protocol, metric and data set, if its
pre-training ran to the end, and if its configuration equals the row's recipe in the
fields of entry_rules.SAME. Differences in other fields are reported as departures.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mixjax.config.recipes import flat
from mixjax.paper_tables import commands_of_rows, entry_rules
from mixjax.run import ledger

# How far the number of examples may be from that of a whole run, as a share: the last
# batch of an epoch is dropped, and runs round to whole steps.
TOLERANCE = 0.02


class Number(NamedTuple):
    """A number of ours that belongs to a row."""

    value: float
    entry: Mapping
    departs: list[str]  # differences from the recipe, "batch (4096 -> 256)"


@functools.cache
def recipe(command: str) -> dict:
    """The configuration of a command in the types of JSON, as entries hold theirs."""
    return ledger.plain(commands_of_rows.config(command))


def data_set(config: Mapping) -> str:
    """The name of the data set that data.source names; "" if it is not a paper's."""
    source = config["data"]["source"].lower().rstrip("/")
    names = (
        name
        for name, (regex, _) in entry_rules.SETS.items()
        if re.search(regex, source)
    )
    return next(names, "")


def select_fields(config: Mapping, patterns: Iterable[str]) -> dict:
    """The flat fields of a configuration whose names match one of `patterns`."""
    fields = flat(config)
    return {
        k: v for k, v in fields.items() if any(re.fullmatch(p, k) for p in patterns)
    }


def identity(config: Mapping, patterns: Iterable[str]) -> dict:
    """The facts that must be equal in a recipe and in a run of it."""
    views, name = len(config["data"]["views"]), data_set(config)
    return select_fields(config, patterns) | {"views": views, "data set": name}


@functools.cache
def wanted(command: str, patterns: tuple[str, ...]) -> dict:
    """The identity of a recipe."""
    return identity(recipe(command), patterns)


def differences(before: Mapping, after: Mapping) -> list[str]:
    """The fields that differ, each as "field (before -> after)"."""
    absent = "absent"
    return [
        f"{k} ({before.get(k, absent)!r} -> {after.get(k, absent)!r})"
        for k in sorted(before.keys() | after.keys())
        if before.get(k, absent) != after.get(k, absent)
    ]


def departures(before: Mapping, after: Mapping) -> list[str]:
    """The differences of two configurations in fields neither SAME nor FREE."""
    excepted = (*entry_rules.SAME, *entry_rules.FREE)

    def other_fields(config):
        skipped = select_fields(config, excepted)
        return {k: v for k, v in flat(config).items() if k not in skipped}

    return differences(other_fields(before), other_fields(after))


def metric(row: Mapping, entry: Mapping) -> float | None:
    """The value of the row's metric in an entry; None unless exactly one matches."""
    regexes = entry_rules.METRICS
    on_this_set = regexes.get((row["metric"], row["dataset"]))
    regex = on_this_set or regexes.get((row["metric"], None))
    if not regex:
        return None
    values = [v for k, v in entry["metrics"].items() if re.fullmatch(regex, k)]
    return values[0] if len(values) == 1 else None


def measured(row: Mapping, plan: commands_of_rows.Plan, entry: Mapping) -> bool:
    """Whether an entry has the row's protocol and metric."""
    regexes = entry_rules.PROTOCOLS
    # A file of evaluations decides the protocol, as a probe does for "linear".
    regex = regexes.get(plan.evals) or regexes[commands_of_rows.protocol(row)]
    matches = re.match(regex, entry["protocol"])
    return bool(matches) and metric(row, entry) is not None


class Run(NamedTuple):
    """What is compared of a run with the recipes."""

    same: dict  # its identity in the fields of entry_rules.SAME
    after: dict  # and in those of entry_rules.SAME_AFTER
    stopped: list[str]  # why it did not reach its last step; [] if it did
    shortened: list[str]  # why it is no whole pre-training on its data set; [] if it is


def read_run(run: Mapping) -> Run:
    """An entry, or the origin of one, as why_refused() compares it."""
    config, step = run["config"], run["step"]
    size = entry_rules.SETS.get(data_set(config), (None, 0))[1]
    examples, planned = step * config["batch"], config["epochs"] * size
    is_short = bool(config["steps"]) or abs(examples - planned) > TOLERANCE * planned
    reason = f"saw {examples} pictures where the whole run sees {planned:.0f}"
    return Run(
        same=identity(config, entry_rules.SAME),
        after=identity(config, entry_rules.SAME_AFTER),
        stopped=[] if run["complete"] else [f"stopped at step {step}"],
        shortened=[reason] if is_short else [],
    )


def why_refused(plan: commands_of_rows.Plan, run: Run, origin: Run | None) -> list[str]:
    """Why a run, started from `origin`, is not the row of a plan; [] if it is."""
    pretraining = origin if plan.downstream else run
    if not pretraining:
        return ["it does not say from which run it began"]
    reasons = differences(wanted(plan.pretrain, entry_rules.SAME), pretraining.same)
    # A stopped run has seen too little anyway: one reason is enough.
    reasons += pretraining.stopped or pretraining.shortened
    if plan.downstream:
        after = wanted(plan.downstream, entry_rules.SAME_AFTER)
        reasons += differences(after, run.after) + run.stopped
    return reasons


def number(row: Mapping, plan: commands_of_rows.Plan, entry: Mapping) -> Number:
    """The number of an entry for a row, with the departures of its pre-training."""
    run = entry["origin"] if plan.downstream else entry
    departs = departures(recipe(plan.pretrain), run["config"])
    return Number(metric(row, entry), entry, departs)


def place(rows: Iterable[Mapping], entries: Iterable[Mapping]) -> tuple[dict, list]:
    """Finds the rows of every entry: ({id of a row: its numbers}, strays).

    A stray is an entry of no row, as (entry, id of the nearest row, why it is not that
    row); the id is "" if no row has its protocol and metric. The nearest row is the one
    with the fewest reasons against it.
    """
    planned = [(row, commands_of_rows.plan(row)) for row in rows]
    planned = [(row, plan) for row, plan in planned if not plan.reason]
    numbers, strays = {}, []
    for entry in once(entries):
        run, origin = read_run(entry), entry["origin"] and read_run(entry["origin"])
        candidates = [
            (why_refused(plan, run, origin), row, plan)
            for row, plan in planned
            if measured(row, plan, entry)
        ]
        placed = [(row, plan) for reasons, row, plan in candidates if not reasons]
        for row, plan in placed:
            numbers.setdefault(row["id"], []).append(number(row, plan, entry))
        if not placed:
            nothing = ([], {}, None)
            reasons, row, _ = min(candidates, key=lambda c: len(c[0]), default=nothing)
            strays.append((entry, row.get("id", ""), reasons))
    return numbers, strays


def once(entries: Iterable[Mapping]) -> list[Mapping]:
    """Of entries that measure the same run in the same way, the latest step's."""
    newest = {}
    for entry in entries:
        origin = entry["origin"].get("config_hash", "")  # an origin may be {}
        key = (entry["config_hash"], origin, entry["protocol"], entry["name"])
        if key not in newest or entry["step"] >= newest[key]["step"]:
            newest[key] = entry
    return list(newest.values())
