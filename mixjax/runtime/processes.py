"""The processes of one run: how they find each other, and how they leave.

A single process needs no setup. Several are detected from the environment (Slurm, Open
MPI, Cloud TPU, GKE) or named by flags. Each sees the devices of all and reads its own
rows of a batch; only the first writes the files they share.
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
JOIN_SECONDS = 300  # until all processes must have joined
# Until all processes must have left: after success, and after an error.
LEAVE_SECONDS = {True: 60, False: 5}
SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")  # jax needs all
# Words in errors that were caused by the end of another process.
PEER = r"(?i)gloo|nccl|rccl|peer|coordination|heartbeat|UNAVAILABLE|ABORTED|DEADLINE"

_joined = False


class Plan(NamedTuple):
    """How the processes find each other."""

    launcher: str  # "alone", "flags", "Slurm", "Open MPI" or "TPU"
    arguments: dict  # of jax.distributed.initialize; {} if jax detects them itself


def plan(flags: Mapping, environment: Mapping) -> Plan:
    """How to join, from the flags coordinator, processes and process if any is set,
    otherwise from the environment.

    flags: {name: text or None}. UsageError if they are incomplete or not numbers.
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
    """The flags as arguments of jax; UsageError names one that is missing or wrong."""
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
    """Joins the other processes, if there are any; call this before jax is used.

    flags: coordinator, processes, process and devices, each text or None. seconds: how
    long a process may be silent, for the watchdog. UsageError if the number of devices
    is not the one requested, LostPeer if the other processes do not join.
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
                # jax ends a process without a message, so the watchdog must act first.
                # jax sends two heartbeats in this time: when a process dies, half of
                # it may have passed already.
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
    """The number of GPUs of a Slurm job; None if unknown, or if the CPU is used."""
    if environment.get("JAX_PLATFORMS") == "cpu":
        return None
    each = environment.get("SLURM_GPUS_ON_NODE", "")
    nodes = environment.get("SLURM_JOB_NUM_NODES", "")
    return int(each) * int(nodes) if each.isdigit() and nodes.isdigit() else None


def check_devices(asked: int | None, launcher: str) -> None:
    """UsageError, with the command to use, unless jax sees `asked` devices."""
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
    """How to start with `asked` devices, after another number appeared."""
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
    """Whether `flag` is true in any process; all must call this, and wait for all."""
    if not _joined:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def together() -> bool:
    """Whether this process has joined others (a group of one counts)."""
    return _joined


def prefix() -> str:
    """The start of this process's lines on the console; empty for the first."""
    if not _joined:
        return ""
    import jax

    number = jax.process_index()
    return f"process {number}: " if number else ""


def of_a_peer(error: Exception) -> bool:
    """Whether an error of jax was caused by the end of another process."""
    return _joined and re.search(PEER, str(error)) is not None


def leave(code: int) -> None:
    """Ends this process with `code`, together with the others if they leave too.

    A process that fails does not wait for the others, since they may wait for it.
    Signals are ignored from here on: during shutdown they would replace the exit code.
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
