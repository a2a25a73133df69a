"""What every recipe's step costs on chips that are not there, as compilers plan it.

    python bench/chips.py                              all rows that are not there yet
    python bench/chips.py --only=mae_vitb,c10 --chips=v5e,h200
    python bench/chips.py --check --only=c10_moco      fails if a row got 3 % worse
    python bench/chips.py --table                      the tables of docs/chips.md

Each recipe is compiled as it is, on blank pictures, for a number of chips that its
batch suits, one at a time in a process of its own; nothing is trained and no chip is
needed, but libtpu for TPUs and jax's CUDA plugin for GPUs. Rows are written as they
come, so that the command continues where it was stopped. Two recipes with the same step
are compiled once. The figures are estimates (see mixjax/chips/estimate.py), not
measurements.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from support import record

FILE = record.ROOT / "results" / "chips.json"
COMPARED = ("cycles", "bytes", "peak_memory", "sent")  # fail if one gets worse
WORSE = 1.03
# Numbers that cost nothing: the mean of a data set's pixels, a temperature.
CONSTANTS = re.compile(r'-?\d+\.\d+(?:e[+-]?\d+)?|"0x[0-9A-F]*"')
# The chips for each number of devices.
TOPOLOGIES = {
    "v5e": {4: "v5e:2x2", 8: "v5e:2x4", 32: "v5e:4x8"},
    "v6e": {4: "v6e:2x2", 8: "v6e:2x4", 32: "v6e:4x8"},
    "v5p": {4: "v5p:2x2x1", 8: "v5p:2x2x2", 32: "v5p:2x4x4"},
    "h200": {4: "h200:8", 8: "h200:8", 32: "h200:8"},
}


def names() -> list[str]:
    """All recipes."""
    from mixjax.config import recipes

    files = (record.ROOT / "configs").glob("*.py")
    return sorted(p.stem for p in files if p.stem not in recipes.NO_RECIPES)


def load(recipe: str):
    """The config of a row, such as "c10_moco:mixture=unmix" or "mae_vith+batch=2048"."""
    from mixjax.config import recipes

    recipe, *fields = recipe.split("+")
    name, colon, variant = recipe.partition(":")
    path = str(record.ROOT / "configs" / f"{name}.py") + colon + variant
    pairs = (field.split("=", 1) for field in fields)
    changes = {f"config.{name}": value for name, value in pairs}
    return recipes.override(recipes.load(path), changes)


def count_chips(config) -> int:
    """The number of TPU chips that a recipe is compiled for."""
    if config.batch % 32 == 0 and config.batch >= 512 and not config.data.on_device:
        return 32
    return 4 if config.data.on_device else 8


# --- one row --------------------------------------------------------------------------


def measure(recipe: str, chip: str, known: dict[str, dict]) -> dict:
    """A row; known: rows by the hash of their step, to be copied."""
    from mixjax.chips import environment

    environment.prepare()  # before jax is imported
    from mixjax import models
    from mixjax.chips import targets
    from mixjax.data import stand_in
    from mixjax.errors import UsageError
    from mixjax.training import explain_step, plan_step

    config = load(recipe)
    target = targets.read_one(TOPOLOGIES[chip][count_chips(config)])
    geometry = models.make(config.model).geometry
    source = stand_in.compiling_source(config, None, geometry)
    row = {"recipe": recipe, "for": target.text, "batch": config.batch}
    try:
        devices = targets.devices(target)
        run, lowered = explain_step.lower_step(config, source, devices)
    except UsageError as error:
        return row | {"refused": str(error)}
    text = CONSTANTS.sub("", lowered.as_text())
    step_hash = hashlib.sha256(text.encode()).hexdigest()[:16]
    row |= {"step": step_hash, "total_steps": run.clock.total_steps}
    if step_hash in known:
        return known[step_hash] | row
    return row | as_row(plan_step.plan_step(config, source, target))


def as_row(plan) -> dict:
    """The figures of a plan, each on one device."""
    row = {"chip_memory": plan.target.chip.memory, "peak_memory": plan.memory}
    if plan.cost is None:
        return row | {"refused": plan.refused}
    figures = plan.cost._asdict()
    figures["places"] = [list(place) for place in plan.cost.places]
    times = {"roofline": plan.cost.roofline_seconds, "cycles": plan.cost.cycles_seconds}
    return row | {
        "compile_seconds": round(plan.step.seconds, 1),
        "useful_flops": plan.useful_flops,
        "mfu": {name: plan.utilisation(s) for name, s in times.items() if s},
        **figures,
    }


def measure_elsewhere(recipe: str, chip: str, rows: list[dict], limit: float) -> dict:
    """A row, measured in a process of its own."""
    known = {row["step"]: row for row in rows if row.get("step") and "bytes" in row}
    # A step's hash does not name the chip it is compiled for.
    known = {key: row for key, row in known.items() if row["for"].startswith(chip)}
    command = [sys.executable, __file__, "--one", recipe, chip]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(known),
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return {"recipe": recipe, "for": chip, "refused": f"not done in {limit:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"recipe": recipe, "for": chip, "refused": reason}
    return json.loads(lines[-1])


# --- all rows -------------------------------------------------------------------------


def stored() -> list[dict]:
    """The rows in results/chips.json."""
    return json.loads(FILE.read_text())["rows"] if FILE.is_file() else []


def key(row: dict) -> tuple[str, str]:
    return row["recipe"], row["for"].partition(":")[0]


def describe(row: dict) -> str:
    """A row as a line of text."""
    start = f"{row['recipe']:22} {row['for']:10}"
    if "bytes" not in row:
        return f"{start} {row['refused']}"
    mfu = " ".join(f"{name} {value:.2f}" for name, value in row["mfu"].items())
    fits = "fits" if row["peak_memory"] <= row["chip_memory"] else "DOES NOT FIT"
    return (
        f"{start} {row['peak_memory'] / 2**30:7.2f} GiB {fits}; cycles "
        f"{row['cycles'] / 1e6:.1f} M, {row['bytes'] / 1e9:.1f} GB, sent "
        f"{row['sent'] / 1e9:.2f} GB; MFU by {mfu}; {row['compile_seconds']:.0f} s"
    )


def fill(wanted: list[tuple[str, str]], again: bool, limit: float) -> None:
    """Measures the wanted rows that are not there, or all of them `again`."""
    rows = {key(row): row for row in stored()}
    for recipe, chip in wanted:
        if (recipe, chip) in rows and not again:
            continue
        others = [row for k, row in rows.items() if k != (recipe, chip)]
        rows[recipe, chip] = measure_elsewhere(recipe, chip, others, limit)
        print(describe(rows[recipe, chip]), flush=True)
        # Read again: another process may have added rows meanwhile.
        rows = {key(row): row for row in stored()} | {
            (recipe, chip): rows[recipe, chip]
        }
        record.write(str(FILE), [rows[k] for k in sorted(rows)])


def check(wanted: list[tuple[str, str]], limit: float) -> int:
    """Compares rows with those stored; 1 if any figure of one is 3 % worse."""
    worse = 0
    rows = {key(row): row for row in stored()}
    for recipe, chip in wanted:
        before = rows.get((recipe, chip))
        if before is None or "bytes" not in before:
            continue
        now = measure_elsewhere(recipe, chip, [], limit)
        print(describe(now), flush=True)
        for name in COMPARED:
            if now.get(name) is None or now[name] > WORSE * before[name]:
                worse = 1
                print(f"  {name} was {before[name]:.4g}, is {now.get(name)}: worse")
    return worse


# --- the tables -----------------------------------------------------------------------


def table(rows: list[dict]) -> str:
    """The rows of one kind of chip as a table in Markdown."""
    lines = [
        "| recipe | chips | batch | GiB | a step, ms | images/s | MFU | hours |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        start = f"| `{row['recipe']}` | {row['for']} | {row.get('batch', '')}"
        if "bytes" not in row:
            lines.append(f"{start} | {row['refused'][:60]} | | | | |")
            continue
        both = [row["cycles_seconds"], row["roofline_seconds"]]
        times = [seconds for seconds in both if seconds]
        slow = max(times[0], row["links_seconds"])
        shown = " / ".join(f"{1e3 * seconds:.1f}" for seconds in times)
        used = [row["mfu"].get(name) for name in ("cycles", "roofline")]
        mfu = " / ".join(f"{value:.2f}" for value in used if value)
        gib = f"{row['peak_memory'] / 2**30:.1f}"
        if row["peak_memory"] > row["chip_memory"]:
            gib += ", does not fit"
        lines.append(
            f"{start} | {gib} | {shown} | {row['batch'] / slow:,.0f} | {mfu} | "
            f"{row['total_steps'] * slow / 3600:,.1f} |"
        )
    return "\n".join(lines)


def tables(rows: list[dict]) -> str:
    """The tables of docs/chips.md, one for each kind of chip."""
    parts = []
    for chip in TOPOLOGIES:
        of_chip = [row for row in rows if key(row)[1] == chip]
        if of_chip:
            parts.append(f"### {chip}\n\n{table(of_chip)}")
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only",
        default="",
        help="recipes that begin with one of these, or variants of them, such as "
        "c10_moco:mixture=unmix and mae_vith+mesh.fsdp=8",
    )
    parser.add_argument("--chips", default=",".join(TOPOLOGIES), help="kinds")
    parser.add_argument("--again", action="store_true", help="rows that are there, too")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--table", action="store_true", help="print the tables")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds for a row")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, json.load(sys.stdin))))
        return 0
    if options.table:
        print(tables(stored()))
        return 0
    chips = options.chips.split(",")
    if unknown := [chip for chip in chips if chip not in TOPOLOGIES]:
        parser.error(f"--chips={unknown[0]}: there are {', '.join(TOPOLOGIES)}")
    starts = tuple(options.only.split(","))
    recipes = [name for name in names() if name.startswith(starts)]
    recipes += [start for start in starts if ":" in start or "+" in start]
    wanted = [(name, chip) for chip in chips for name in recipes]
    if not wanted:
        parser.error(f"--only={options.only}: no recipe begins with that")
    if options.check:
        return check(wanted, options.limit)
    begun = time.monotonic()
    fill(wanted, options.again, options.limit)
    print(f"{time.monotonic() - begun:.0f} s; {FILE.relative_to(Path.cwd())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
