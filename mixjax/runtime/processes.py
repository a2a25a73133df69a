"""The processes of one run: how they find each other, and how they leave.

One process needs nothing. Several are found in the environment (Slurm, Open MPI, Cloud
TPU, GKE) or named by flags; each sees the devices of all, reads its own rows of a
batch, and only the first writes what is common.
"""

import glob
import importlib.util
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from typing import NamedTuple

from mixjax.errors import DONE, PREEMPTED, LostPeer, UsageError

FLAGS = ("coordinator", "processes", "process")
JOIN_SECONDS = 300  # for all to be there
LEAVE_SECONDS = {
    True: 60,
    False: 5,
}  # for all to leave together: well, or with an error
SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")  # jax needs all
# What an error says that came of another process' end, and not of this one's work.
PEER = r"(?i)gloo|nccl|rccl|peer|coordination|heartbeat|UNAVAILABLE|ABORTED|DEADLINE"

_joined = False


class Plan(NamedTuple):
    """How the processes find each other; `given` is empty where jax finds out."""

    how: str  # "alone", "flags", "Slurm", "Open MPI" or "TPU"
    given: dict  # arguments of jax.distributed.initialize


def plan(flags: Mapping, environment: Mapping) -> Plan:
    """What the flags coordinator, processes and process, or else the environment, say.

    flags: {name: text or None}. UsageError if they are incomplete or no numbers.
    """
    named = {k: flags[k] for k in FLAGS if flags.get(k) is not None}
    if named.get("processes") == "1":
        return Plan("alone", {})
    if named:
        return Plan("flags", explicit(named))
    if all(f"SLURM_{name}" in environment for name in SLURM):
        return Plan("alone" if environment["SLURM_NTASKS"] == "1" else "Slurm", {})
    if environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return Plan("Open MPI", {})
    return Plan("TPU" if has_tpu() else "alone", {})


def explicit(named: Mapping) -> dict:
    """The flags as arguments; UsageError says which one is missing or wrong."""
    for flag in FLAGS:
        if flag not in named:
            raise UsageError(
                f"--{flag} is missing: several processes need "
                "--coordinator=HOST:PORT --processes=N --process=0 to N-1."
            )
    if not re.fullmatch(r".+:\d+", named["coordinator"]):
        raise UsageError(
            f"--coordinator={named['coordinator']} is not HOST:PORT of process 0, such "
            "as 10.0.0.1:8476."
        )
    for flag in ("processes", "process"):
        if not named[flag].isdigit():
            raise UsageError(f"--{flag}={named[flag]} is not a number.")
    count, number = int(named["processes"]), int(named["process"])
    if number >= count:
        raise UsageError(
            f"--process={number} must be below --processes={count}; they count from 0."
        )
    return {
        "coordinator_address": named["coordinator"],
        "num_processes": count,
        "process_id": number,
        "cluster_detection_method": "deactivate",
    }


def has_tpu() -> bool:
    """Whether this machine has TPU chips and the library for them."""
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def join(flags: Mapping, seconds: float) -> None:
    """Joins the other processes, if there are any; to be called before jax is used.

    flags: coordinator, processes, process and devices, text or None each. seconds: how
    long a process may be silent; see the watchdog, which comes before jax' own.
    UsageError if the devices are not as many as were asked for, LostPeer if the others
    do not come.
    """
    global _joined
    asked = flags.get("devices")
    if asked is not None and not asked.isdigit():
        raise UsageError(f"--devices={asked} is not a number of devices.")
    launcher, arguments = plan(flags, os.environ)
    import jax

    if launcher != "alone":
        try:
            jax.distributed.initialize(
                **arguments,
                initialization_timeout=JOIN_SECONDS,
                # jax ends a process without a word: the watchdog is to be first. It
                # beats twice in that time, so half of it may be over at a death.
                heartbeat_timeout_seconds=max(10, round(3 * seconds)),
                shutdown_timeout_seconds=LEAVE_SECONDS[True],
            )
        except RuntimeError as error:
            raise LostPeer(
                f"the processes did not find each other ({launcher}) within "
                f"{JOIN_SECONDS} s: {str(error).splitlines()[0]}"
            ) from error
        _joined = True
    check_devices(int(asked) if asked else slurm_gpus(os.environ), launcher)


def slurm_gpus(environment: Mapping) -> int | None:
    """How many GPUs a Slurm job has; None where that is not known, or no matter."""
    if environment.get("JAX_PLATFORMS") == "cpu":
        return None
    each = environment.get("SLURM_GPUS_ON_NODE", "")
    nodes = environment.get("SLURM_JOB_NUM_NODES", "")
    return int(each) * int(nodes) if each.isdigit() and nodes.isdigit() else None


def check_devices(asked: int | None, launcher: str) -> None:
    """UsageError, with the line to use, unless jax sees as many devices as `asked`."""
    import jax

    devices, count = jax.device_count(), jax.process_count()
    if asked is None or asked == devices:
        return
    platform = jax.devices()[0].platform
    raise UsageError(
        f"{asked} devices were asked for, but jax sees {devices} ({platform}) in "
        f"{count} process{'es' * (count > 1)}; "
        f"{line_to_use(asked, launcher, platform)}."
    )


def line_to_use(asked: int, launcher: str, platform: str) -> str:
    """How to start `asked` devices where another number was found on `platform`."""
    if platform == "cpu" and launcher != "flags":
        return (
            'for accelerators install "jax[cuda13]" or "jax[tpu]"; for simulated ones '
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={asked}"
        )
    if "SLURM_JOB_ID" in os.environ:
        nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", 1))
        each = max(1, asked // nodes)
        return (
            f"start one task for each GPU, and let it see all GPUs of its node: srun "
            f"--nodes={nodes} --ntasks-per-node={each} --gpus-per-node={each} python "
            f"-m mixjax.main ..., without --gpus-per-task and --gpu-bind"
        )
    if launcher == "TPU":
        return (
            "start the same command on every worker at once: gcloud compute tpus "
            "tpu-vm ssh NAME --worker=all --command='python -m mixjax.main ...'"
        )
    return (
        "start every process with --coordinator=HOST:PORT --processes=N --process=0 to "
        "N-1, or leave --devices out"
    )


def anywhere(flag: bool) -> bool:
    """Whether `flag` holds in any process; all have to ask, and wait for each other."""
    if not _joined:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def together() -> bool:
    """Whether this process has joined others, be it alone among them."""
    return _joined


def prefix() -> str:
    """What begins a line of this process on the console; nothing for the first."""
    if not _joined:
        return ""
    import jax

    number = jax.process_index()
    return f"process {number}: " if number else ""


def of_a_peer(error: Exception) -> bool:
    """Whether an error of jax came of another process' end."""
    return _joined and re.search(PEER, str(error)) is not None


def leave(code: int) -> None:
    """Ends this process with `code`, together with the others if they leave too.

    A process that fails alone does not wait for the others, who wait for it. A signal
    now changes nothing: the interpreter, closing down, would let it end the process.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if not _joined:
        sys.exit(code)
    import jax

    last = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    last.start()
    last.join(LEAVE_SECONDS[code in (DONE, PREEMPTED)])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
