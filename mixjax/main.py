"""python -m mixjax.main --config=configs/quickstart.py [--workdir=DIR] [--config.x=y]

Trains what a config file describes. The same command continues an interrupted run,
and does nothing once the run is complete.

  --config=FILE[:ARG]    a recipe, see configs/; ARG picks a variant, as the file says
  --config.FIELD=VALUE   another value for a field, such as --config.data.source=...
  --workdir=DIR          the folder of the run; runs/<name of the recipe> unless given

Exit codes: 0 done, 1 unforeseen error, 2 bad config or path (nothing was started),
3 the loss is not finite, 75 stopped by a signal with the state saved.
"""

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mixjax import errors

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe.")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run.")


def parse(argv: list[str]) -> None:
    """Parses flags; whatever is wrong with them becomes one UsageError."""
    if not any(a.startswith("--config=") for a in argv):
        raise errors.UsageError("--config is missing; try configs/quickstart.py.")
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise errors.UsageError(f"{error}".replace("\n", " ")) from error
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise errors.UsageError(unknown_field(argv)) from error
    if len(rest) > 1:
        raise errors.UsageError(f"{rest[1]!r} is no flag; write --name=value.")


def unknown_field(argv: list[str]) -> str:
    """The sentence for the first --config.FIELD that the recipe does not have."""
    recipe = next(a for a in argv if a.startswith("--config="))
    flags.FLAGS.unparse_flags()
    config = flags.FLAGS([argv[0], recipe]) and CONFIG.value
    for flag in argv:
        here, path = config, flag.partition("=")[0].split(".")
        for word in path[1:] if path[0] == "--config" else []:
            if not hasattr(here, "keys") or word not in here:
                known = here.keys() if hasattr(here, "keys") else []
                near = errors.nearest(word, known)
                return f"{'.'.join(path)[2:]} is no field of the recipe; {near}"
            here = here[word]
    return f"one of these flags does not fit the recipe: {' '.join(argv[1:])}"


def run(argv: list[str]) -> int:
    """Trains as the flags say; returns the exit code."""
    from mixjax import cpu, interrupts

    stop = interrupts.Interrupt().install()
    workdir = None
    try:
        parse(argv)
        from mixjax.workdir import Workdir

        recipe = config_flags.get_config_filename(flags.FLAGS["config"])
        where = WORKDIR.value or f"runs/{Path(recipe.partition(':')[0]).stem}"
        workdir = Workdir(where, CONFIG.value)
        if workdir.finished:
            print(f"the run in {workdir.path} is complete; nothing to do")
            return errors.DONE
        cpu.tune()
        from mixjax import train

        train.train(CONFIG.value, workdir, stop)
        return errors.DONE
    except errors.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return errors.USAGE
    except errors.Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return errors.DIVERGED
    except errors.Preempted as error:
        print(f"stopped by {error}; the same command continues", file=sys.stderr)
        return errors.PREEMPTED


if __name__ == "__main__":
    if any(a in ("-h", "-help", "--help", "--helpfull") for a in sys.argv[1:]):
        print(__doc__)
        sys.exit(errors.DONE)
    sys.exit(run(sys.argv))
