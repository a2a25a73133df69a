"""Which rows an entry of the ledger is: those whose recipe is what it was made by.

An entry belongs to a row if the protocol, the metric and the data set are the row's,
the pre-training was whole, and its configuration agrees with the row's recipe in the
fields of rules.SAME. Other differences are told as departures.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mixjax.config.recipes import flat
from mixjax.paper_tables import commands_of_rows, recipes_of_rows
from mixjax.run import ledger

CLOSE = 0.02  # of the pictures that a whole run sees: last batches are cut


class Number(NamedTuple):
    """A number of ours that belongs to a row."""

    value: float
    entry: Mapping
    departs: list[str]  # "batch (4096 -> 256)"


@functools.cache
def recipe(command: str) -> dict:
    """The configuration of a command as a JSON file would give it back."""
    return ledger.plain(commands_of_rows.config(command))


def data_set(config: Mapping) -> str:
    """The name of the data set that data.source speaks of; "" if it is none of ours."""
    source = config["data"]["source"].lower().rstrip("/")
    names = (
        name
        for name, (said, _) in recipes_of_rows.SETS.items()
        if re.search(said, source)
    )
    return next(names, "")


def chosen(config: Mapping, patterns: Iterable[str]) -> dict:
    """The fields of a configuration, flat, whose names one of `patterns` is."""
    fields = flat(config)
    return {
        k: v for k, v in fields.items() if any(re.fullmatch(p, k) for p in patterns)
    }


def identity(config: Mapping, patterns: Iterable[str]) -> dict:
    """What must be the same in a recipe and in a run of it."""
    views = len(config["data"]["views"])
    return chosen(config, patterns) | {"views": views, "data set": data_set(config)}


@functools.cache
def wanted(command: str, patterns: tuple[str, ...]) -> dict:
    """The identity of a recipe."""
    return identity(recipe(command), patterns)


def differences(before: Mapping, after: Mapping) -> list[str]:
    """All fields that differ, as "field (before -> after)"."""
    absent = "absent"
    return [
        f"{k} ({before.get(k, absent)!r} -> {after.get(k, absent)!r})"
        for k in sorted(before.keys() | after.keys())
        if before.get(k, absent) != after.get(k, absent)
    ]


def departures(before: Mapping, after: Mapping) -> list[str]:
    """Differences of two configurations that are neither identity nor FREE."""
    known = (*recipes_of_rows.SAME, *recipes_of_rows.FREE)

    def rest(config):
        fields = flat(config)
        known_ones = chosen(config, known)
        return {k: v for k, v in fields.items() if k not in known_ones}

    return differences(rest(before), rest(after))


def metric(row: Mapping, entry: Mapping) -> float | None:
    """The value of the row's metric in an entry; None if it has none, or several."""
    names = recipes_of_rows.METRICS
    name = names.get((row["metric"], row["dataset"])) or names.get(
        (row["metric"], None)
    )
    found = [v for k, v in entry["metrics"].items() if name and re.fullmatch(name, k)]
    return found[0] if len(found) == 1 else None


def measured(row: Mapping, plan: commands_of_rows.Plan, entry: Mapping) -> bool:
    """Whether the entry is of the row's protocol and has its metric."""
    known = recipes_of_rows.PROTOCOLS
    regex = known.get(plan.evals) or known[commands_of_rows.protocol(row)]
    found = re.match(regex, entry["protocol"])
    return bool(found) and metric(row, entry) is not None


class Run(NamedTuple):
    """A run as it is compared with recipes."""

    same: dict  # its fields of rules.SAME
    after: dict  # and of rules.SAME_AFTER
    stopped: list[str]  # why it did not come to its end
    seen: list[str]  # why it is not a whole pre-training on its data set


def look(run: Mapping) -> Run:
    """An entry, or its origin, for refused()."""
    config, step = run["config"], run["step"]
    size = recipes_of_rows.SETS.get(data_set(config), (None, 0))[1]
    seen, planned = step * config["batch"], config["epochs"] * size
    short = bool(config["steps"]) or abs(seen - planned) > CLOSE * planned
    return Run(
        same=identity(config, recipes_of_rows.SAME),
        after=identity(config, recipes_of_rows.SAME_AFTER),
        stopped=[] if run["complete"] else [f"stopped at step {step}"],
        seen=[f"saw {seen} pictures where the whole run sees {planned:.0f}"] * short,
    )


def refused(plan: commands_of_rows.Plan, run: Run, origin: Run | None) -> list[str]:
    """Why a run, begun from `origin`, is not the row of a plan; nothing if it is."""
    before = origin if plan.downstream else run
    if not before:
        return ["it does not say from which run it began"]
    why = differences(wanted(plan.pretrain, recipes_of_rows.SAME), before.same)
    why += before.stopped or before.seen
    if plan.downstream:
        after = wanted(plan.downstream, recipes_of_rows.SAME_AFTER)
        why += differences(after, run.after) + run.stopped
    return why


def number(row: Mapping, plan: commands_of_rows.Plan, entry: Mapping) -> Number:
    """The number of an entry that is the row, and how its pre-training departs."""
    run = entry["origin"] if plan.downstream else entry
    departs = departures(recipe(plan.pretrain), run["config"])
    return Number(metric(row, entry), entry, departs)


def place(rows: Iterable[Mapping], entries: Iterable[Mapping]) -> tuple[dict, list]:
    """({id of a row: its numbers}, [(entry that is no row, the nearest, why)]).

    The nearest is a row's id, or "" if no row is measured so.
    """
    planned = [(row, commands_of_rows.plan(row)) for row in rows]
    planned = [(row, plan) for row, plan in planned if not plan.reason]
    numbers, strays = {}, []
    for entry in once(entries):
        run, origin = look(entry), entry["origin"] and look(entry["origin"])
        tried = [
            (refused(plan, run, origin), row, plan)
            for row, plan in planned
            if measured(row, plan, entry)
        ]
        placed = [(row, plan) for why, row, plan in tried if not why]
        for row, plan in placed:
            numbers.setdefault(row["id"], []).append(number(row, plan, entry))
        if not placed:
            why, row, _ = min(tried, key=lambda t: len(t[0]), default=([], {}, None))
            strays.append((entry, row.get("id", ""), why))
    return numbers, strays


def once(entries: Iterable[Mapping]) -> list[Mapping]:
    """The newest of entries that measure the same run in the same way."""
    newest = {}
    for entry in entries:
        begun = entry["origin"].get("config_hash", "")
        key = (entry["config_hash"], begun, entry["protocol"], entry["name"])
        if key not in newest or entry["step"] >= newest[key]["step"]:
            newest[key] = entry
    return list(newest.values())
