"""python -m mixjax.export --workdir=RUN --to=TARGET [--out=PLACE] [--check]

Writes the newest checkpoint of a run under the names of another project, with a model
card beside it. Needs neither an accelerator nor torch; only --check starts torch, in a
process of its own.

  --workdir=RUN          the folder of a run
  --to=TARGET            timm, torchvision, hf, detectron2, mae or npz
  --out=PLACE            a folder, or a file with the target's ending; otherwise
                         RUN/export/TARGET-PARTS
  --part=encoder         or teacher, for methods that have one
  --decoder=no           yes: the decoder too (mae, hf, npz)
  --head=yes             the classifier, if there is one; no: without it
  --image_size=H[xW]     for images of another size: positions are resampled
  --check                compare with torch on a few images; neither card nor file is
                         written if the difference is more than 1e-5 (Swin 5e-5) of
                         the largest value
  --pictures=FOLDER      images for --check, instead of the run's own
  --license=NAME         of the weights, for the card, such as cc-by-nc-4.0
  --reference=FILE       for --check where no installed package has the network: a file
                         with build(target, model, stem) -> torch module
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
BARE = ("--check", "--decoder", "--head")  # "--check" means "--check=yes"
ANSWERS = {"yes": True, "no": False}


def answer(flags: dict, flag: str, usual: str) -> bool:
    """The value of a flag that is yes or no."""
    text = flags.get(flag, usual)
    errors.check_name(f"--{flag}", text, ANSWERS)
    return ANSWERS[text]


def size_of(text: str) -> tuple[int, int]:
    """ "224" or "224x192" -> (height, width)."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match or 0 in map(int, filter(None, match.groups())):
        raise UsageError(f"--image_size={text} is not a size; write 224 or 224x192.")
    height, width = match.groups()
    return int(height), int(width or height)


def destination(flags: dict, kind: str, parts: tuple[str, ...]) -> tuple[Path, str]:
    """(folder, name of the weights' file in it)."""
    usual = f"{flags['workdir']}/export/{flags['to']}-{'-'.join(parts)}"
    out = Path(flags.get("out") or usual).expanduser()
    if out.suffix == f".{kind}":
        return out.parent, out.name
    if out.is_file():
        raise UsageError(f"--out={out} is a file; name a folder, or a .{kind} file.")
    return out, f"model.{kind}"


def export(flags: dict) -> list[str]:
    """Does what the flags say; returns lines to print."""
    from mixjax.export import card, check, files, formats
    from mixjax.run import console

    console.start()
    to = flags["to"]
    errors.check_name("--to", to, formats.TARGETS)
    kind = formats.TARGETS[to].kind
    checks = answer(flags, "check", "no")
    if checks and to == "npz":
        raise UsageError("--check: --to=npz keeps our own names, which torch has not.")
    weights = read_run(flags)
    named = formats.named(weights, to)
    folder, name = destination(flags, kind, weights.parts)
    with temporary(folder) as (ready, exchange):
        file = ready / name
        files.WRITERS[kind](file, named, formats.notes(weights, to))
        if to == "hf":
            write_configs(weights, ready)
        result = compare(flags, weights, file, exchange) if checks else None
        stem = "README" if name == f"model.{kind}" else Path(name).stem
        text = card.text(
            weights,
            to,
            file=file,
            workdir=flags["workdir"],
            licence=flags.get("license", ""),
            result=result,
        )
        (ready / f"{stem}.md").write_text(text)
        files.place(ready, folder)
    lines = check.say(result) if result else []
    return [*lines, *(f"{folder / n}" for n in (name, f"{stem}.md"))]


def read_run(flags: dict):
    """The Weights that the flags name, for images of the size that they name."""
    from mixjax.export import weights as store

    # Without --head, a classifier goes along if there is one.
    head = answer(flags, "head", "yes") if "head" in flags else None
    decoder = answer(flags, "decoder", "no")
    part = flags.get("part", "encoder")
    weights = store.load(flags["workdir"], part, decoder, head)
    store.check(weights, f"--workdir={flags['workdir']}")
    if "image_size" in flags:
        weights = store.resized(weights, size_of(flags["image_size"]))
    return weights


def write_configs(weights, folder: Path) -> None:
    """The two files that transformers wants beside the weights."""
    from mixjax.export import card, hf

    size, view = weights.model["encoder"]["image_size"], card.view_of(weights.config)
    contents = {"config.json": hf.config(weights)}
    contents["preprocessor_config.json"] = hf.preprocessor(size, view)
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def compare(flags: dict, weights, file: Path, exchange: Path):
    """The check.Result of a file; UsageError if it differs by more than allowed.

    exchange: an empty folder.
    """
    from mixjax.export import check

    encoder = weights.model["encoder"]
    images, source = check.pictures(
        weights.config, flags.get("pictures", ""), encoder["image_size"]
    )
    reference = flags.get("reference", check.default_reference(encoder["name"]))
    result = check.measure(
        weights, flags["to"], file, exchange, images, source, reference
    )
    check.refuse_bad(result)
    return result


@contextlib.contextmanager
def temporary(folder: Path):
    """Two new folders beside `folder`, removed in the end.

    The first is for finished files, on the same disk, so that each is put in place in
    one move; the second is for what --check exchanges with torch.
    """
    beside = folder.absolute().parent
    while not beside.is_dir():
        beside = beside.parent
    try:
        root = Path(tempfile.mkdtemp(prefix=".export-", dir=beside))
    except OSError as error:
        raise UsageError(f"--out: {beside} cannot be written: {error}.") from error
    try:
        for name in ("ready", "exchange"):
            (root / name).mkdir()
        yield root / "ready", root / "exchange"
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(argv: list[str]) -> int:
    """Exports as the flags (without the program's name) say; returns the exit code."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here needs an accelerator

    def work():
        with_values = [f"{a}=yes" if a in BARE else a for a in argv]
        flags, changes = cli.flags(with_values, FLAGS)
        for flag in changes:
            errors.check_name("flag", flag, FLAGS)
        cli.need(flags, "workdir", "name the folder of a run")
        cli.need(flags, "to", "name a target")
        for line in export(flags):
            print(line)

    return cli.code(work)


if __name__ == "__main__":
    cli.start(__doc__, run)
