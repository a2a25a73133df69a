"""From a row to the commands that make its number, or to why there are none."""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from mixjax.config import recipes
from mixjax.paper_tables import recipes_of_rows

ROOT = Path(__file__).parents[2]


class Plan(NamedTuple):
    """How a row is made: recipes with their variants and fields, or a reason."""

    pretrain: str  # "c10_moco.py:mixture=unmix --config.x=y"; "" if there is a reason
    downstream: str  # likewise, begun from it; "" if it is measured as it is
    evals: str  # the file of evaluations, where it is not the recipe's own
    reason: str  # why there is no command


def text(row: Mapping, field: str) -> str:
    """A field of a row, or a setting of it, as rules see it."""
    section, _, name = field.partition(".")
    value = row[section].get(name) if name else row[section]
    return "" if value is None else str(value)


def fits(row: Mapping, where: Mapping) -> bool:
    """Whether the fields of a row are as a rule has them."""
    return all(re.fullmatch(regex, text(row, f)) for f, regex in where.items())


def first(row: Mapping, table: Iterable) -> str | None:
    """What the first rule that fits says; None if none does."""
    return next((what for where, what in table if fits(row, where)), None)


def words(row: Mapping) -> dict[str, str]:
    """What the words in braces stand for in this row."""
    settings, data = row["settings"], row["pretrain_data"]
    found = {
        "set": recipes_of_rows.FILES.get(data, ""),
        "mixture": recipes_of_rows.MIXTURES.get(row["mixture"], row["mixture"]),
        "epochs": text(row, "epochs"),
        "share": row["protocol"].removeprefix("lowshot"),
        "grid": text(row, "settings.grid").partition("x")[0],
        "ratio": recipes_of_rows.RATIOS.get(settings.get("mask_ratio"), ""),
        "lambda2": text(row, "settings.lambda2"),
        "lambda3": text(row, "settings.lambda3"),
    }
    base = first(row, recipes_of_rows.BASES) or ""
    return found | {"base": base.format(**found)}


def fill(template: str, known: Mapping) -> str:
    """A command with its words put in: FILE.py:variants fields."""
    name, *fields = template.split(" ")
    name = name.format(**known)
    file, _, variants = name.partition(".py")
    chosen = [v for v in re.split("[:,]", variants) if v and v != "mixture=none"]
    name = f"{file}.py" + (":" + ",".join(chosen) if chosen else "")
    return " ".join([name, *(f.format(**known) for f in fields)])


def plan(row: Mapping) -> Plan:
    """How a row is made. LookupError if no rule speaks of it."""
    reason = first(row, recipes_of_rows.REASONS)
    if reason:
        return Plan("", "", "", reason)
    # Lam copied SimCLR's number from a column of another protocol.
    row = row | {"protocol": protocol(row)}
    before, after = (
        first(row, recipes_of_rows.PRETRAIN),
        first(row, recipes_of_rows.DOWNSTREAM),
    )
    if before is None or after is None:
        raise LookupError(f"no rule speaks of {row['id']}")
    known, (recipe, evals) = words(row), after
    return Plan(fill(before, known), fill(recipe, known) if recipe else "", evals, "")


def protocol(row: Mapping) -> str:
    """How the number of a row was really measured."""
    return row["settings"].get("true_protocol", row["protocol"])


def commands(plan: Plan) -> list[str]:
    """What to type, in turn; RUN is the folder of the pre-training."""
    main = "python -m mixjax.main --workdir={} --config=configs/{}"
    typed, last = [main.format("RUN", plan.pretrain)], "RUN"
    if plan.downstream:
        typed.append(main.format("NEXT", plan.downstream) + " --config.init_from=RUN")
        last = "NEXT"
    if plan.evals or not plan.downstream:
        evals = f" --evals=configs/{plan.evals}" if plan.evals else ""
        typed.append(f"python -m mixjax.evaluate --workdir={last}{evals}")
    return typed


def file_of(command: str) -> str:
    """The file of a recipe with variants and fields."""
    return command.partition(" ")[0].partition(":")[0]


@functools.cache
def config(command: str):
    """The configuration (a ConfigDict) that a command of a plan stands for."""
    name, *fields = command.split(" ")
    given, _ = recipes.read([f"--config={ROOT}/configs/{name}", *fields])
    return given
