"""Runs of several processes on this machine, which meet over its loopback."""

import os
import socket
import subprocess
import sys

from tests.conftest import QUICK
from tests.support import tiny

STARTED: list[subprocess.Popen] = []  # that nobody has waited for yet


def free_port() -> int:
    """A port that nobody listens to now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(workdir, flags: list[str], count: int, devices: int = 1) -> list:
    """Starts `count` processes of one run, with `devices` simulated ones each.

    Their output goes to workdir.parent/<workdir's name>.<number>.txt.
    """
    simulated = f"--xla_force_host_platform_device_count={devices} {QUICK}"
    environment = {**os.environ, "XLA_FLAGS": simulated, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "mixjax.main", *flags, f"--workdir={workdir}"]
    if count > 1:
        command += [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"]
    processes = []
    for number in range(count):
        place = [f"--process={number}"] if count > 1 else []
        with open(output(workdir, number), "w") as file:
            process = subprocess.Popen(
                [*command, *place],
                cwd=tiny.ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        STARTED.append(process)
        processes.append(process)
    return processes


def stop() -> None:
    """Kills what a test that failed has left running."""
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def output(workdir, number: int):
    """The file of what process `number` printed."""
    return workdir.with_name(f"{workdir.name}.{number}.txt")


def finish(processes: list, seconds: float = 300) -> list[int]:
    """Waits for all; their exit codes."""
    try:
        return [p.wait(timeout=seconds) for p in processes]
    finally:
        stop()


def run(workdir, flags: list[str], count: int, devices: int = 1):
    """A run from start to end; its workdir."""
    codes = finish(start(workdir, flags, count, devices))
    said = "\n".join(output(workdir, n).read_text()[-3000:] for n in range(count))
    assert codes == [0] * count, said
    return workdir
