"""python -m mixjax.main --config=configs/quickstart.py [--workdir=DIR] [--config.x=y]

Trains what a config file describes. The same command continues an interrupted run,
and does nothing once the run is complete.

  --config=FILE[:ARG]    a recipe, see configs/; ARG selects a variant (see the file)
  --config.FIELD=VALUE   sets a field, such as --config.data.source=...
  --workdir=DIR          the folder of the run; default: runs/<name of the recipe>
  --explain              prints how the state is laid out over the devices and what a
                         step sends between them, without training
  --explain --for=CHIPS  the same for chips that need not be there, such as v5e:4x8 or
                         h200:8, and what a step costs on them; see mixjax.doctor
  --devices=N            refuses to start unless there are N devices in total

Several processes are detected automatically under Slurm, Open MPI and on Cloud TPUs.
Elsewhere, give each one --coordinator=HOST:PORT (of process 0), --processes=N and
--process=0 to N-1; --processes=1 turns detection off. All of them must see the same
workdir.

Exit codes: 0 done, 1 unexpected error, 2 bad configuration or path (nothing was
started), 3 the loss is not finite, 75 stopped by a signal with the state saved, 76
stuck, or another process was lost: the same command continues from the last checkpoint.
"""

from pathlib import Path

from mixjax import errors
from mixjax.runtime import cli

FLAGS = ("workdir", "for", "coordinator", "processes", "process", "devices")


def run(argv: list[str]) -> int:
    """Trains as the flags (without the program's name) say; returns the exit code."""
    return cli.code(lambda: work(argv))


def work(argv: list[str]) -> int:
    """As run(), but raises the errors that a user is meant to read."""
    from mixjax.config import recipes
    from mixjax.runtime import cpu_settings, processes, signals

    stop = signals.Interrupt().install()
    config, flags = recipes.read(argv, explain="", **dict.fromkeys(FLAGS))
    recipe = Path(flags["config"].partition(":")[0]).stem
    if flags["for"]:
        return explain_for(config, flags)
    cpu_settings.tune()
    processes.join(flags, config.watchdog.peer_seconds)
    stop.join()
    import jax

    if flags["explain"]:
        from mixjax.training import explain_step

        lines = explain_step.explain(config)  # in every process: they compile together
        if jax.process_index() == 0:
            print("\n".join(lines))
        return errors.DONE
    from mixjax.run.workdir import Workdir

    folder, number = flags["workdir"] or f"runs/{recipe}", jax.process_index()
    with Workdir(folder, config, number) as workdir:
        if workdir.finished:
            print(f"the run in {workdir.path} is complete; nothing to do")
            return errors.DONE
        from mixjax.run import console
        from mixjax.training import loop

        console.silence_orbax()
        try:
            loop.train(config, workdir, stop)
        except jax.errors.JaxRuntimeError as error:
            if processes.of_a_peer(error):
                raise errors.LostPeer(str(error).splitlines()[0]) from error
            raise
        return errors.DONE


def explain_for(config, flags: dict) -> int:
    """Explains the step on the chips that --for names; returns the exit code."""
    if not flags["explain"]:
        raise errors.UsageError("--for needs --explain: nothing is trained on them.")
    import logging

    from mixjax.chips import environment

    logging.getLogger("absl").setLevel(
        logging.ERROR
    )  # no notes on data that is missing
    environment.prepare()  # before anything imports jax
    from mixjax.chips import targets
    from mixjax.training import plan_report

    for target in targets.read(flags["for"]):
        print("\n".join(plan_report.explain_for(config, target)), flush=True)
    return errors.DONE


if __name__ == "__main__":
    cli.start(__doc__, run)
