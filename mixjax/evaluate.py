"""python -m mixjax.evaluate --workdir=RUN [--evals=FILE[:ARG]] [--config.x=y]

Evaluates the newest checkpoint of a run: by kNN and the other evaluations of its own
recipe, or by those of a file such as configs/probe.py (a linear probe on cached
features) or configs/robustness.py (ImageNet-A and -C). Prints the results and writes
them to the ledger, RUN/eval/<protocol>/<step>.json.

  --workdir=RUN          the folder of a run
  --evals=FILE[:ARG]     evaluations to use instead of the run's own
  --config.FIELD=VALUE   sets a field, such as --config.evals.knn.k=5
"""

from pathlib import Path

from mixjax import errors
from mixjax.config import recipes
from mixjax.runtime import cli


def length(run, workdir: str) -> int:
    """The number of steps of the run when complete."""
    done = Path(workdir).expanduser() / "DONE"
    if done.exists():
        return int(done.read_text())
    config = run.config
    planned = config.steps or config.epochs * (run.sets.size // config.batch)
    return max(run.step, round(planned))


def measure(workdir: str, text: str | None, changes: dict) -> list[str]:
    """Runs the evaluations on a run; returns lines to print."""
    from mixjax import evals
    from mixjax.run import ledger
    from mixjax.runtime import cpu_settings
    from mixjax.sharding import meshes
    from mixjax.state import Clock
    from mixjax.training import reopen

    cpu_settings.tune()
    fields = {k: v for k, v in changes.items() if k.startswith("config.evals.")}
    # Fields of config.evals belong to the evaluations of the file, if there is one.
    run_changes = {k: v for k, v in changes.items() if not text or k not in fields}
    mesh = meshes.make(fsdp=1)
    run = reopen.open_run(workdir, "--workdir", run_changes, 0, mesh)
    config = run.config
    if text:
        config.evals = recipes.load(text, "--evals")
        config = recipes.override(config, fields)
    context = dict(sets=run.sets, method=run.method, network=run.network, mesh=mesh)
    context |= dict(workdir=workdir, check=lambda: None, clock=Clock(1, 1))
    context["recipe"] = config
    kept = [e for e in evals.make(config.evals, **context) if e.kept]
    if not kept:
        raise errors.UsageError(
            f"--workdir={workdir}: nothing of config.evals can be measured on its data."
        )
    total = length(run, workdir)
    keep = ledger.make_result_writer(workdir, config, total, meshes.hardware(mesh))
    lines = []
    for evaluator in kept:
        metrics = evaluator.run(run.state, run.step, None)
        path = keep(run.step, metrics)
        lines += [f"{name:<32} {value:10.6g}" for name, value in metrics.items()]
        lines += [f"written to {path}"]
    return lines


def run(argv: list[str]) -> int:
    """Evaluates as the flags (no program name) say; returns the exit code."""

    def work():
        flags, changes = cli.flags(argv, ("workdir", "evals"))
        folder = cli.need(flags, "workdir", "name the folder of a run")
        for line in measure(folder, flags.get("evals"), changes):
            print(line)

    return cli.code(work)


if __name__ == "__main__":
    cli.start(__doc__, run)
