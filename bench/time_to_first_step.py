"""Seconds from the start of a run to its first finished step, cold and cached.

    python bench/time_to_first_step.py
    python bench/time_to_first_step.py --config=configs/mae_vitb.py [--config.F=VALUE]

Each line is a run of mixjax.main in a process of its own, ended after its first step:
with an empty folder as jax's persistent compilation cache, then again with what the
first left there; with the encoder's layers unrolled, and as a scan. A recipe whose
pictures lie elsewhere gets --batch random ones of the size that its network expects,
and what its views do on the host is left out. Evaluation at the start is left out.
All take turns; a line is the median over rounds. trace, lower and compile are
those of the train step; "other" is the compilation of everything else. Compiling with
a warm cache means reading it.
"""

import argparse
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from support import record

EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
PARTS = ("first_step", "trace", "lower", "compile", "other")
SCAN = {"unrolled": False, "scan": True}  # how the encoder's layers are laid out


# --- one run -----------------------------------------------------------------------


class Done(Exception):
    """The first step is done."""


def worker(started: float, flags: list[str]) -> None:
    """Runs mixjax.main to its first step; prints the seconds of its parts."""
    import jax

    from mixjax import main

    parts = dict.fromkeys(PARTS, 0.0)

    def add(event, seconds, fun_name="", **_):
        part = EVENTS.get(event)
        if part and re.fullmatch(r"(jit\()?step\)?", fun_name):
            parts[part] += seconds
        elif part == "compile":
            parts["other"] += seconds

    def watch(line):
        if line.getMessage().startswith("first step done"):
            parts["first_step"] = time.time() - started
            raise Done
        return True

    jax.monitoring.register_event_duration_secs_listener(add)
    logging.getLogger("mixjax").addFilter(watch)
    try:
        sys.exit(main.run(flags) or "the run ended before its first step")
    except Done:
        print("PARTS " + json.dumps(parts), flush=True)


def run(flags: list[str], folder: str, cache: str) -> dict[str, float]:
    """The parts of one run with its compilation cache in `cache`."""
    settings = {
        "PYTHONPATH": str(record.ROOT),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        done = subprocess.run(
            [
                *(sys.executable, __file__, f"--worker={time.time()}"),
                *(*flags, f"--workdir={workdir}"),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, **settings},
        )
    parts = re.findall(r"^PARTS (.*)$", done.stdout, re.MULTILINE)
    if done.returncode or not parts:
        sys.exit(f"the run failed:\n{done.stdout[-800:]}\n{done.stderr[-1600:]}")
    return json.loads(parts[0])


# --- what to run -------------------------------------------------------------------


def recipe_flags(options, changes: list[str], folder: str) -> list[str]:
    """The command line that all runs share."""
    from mixjax.config import recipes

    flags = [f"--config={options.config}", *changes]
    config, _ = recipes.read(flags)
    fields = {"steps": 1}
    fields |= {f"evals.{name}.at_start": False for name in config.evals}
    if config.data.source != "digits":
        fields |= random_pictures(config, options.batch, folder)
    return [*flags, *(f"--config.{k}={v}" for k, v in fields.items())]


def random_pictures(config, batch: int, folder: str) -> dict:
    """Fields that put `batch` random pictures in the place of the recipe's data."""
    import numpy as np

    encoder = config.model.encoder
    shape = (batch, *encoder.image_size, encoder.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = os.path.join(folder, "pictures.npz")
    np.savez(path, train_image=images)
    data = config.data
    return {
        "batch": batch,
        "data.source": f"npz:{path}",
        "data.split": "train",
        "data.views": tuple(on_device(view) for view in data.views),
        "data.eval_view": on_device(data.eval_view),
    }


def on_device(view: str) -> str:
    """A view without its decoding."""
    first, _, rest = view.partition("|")
    return rest.strip() if first.strip().startswith("decode") else view


def measure(options, flags: list[str], folder: str) -> dict:
    """{(a name of SCAN, "cold" or "warm"): the parts of each round}."""
    names = options.only.split(",")
    runs_of = {(name, cache): [] for name in names for cache in ("cold", "warm")}
    for _ in range(options.rounds):
        for name in names:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                mine = [*flags, f"--config.model.encoder.scan={SCAN[name]}"]
                for state in ("cold", "warm"):
                    runs_of[name, state].append(run(mine, folder, cache))
    return runs_of


# --- the report --------------------------------------------------------------------


def rows_of(runs_of: dict) -> list[dict]:
    """A line of the table for each way to run."""
    return [
        {
            "layers": layers,
            "cache": cache,
            **{f"{p}_s": statistics.median(r[p] for r in runs) for p in PARTS},
            "rounds": runs,
        }
        for (layers, cache), runs in runs_of.items()
    ]


def report(options, rows: list[dict]) -> None:
    """Prints the table."""
    print(
        f"{options.config}, seconds, {options.rounds} rounds, {record.cores()} cores "
        f"of {record.processor()}, jax {record.versions()['jax']}"
    )
    names = ("first step", *PARTS[1:])
    print(f"{'':22}" + "".join(f"{name:>12}" for name in names))
    for row in rows:
        title = f"{row['layers']}, {row['cache']} cache"
        print(f"{title:22}" + "".join(f"{row[f'{p}_s']:12.2f}" for p in PARTS))


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1].startswith("--worker="):
        return worker(float(sys.argv[1].partition("=")[2]), sys.argv[2:])
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="--config.FIELD=VALUE sets a field of the recipe.",
    )
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--batch", type=int, default=8, help="of random pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(SCAN), help="of these")
    parser.add_argument("--json", help="write the figures to this file")
    options, changes = parser.parse_known_args()
    if wrong := [c for c in changes if not c.startswith("--config.")]:
        parser.error(f"unknown: {' '.join(wrong)}")
    if wrong := set(options.only.split(",")) - SCAN.keys():
        parser.error(f"--only: {', '.join(wrong)} is not among {', '.join(SCAN)}")
    with tempfile.TemporaryDirectory(prefix="mixjax-bench-") as folder:
        flags = recipe_flags(options, changes, folder)
        runs_of = measure(options, flags, folder)
    rows = rows_of(runs_of)
    report(options, rows)
    record.write(options.json, rows, flags=changes)


if __name__ == "__main__":
    main()
