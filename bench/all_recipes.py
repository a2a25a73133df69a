"""Every recipe, tiny: trained, evaluated, exported, and imported again; a line each.

    python bench/all_recipes.py                            all of them
    python bench/all_recipes.py mae_vitb c10_moco:mixture=both

Each recipe of configs/ goes, on digits in colour, the way that a user's run goes:
mixjax.main for four steps, mixjax.evaluate, mixjax.export with --check where torch is
installed, mixjax.import_weights of what that wrote. What comes back must equal what
went out to the last bit. Detectors and segmenters, which are not exported, end with
mixjax.look. bench/support/small_recipes.py says what is made small, and what stays.
Ends with 1 if a recipe did not get to the end.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from support import record, small_recipes

from mixjax import evaluate, import_weights, look, main
from mixjax.config import recipes
from mixjax.errors import DONE, FAILED
from mixjax.export import __main__ as export
from mixjax.export import weights

# Compiles sooner and runs slower, which for four steps is a gain.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
TARGETS = {"resnet": "torchvision"}  # of an encoder; timm's names for all others


class Failed(Exception):
    """A command did not end with 0; what it said last."""


def said(run, *flags: str) -> list[str]:
    """What a command prints, line by line. Failed if its exit code is not 0."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as wrong:
        code = run(list(flags))
    lines = (out.getvalue() + wrong.getvalue()).strip().splitlines()
    if code != DONE:
        raise Failed(f"{run.__module__} ended with {code}: {(lines or ['?'])[-1]}")
    return lines


def names() -> list[str]:
    """All recipes."""
    files = (record.ROOT / "configs").glob("*.py")
    return sorted(p.stem for p in files if p.stem not in recipes.NO_RECIPES)


def losses(run: Path) -> tuple[float, float]:
    """The first and the last one."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    losses_logged = [x["train/loss"] for x in lines if "train/loss" in x]
    return losses_logged[0], losses_logged[-1]


def differing(one: Path, two: Path) -> tuple[int, list[str]]:
    """How many tensors of the encoder came back, and the names of those that differ.

    A mask token is no part of what is exported.
    """
    read = lambda run: weights.load(str(run), "encoder", False, False).arrays
    old, new = read(one), read(two)
    old.pop("encoder/mask_token", None)
    both = old.keys() & new.keys()
    other = {name for name in both if not np.array_equal(old[name], new[name])}
    return len(both), sorted((old.keys() ^ new.keys()) | other)


def tour(text: str, pictures: Path, folder: Path) -> str:
    """Takes the recipe NAME[:ARG] the whole way; the line about it."""
    begin = time.monotonic()
    name, colon, argument = text.partition(":")
    recipe = f"{record.ROOT}/configs/{name}.py{colon}{argument}"
    config = recipes.load(recipe)
    run, file = folder / "run", folder / "model.safetensors"
    fields = small_recipes.fields(config, pictures)
    flags = [f"--config.{k}={v}" for k, v in fields.items()]
    said(main.run, f"--config={recipe}", f"--workdir={run}", *flags)
    first, last = losses(run)
    words = said(evaluate.run, f"--workdir={run}")[0].split()
    start = f"loss {first:8.3f} to {last:8.3f}   {words[0]} {float(words[1]):.1f}   "
    if config.method.name in small_recipes.DENSE:
        drawn = len(said(look.run, f"--workdir={run}", "--count=4"))
        return f"{start}{drawn} drawings   {time.monotonic() - begin:.0f} s"
    to = TARGETS.get(config.model.encoder.name, "timm")
    check = ["--check"] * (importlib.util.find_spec("torch") is not None)
    to_torch = [f"--workdir={run}", f"--to={to}", f"--out={file}", *check]
    far = re.findall(r"max (\S+),", " ".join(said(export.run, *to_torch)))
    back = [f"--from={file}", f"--workdir={folder / 'back'}"]
    said(import_weights.run, *back)
    count, differ = differing(run, folder / "back")
    if differ:
        raise Failed(f"came back otherwise: {', '.join(differ)}")
    checked = f"within {max(map(float, far)):.0e}" if far else "not checked"
    seconds = time.monotonic() - begin
    return f"{start}{to} {checked}, {count} tensors back   {seconds:.0f} s"


def here(text: str) -> int:
    """Prints the line about a recipe; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            line, code = (
                tour(text, small_recipes.pictures(Path(folder)), Path(folder)),
                DONE,
            )
        except Exception as error:  # whatever it is, it belongs into the table
            line, code = f"FAILED {type(error).__name__}: {error}", FAILED
    print(f"{text:<24} {line}", flush=True)
    return code


def apart(text: str) -> int:
    """here() in a process of its own, which a compiler may end; the exit code."""
    command = [sys.executable, __file__, "--here", text]
    code = subprocess.run(command, stderr=subprocess.DEVNULL).returncode
    if code not in (DONE, FAILED):
        print(f"{text:<24} FAILED: the process ended with {code}", flush=True)
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipes", nargs="*", help="NAME[:ARG]; all unless given")
    parser.add_argument("--here", action="store_true", help="all in this process")
    options = parser.parse_args()
    work = here if options.here else apart
    codes = [work(text) for text in options.recipes or names()]
    sys.exit(FAILED if any(codes) else DONE)
