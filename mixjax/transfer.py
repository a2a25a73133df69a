"""python -m mixjax.transfer --config=configs/transfer.py --config.init_from=RUN
    --workdir=DIR [--sets=pets,dtd] [--config.x=y]

Fine-tunes a pre-trained encoder on a suite of datasets. For each dataset it tries
several learning rates on a validation split, trains once more with the best rate on
everything but the test split, and evaluates that. Each run is an ordinary one in its
own folder, so the same command repeats only what is unfinished. DIR/<set>.json is the
result of one dataset; the table at the end lists them all. A missing dataset is named,
with the place where it belongs, and the others continue.

  --config=FILE[:ARG]    a recipe with variants set=, stage=, rate= and a section suite
  --config.FIELD=VALUE   sets a field in every run
  --sets=A,B             only these datasets of the suite
  --workdir=DIR          the folder of the suite

Exit codes: as for mixjax.main; also 2 if a dataset was missing, after all others.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

from mixjax import errors
from mixjax.config import recipes
from mixjax.runtime import cli


class Suite(NamedTuple):
    """The suite that the command line describes."""

    recipe: str  # FILE:ARG
    changes: dict[str, str]
    workdir: Path
    interrupt: object

    def config(self, **variants):
        """The recipe's configuration for a set, a stage and a rate."""
        name, _, argument = self.recipe.partition(":")
        words = [argument] if argument else []
        words += [f"{k}={v}" for k, v in variants.items()]
        config = recipes.load(f"{name}:{','.join(words)}")
        if "suite" not in config:
            raise errors.UsageError(
                f"--config={self.recipe} has no section suite, as configs/transfer.py."
            )
        return recipes.override(config, self.changes)


def train_once(suite: Suite, folder: Path, config) -> dict[str, float]:
    """Starts or continues one training run; the metrics of its last evaluation.

    {} if its loss became infinite or NaN, as happens at high learning rates.
    """
    from mixjax.run import ledger
    from mixjax.run.workdir import Workdir
    from mixjax.training import loop

    failed = folder / "DIVERGED"
    with Workdir(str(folder), config) as workdir:
        if not workdir.finished and not failed.exists():
            try:
                loop.train(config, workdir, suite.interrupt)
            except errors.Diverged as error:
                failed.write_text(f"{error}\n")
    if failed.exists():
        return {}
    entries = ledger.read(folder)
    return max(entries, key=lambda e: e["step"])["metrics"]


def score(metrics: dict, name: str, metric: str) -> float:
    """The metric that a dataset is judged by; NaN if it is missing."""
    return metrics.get(f"transfer/{name}/{metric}", math.nan)


def run_set(suite: Suite, name: str) -> dict:
    """Searches the rate for one dataset, trains with it and returns the result."""
    from mixjax.runtime.atomic_write import write

    place = suite.workdir / f"{name}.json"
    plan = suite.config(set=name).suite
    tried = {}
    for rate in plan.rates:
        config = suite.config(set=name, stage="search", rate=rate)
        folder = suite.workdir / name / f"rate_{rate:g}"
        tried[rate] = score(train_once(suite, folder, config), name, plan.metric)
    known = {rate: value for rate, value in tried.items() if not math.isnan(value)}
    if not known:
        return {"set": name, "why": f"no rate of {plan.rates} stayed finite"}
    best = max(known, key=known.get)
    config = suite.config(set=name, stage="final", rate=best)
    metrics = train_once(suite, suite.workdir / name / "final", config)
    result = {"set": name, "metric": plan.metric, "rate": best}
    result["value"] = score(metrics, name, plan.metric)
    result["validation"] = {f"{rate:g}": value for rate, value in known.items()}
    result |= {"metrics": metrics, "init_from": config.init_from}
    write(place, json.dumps(result, indent=1) + "\n")
    return result


def missing(suite: Suite, name: str) -> str:
    """Why a dataset cannot be read, in a sentence; "" if it can."""
    from mixjax.data import sources

    first, last = (suite.config(set=name, stage=s).data for s in ("search", "final"))
    archive = suite.config(set=name).suite.archive
    try:
        for split in (first.split, first.eval_split, last.split, last.eval_split):
            sources.open_source(first.source, split, first.directory)
    except errors.UsageError as error:
        more = f" ({archive})" if archive else ""
        return f"{error}{more}"
    return ""


def table(results: list[dict]) -> list[str]:
    """One line per dataset: metric, value and rate, or why there is no value."""
    lines = [f"{'set':<12} {'metric':<15} {'value':>7}  rate"]
    values = [r["value"] for r in results if "value" in r]
    for r in results:
        if "why" in r:
            lines.append(f"{r['set']:<12} not run: {r['why']}")
        else:
            number = f"{r['value']:7.2f}  {r['rate']:g}"
            lines.append(f"{r['set']:<12} {r['metric']:<15} {number}")
    if values:
        mean = sum(values) / len(values)
        lines.append(f"{'mean':<12} {f'of {len(values)} sets':<15} {mean:7.2f}")
    return lines


def run_suite(suite: Suite, wanted: list[str]) -> int:
    """Runs the datasets one after the other; returns the exit code."""
    results = []
    for name in wanted:
        why = missing(suite, name)
        if why:
            print(f"{name}: not run: {why}", flush=True)
        results.append({"set": name, "why": why} if why else run_set(suite, name))
    print("\n".join(table(results)))
    return errors.USAGE if any("why" in r for r in results) else errors.DONE


def run(argv: list[str]) -> int:
    """Runs what the flags (without the program's name) say; returns the exit code."""
    return cli.code(lambda: work(argv))


def work(argv: list[str]) -> int:
    """As run(), but raises the errors that a user is meant to read."""
    from mixjax.runtime import cpu_settings, signals

    stop = signals.Interrupt().install()
    flags, changes = cli.flags(argv, ("config", "workdir", "sets"))
    recipe = cli.need(flags, "config", "try --config=configs/transfer.py")
    folder = cli.need(flags, "workdir", "name a folder for the suite")
    suite = Suite(recipe, changes, Path(folder).expanduser(), stop)
    known = suite.config().suite.sets
    wanted = [w for w in flags.get("sets", "").split(",") if w] or list(known)
    for name in wanted:
        errors.check_name("--sets", name, known)
    cpu_settings.tune()
    suite.workdir.mkdir(parents=True, exist_ok=True)
    return run_suite(suite, wanted)


if __name__ == "__main__":
    cli.start(__doc__, run)
