"""The commands that reproduce a row, or the reason why there are none."""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from mixjax.config import recipes
from mixjax.paper_tables import recipes_of_rows

ROOT = Path(__file__).parents[2]


class Plan(NamedTuple):
    """How to reproduce a row: recipes with their variants and fields, or a reason."""

    pretrain: str  # "c10_moco.py:mixture=unmix --config.x=y"; "" if there is a reason
    downstream: str  # likewise, started from it; "" to evaluate the pre-trained network
    evals: str  # the file of evaluations; "" for those of the recipe
    reason: str  # why there is no command; "" if there is one


def text(row: Mapping, field: str) -> str:
    """The text of a field or setting of a row, as the rules match it; None is ""."""
    section, _, name = field.partition(".")
    value = row[section].get(name) if name else row[section]
    return "" if value is None else str(value)


def fits(row: Mapping, where: Mapping) -> bool:
    """Whether every field that a rule names matches its regular expression."""
    return all(re.fullmatch(regex, text(row, f)) for f, regex in where.items())


def first(row: Mapping, table: Iterable):
    """The result of the first rule that fits a row; None if none does."""
    return next((result for where, result in table if fits(row, where)), None)


def words(row: Mapping) -> dict[str, str]:
    """The values of a row for the names in braces, such as {epochs}."""
    settings, data = row["settings"], row["pretrain_data"]
    values = {
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
    return values | {"base": base.format(**values)}  # a base has names of its own


def fill(template: str, values: Mapping) -> str:
    """A command, FILE.py:variants fields, with the values of a row filled in."""
    name, *fields = template.split(" ")
    name = name.format(**values)
    # Joining bases and variants leaves ":" and "," in any order, and "none" among them.
    file, _, variants = name.partition(".py")
    chosen = [v for v in re.split("[:,]", variants) if v and v != "mixture=none"]
    name = f"{file}.py" + (":" + ",".join(chosen) if chosen else "")
    return " ".join([name, *(f.format(**values) for f in fields)])


def plan(row: Mapping) -> Plan:
    """How to reproduce a row. LookupError if no rule fits it."""
    reason = first(row, recipes_of_rows.REASONS)
    if reason:
        return Plan("", "", "", reason)
    # Lam copied SimCLR's number from a column of another protocol.
    row = row | {"protocol": protocol(row)}
    pretrain = first(row, recipes_of_rows.PRETRAIN)
    downstream = first(row, recipes_of_rows.DOWNSTREAM)
    if pretrain is None or downstream is None:
        raise LookupError(f"no rule fits the row {row['id']}")
    values, (recipe, evals) = words(row), downstream
    recipe = fill(recipe, values) if recipe else ""
    return Plan(fill(pretrain, values), recipe, evals, reason="")


def protocol(row: Mapping) -> str:
    """How the number of a row was really measured, whatever its table says."""
    return row["settings"].get("true_protocol", row["protocol"])


def commands(plan: Plan) -> list[str]:
    """The commands in order. RUN is the folder of the pre-training, NEXT the other."""
    main = "python -m mixjax.main --workdir={} --config=configs/{}"
    lines, last = [main.format("RUN", plan.pretrain)], "RUN"
    if plan.downstream:
        lines.append(main.format("NEXT", plan.downstream) + " --config.init_from=RUN")
        last = "NEXT"
    if plan.evals or not plan.downstream:
        evals = f" --evals=configs/{plan.evals}" if plan.evals else ""
        lines.append(f"python -m mixjax.evaluate --workdir={last}{evals}")
    return lines


def file_of(command: str) -> str:
    """The file of a command, without variants and fields."""
    return command.partition(" ")[0].partition(":")[0]


@functools.cache
def config(command: str):
    """The configuration (a ConfigDict) that a command of a plan builds."""
    name, *fields = command.split(" ")
    built, _ = recipes.read([f"--config={ROOT}/configs/{name}", *fields])
    return built
