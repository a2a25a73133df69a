"""python -m mixjax.main --config=configs/quickstart.py [--workdir=DIR] [--config.x=y]

Trains what a config file describes. The same command continues an interrupted run,
and does nothing once the run is complete.

  --config=FILE[:ARG]    a recipe, see configs/; ARG picks a variant, as the file says
  --config.FIELD=VALUE   another value for a field, such as --config.data.source=...
  --workdir=DIR          the folder of the run; runs/<name of the recipe> unless given

Exit codes: 0 done, 1 unforeseen error, 2 bad config or path (nothing was started),
3 the loss is not finite, 75 stopped by a signal with the state saved.
"""

from pathlib import Path

from mixjax import commands, errors


def run(argv: list[str]) -> int:
    """Trains as the flags (without the program's name) say; returns the exit code."""
    return commands.code(lambda: work(argv))


def work(argv: list[str]) -> int:
    """As run(), but raises what a user is meant to read."""
    from mixjax import cpu, interrupts, recipes

    stop = interrupts.Interrupt().install()
    config, given = recipes.read(argv, workdir=None)
    recipe = Path(given["config"].partition(":")[0]).stem
    cpu.tune()
    from mixjax.workdir import Workdir

    with Workdir(given["workdir"] or f"runs/{recipe}", config) as workdir:
        if workdir.finished:
            print(f"the run in {workdir.path} is complete; nothing to do")
            return errors.DONE
        from mixjax import train

        train.train(config, workdir, stop)
        return errors.DONE


if __name__ == "__main__":
    commands.start(__doc__, run)
