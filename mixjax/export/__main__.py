"""python -m mixjax.export --workdir=RUN --to=TARGET [--out=PLACE] [--check]

Writes the newest checkpoint of a run under the names of another project, with a model
card beside it. Needs neither an accelerator nor torch; only --check starts torch, in a
process of its own.

  --workdir=RUN          the folder of a run
  --to=TARGET            timm, torchvision, hf, detectron2, mae or npz
  --out=PLACE            a folder, or a file ending as the target's do; unless given,
                         RUN/export/ and the names of target and parts
  --part=encoder         or teacher, for methods that have one
  --decoder=no           yes: the decoder too (mae, hf, npz)
  --head=yes             the classifier, where there is one; no: without
  --image_size=H[xW]     for pictures of another size: positions are resampled
  --check                run pictures through both sides; no card, and no file, if the
                         difference is more than 1e-5 (Swin 5e-5) of the largest value
  --pictures=FOLDER      for --check, instead of the run's own
  --license=NAME         of the weights, for the card, such as cc-by-nc-4.0
  --reference=FILE       for --check, a file with build(target, model, stem) -> module,
                         for what no installed package has
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from mixjax import errors
from mixjax.errors import UsageError
from mixjax.runtime import cli

FLAGS = ("workdir", "to", "out", "part", "decoder", "head", "image_size", "check")
FLAGS += ("pictures", "license", "reference")
BARE = ("--check", "--decoder", "--head")  # "--check" is "--check=yes"
ANSWERS = {"yes": True, "no": False}


def answer(given: dict, flag: str, usual: str) -> bool:
    text = given.get(flag, usual)
    errors.check_name(f"--{flag}", text, ANSWERS)
    return ANSWERS[text]


def size_of(text: str) -> tuple[int, int]:
    """ "224" or "224x192" -> (height, width)."""
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found or 0 in map(int, filter(None, found.groups())):
        raise UsageError(f"--image_size={text} is no size; write 224 or 224x192.")
    height, width = found.groups()
    return int(height), int(width or height)


def destination(given: dict, kind: str, parts: tuple[str, ...]) -> tuple[Path, str]:
    """(folder, name of the weights' file in it)."""
    usual = f"{given['workdir']}/export/{given['to']}-{'-'.join(parts)}"
    out = Path(given.get("out") or usual).expanduser()
    if out.suffix == f".{kind}":
        return out.parent, out.name
    if out.is_file():
        raise UsageError(f"--out={out} is a file; name a folder, or a .{kind} file.")
    return out, f"model.{kind}"


def export(given: dict) -> list[str]:
    """Does what the flags say; returns lines to print."""
    from mixjax.export import card, check, files, formats, hf
    from mixjax.export import weights as store
    from mixjax.run import console

    console.start()
    errors.check_name("--to", given["to"], formats.TARGETS)
    target, to = formats.TARGETS[given["to"]], given["to"]
    checks = answer(given, "check", "no")
    head = answer(given, "head", "yes") if "head" in given else None
    decoder = answer(given, "decoder", "no")
    if checks and to == "npz":
        raise UsageError("--check: --to=npz keeps our own names; torch has no say.")
    part = given.get("part", "encoder")
    weights = store.load(given["workdir"], part, decoder, head)
    store.check(weights, f"--workdir={given['workdir']}")
    if "image_size" in given:
        weights = store.resized(weights, size_of(given["image_size"]))
    named = formats.named(weights, to)
    folder, name = destination(given, target.kind, weights.parts)
    with temporary(folder) as (ready, aside):
        file = ready / name
        files.WRITERS[target.kind](file, named, formats.notes(weights, to))
        if to == "hf":
            view, size = card.view_of(weights.config), weights.model["encoder"]
            texts = {"config.json": hf.config(weights)}
            size = size["image_size"]
            texts["preprocessor_config.json"] = hf.preprocessor(size, view)
            for other, content in texts.items():
                (ready / other).write_text(json.dumps(content, indent=2) + "\n")
        result = None
        if checks:
            size = weights.model["encoder"]["image_size"]
            seen = check.pictures(weights.config, given.get("pictures", ""), size)
            usual = str(check.REFERENCE) if check.REFERENCE.is_file() else ""
            other = given.get("reference", usual)
            result = check.measure(weights, to, file, aside, *seen, other)
            if not result.good:
                worst = max(result.differences, key=lambda d: d.relative)
                raise UsageError(
                    f"--check: {worst.name} differ by {worst.largest:.3g}, of values "
                    f"up to {worst.top:.3g}, where {result.tolerance:g} of that is "
                    f"allowed; nothing is written."
                )
        how = dict(workdir=given["workdir"], licence=given.get("license", ""))
        text = card.text(weights, to, file=file, result=result, **how)
        stem = "README" if name == f"model.{target.kind}" else Path(name).stem
        (ready / f"{stem}.md").write_text(text)
        files.place(ready, folder)
    lines = check.say(result) if result else []
    return [*lines, *(f"{folder / n}" for n in (name, f"{stem}.md"))]


@contextlib.contextmanager
def temporary(folder: Path):
    """Two new folders beside `folder`, gone in the end: one to fill, one for notes."""
    beside = folder.absolute().parent
    while not beside.is_dir():
        beside = beside.parent
    try:
        root = Path(tempfile.mkdtemp(prefix=".export-", dir=beside))
    except OSError as error:
        raise UsageError(f"--out: {beside} cannot be written: {error}.") from error
    try:
        for name in ("ready", "aside"):
            (root / name).mkdir()
        yield root / "ready", root / "aside"
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(argv: list[str]) -> int:
    """Exports as the flags (no program's name) say; returns the exit code."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    def work():
        whole = [f"{a}=yes" if a in BARE else a for a in argv]
        given, changes = cli.flags(whole, FLAGS)
        for flag in changes:
            errors.check_name("flag", flag, FLAGS)
        cli.need(given, "workdir", "name the folder of a run")
        cli.need(given, "to", "name a target")
        for line in export(given):
            print(line)

    return cli.code(work)


if __name__ == "__main__":
    cli.start(__doc__, run)
