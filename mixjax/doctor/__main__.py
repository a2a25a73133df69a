"""python -m mixjax.doctor --config=FILE[:ARG] [--workdir=DIR] [--config.x=y]

Describes a run, and lists every problem it would meet, before an accelerator is paid
for: data that is missing or cannot be read, views that do not fit the network, a batch
that the devices do not divide, memory, disk space, a folder that belongs to another
run, packages whose versions do not fit together. Runs on the CPU; nothing is trained.
With --for, the step is compiled for chips that need not be there.

  --config=FILE[:ARG]    a recipe from configs/; ARG picks one of the file's variants
  --config.FIELD=VALUE   another value for a field, such as --config.data.source=...
  --workdir=DIR          the folder of the run; default: runs/<name of the recipe>
  --devices=N            simulate N devices; default: as many as this machine has
  --for=CHIPS            what the step costs on chips of another machine: v5e:4x8, v4,
                         v5p or v6e with a topology, v5e:16x16:2 for two slices, h200:8,
                         a100, h100 or b200 with a number, several of these, or "all":
                         whether it fits, the largest batch, the time of a step
  --scan=all|N           decode every file, or N files of each split; default: as many
                         as a few seconds allow

Exit codes: 0 no problem was found, 2 problems were found and listed.
"""

import gc
import logging
from pathlib import Path

from mixjax import errors
from mixjax.runtime import cli

FEW = "few"  # the default of --scan: as many files as a few seconds allow


def run(argv: list[str]) -> int:
    """Runs the command (argv: without the program's name); returns the exit code."""
    return cli.code(lambda: work(argv))


def work(argv: list[str]) -> int:
    """As run(), but raises the errors that run() prints."""
    # Imported late: --help needs none of it, and XLA's flags must be set before jax.
    from mixjax.config import recipes
    from mixjax.doctor import devices, versions
    from mixjax.doctor.findings import Findings
    from mixjax.runtime import processes

    # Accepted, so that the command line of a run needs no change for the doctor.
    ignored = dict.fromkeys(processes.FLAGS)
    ignored["devices"] = None
    flags_here = {"workdir": None, "scan": FEW, "for": None}
    config, flags = recipes.read(argv, **ignored, **flags_here)
    targets = read_targets(flags["for"])
    if targets and flags["devices"] is None:
        flags["devices"] = str(min(targets[0].count, devices.MOST))
    devices.simulate(devices.count(flags["devices"]))
    findings = Findings()
    findings.fact("recipe", flags["config"])
    summary, problems = versions.check()
    findings.fact("versions", summary)
    for problem in problems:
        findings.problem(problem)
    recipe = Path(flags["config"].partition(":")[0]).stem
    workdir = flags["workdir"] or f"runs/{recipe}"
    # An attempt as well: packages that do not fit together may break an import.
    findings.attempt(check, findings, config, workdir, flags["scan"], targets)
    print("\n".join(findings.lines()))
    return errors.USAGE if findings.problems else errors.DONE


def read_targets(text: str | None) -> list:
    """The targets of --for, and the environment for compiling for them."""
    if text is None:
        return []
    from mixjax.chips import environment

    environment.prepare()  # before anything imports jax
    from mixjax.chips import targets

    return targets.read(text)


def check(findings, config, workdir: str, scan: str, targets: list) -> None:
    """Makes all checks but that of versions.

    scan: the value of --scan. targets: what to compile for.
    """
    gc.disable()  # tracing creates millions of objects, nearly all of which stay alive
    from mixjax.doctor import diagnosis, pictures

    logging.getLogger("absl").setLevel(logging.ERROR)  # no progress notes of libraries
    diagnosis.diagnose(findings, config, workdir, pictures.how_many(scan), targets)


if __name__ == "__main__":
    cli.start(__doc__, run)
