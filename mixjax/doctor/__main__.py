"""python -m mixjax.doctor --config=FILE[:ARG] [--workdir=DIR] [--config.x=y]

Says what a run will be, and everything that stands in its way, before an accelerator
is paid for: data that is missing or cannot be read, views and networks that do not
fit, a batch that does not divide, memory on the devices, room on the disk, a folder
that belongs to another run, packages that do not go together. Runs on the CPU; nothing
is trained or compiled.

  --config=FILE[:ARG]    a recipe, see configs/; ARG picks a variant, as the file says
  --config.FIELD=VALUE   another value for a field, such as --config.data.source=...
  --workdir=DIR          the folder of the run; runs/<name of the recipe> unless given
  --devices=N            count for N devices; those of this machine unless given
  --scan=all|N           decode every file, or N of each split; unless given, as many
                         as a few seconds allow

Exit codes: 0 no problem found, 2 the problems that were listed.
"""

import gc
import logging
from pathlib import Path

from mixjax import errors
from mixjax.runtime import cli

FEW = "few"  # files to look at, unless --scan says how many


def run(argv: list[str]) -> int:
    """Checks what the flags (without the program's name) say; returns the exit code."""
    return cli.code(lambda: work(argv))


def work(argv: list[str]) -> int:
    """As run(), but raises what a user is meant to read."""
    from mixjax.config import recipes
    from mixjax.doctor import devices, versions
    from mixjax.doctor.findings import Findings
    from mixjax.runtime import processes

    ignored = dict.fromkeys(processes.FLAGS)  # a run's own, so that its line fits here
    config, given = recipes.read(argv, workdir=None, devices=None, scan=FEW, **ignored)
    devices.simulate(devices.count(given["devices"]))
    found = Findings()
    found.fact("recipe", given["config"])
    line, wrong = versions.check()
    found.fact("versions", line)
    for text in wrong:
        found.problem(text)
    recipe = Path(given["config"].partition(":")[0]).stem
    found.attempt(check, found, config, given["workdir"] or f"runs/{recipe}", given)
    print("\n".join(found.lines()))
    return errors.USAGE if found.problems else errors.DONE


def check(found, config, workdir: str, given: dict) -> None:
    """All checks beyond those of versions, which may keep jax from being imported."""
    gc.disable()  # tracing makes millions of objects, nearly all of which stay
    from mixjax.doctor import diagnosis, pictures

    logging.getLogger("absl").setLevel(logging.ERROR)  # the libraries' own chatter
    most = pictures.how_many(given["scan"])
    diagnosis.diagnose(found, config, workdir, most)


if __name__ == "__main__":
    cli.start(__doc__, run)
