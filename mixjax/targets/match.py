"""Which rows an entry of the ledger is: those whose recipe is what it was made by.

An entry belongs to a row if the protocol, the metric and the data set are the row's,
the pre-training was whole, and its configuration agrees with the row's recipe in the
fields of rules.SAME. Other differences are told as departures.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mixjax import ledger
from mixjax.recipes import flat
from mixjax.targets import plans, rules

CLOSE = 0.02  # of the pictures that a whole run sees: last batches are cut


class Number(NamedTuple):
    """A number of ours that belongs to a row."""

    value: float
    entry: Mapping
    departs: list[str]  # "batch (4096 -> 256)"


@functools.cache
def recipe(command: str) -> dict:
    """The configuration of a command as a JSON file would give it back."""
    return ledger.plain(plans.config(command))


def data_set(config: Mapping) -> str:
    """The name of the data set that data.source speaks of; "" if it is none of ours."""
    source = config["data"]["source"].lower().rstrip("/")
    names = (name for name, (said, _) in rules.SETS.items() if re.search(said, source))
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


def differences(wanted: Mapping, found: Mapping) -> list[str]:
    """ "field (wanted -> found)" of all fields that differ."""
    absent = "absent"
    return [
        f"{k} ({wanted.get(k, absent)!r} -> {found.get(k, absent)!r})"
        for k in sorted(wanted.keys() | found.keys())
        if wanted.get(k, absent) != found.get(k, absent)
    ]


def departures(wanted: Mapping, found: Mapping) -> list[str]:
    """Differences of two configurations that are neither identity nor FREE."""
    known = (*rules.SAME, *rules.FREE)

    def rest(config):
        fields = flat(config)
        known_ones = chosen(config, known)
        return {k: v for k, v in fields.items() if k not in known_ones}

    return differences(rest(wanted), rest(found))


def metric(row: Mapping, entry: Mapping) -> float | None:
    """The value of the row's metric in an entry; None if it has none, or several."""
    names = rules.METRICS
    name = names.get((row["metric"], row["dataset"])) or names.get(
        (row["metric"], None)
    )
    found = [v for k, v in entry["metrics"].items() if name and re.fullmatch(name, k)]
    return found[0] if len(found) == 1 else None


def measured(row: Mapping, entry: Mapping) -> bool:
    """Whether the entry is of the row's protocol and has its metric."""
    regex = rules.PROTOCOLS.get(plans.protocol(row))
    return bool(regex and re.match(regex, entry["protocol"])) and (
        metric(row, entry) is not None
    )


def before(plan: plans.Plan, entry: Mapping) -> Mapping:
    """The pre-training of an entry: its origin, or itself if nothing came after."""
    return entry["origin"] if plan.downstream else entry


def partial(run: Mapping) -> list[str]:
    """Why a pre-training run is not a whole one of its data set."""
    if not run["complete"]:
        return [f"stopped at step {run['step']}"]
    config = run["config"]
    size = rules.SETS.get(data_set(config), (None, 0))[1]
    seen, planned = run["step"] * config["batch"], config["epochs"] * size
    if config["steps"] or abs(seen - planned) > CLOSE * planned:
        return [f"saw {seen} pictures where the whole run sees {planned:.0f}"]
    return []


def refused(row: Mapping, plan: plans.Plan, entry: Mapping) -> list[str]:
    """Why an entry is not the row, of which it is measured(); nothing if it is."""
    run = before(plan, entry)
    if not run:
        return ["it does not say from which run it began"]
    wanted = identity(recipe(plan.pretrain), rules.SAME)
    why = differences(wanted, identity(run["config"], rules.SAME)) + partial(run)
    if not plan.downstream:
        return why
    why += [] if entry["complete"] else [f"stopped at step {entry['step']}"]
    if plans.file_of(plan.downstream) in rules.NOT_BUILT_YET:
        return why
    wanted = identity(recipe(plan.downstream), rules.SAME_AFTER)
    return why + differences(wanted, identity(entry["config"], rules.SAME_AFTER))


def number(row: Mapping, plan: plans.Plan, entry: Mapping) -> Number:
    """The number of an entry that is the row, and how its pre-training departs."""
    config = before(plan, entry)["config"]
    departs = departures(recipe(plan.pretrain), config)
    return Number(metric(row, entry), entry, departs)


def place(rows: Iterable[Mapping], entries: Iterable[Mapping]) -> tuple[dict, list]:
    """({id of a row: its numbers}, [(entry that is no row, the nearest, why)]).

    The nearest is a row's id, or "" if no row is measured so.
    """
    planned = [(row, plans.plan(row)) for row in rows]
    planned = [(row, plan) for row, plan in planned if not plan.reason]
    numbers, strays = {}, []
    for entry in once(entries):
        tried = [
            (refused(row, plan, entry), row, plan)
            for row, plan in planned
            if measured(row, entry)
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
