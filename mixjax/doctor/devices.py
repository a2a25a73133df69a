"""The devices that the doctor simulates, on a machine that need not have them.

The doctor runs on the CPU, which poses as any number of devices: so it tries out the
same code that lays out a real run, and no accelerator is touched.
"""

import os
import re
import subprocess
import sys

from mixjax.doctor import versions
from mixjax.errors import UsageError

MOST = 4096  # the CPU takes long to pose as more
FLAG = "--xla_force_host_platform_device_count"
ASK = "import jax; print('devices:', jax.device_count())"


def count(text: str | None) -> int:
    """The value of --devices as a number; None stands for this machine's devices."""
    if text is None:
        return local_devices()
    if not text.isdigit() or not 1 <= int(text) <= MOST:
        raise UsageError(f"--devices={text} is not a number from 1 to {MOST}.")
    return int(text)


def local_devices() -> int:
    """The number of devices that a run would use on this machine.

    If there may be accelerators, jax is asked in a process of its own, which releases
    them when it ends. 1 if that fails, as it does on a TPU in use.
    """
    packages = {name: p.version for name, p in versions.installed().items()}
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not versions.plugins(packages):
        flag = re.search(FLAG + r"=(\d+)", os.environ.get("XLA_FLAGS", ""))
        return int(flag[1]) if flag else 1
    # Without preallocation, a GPU that another process uses can still be counted.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        answer = subprocess.run(
            [sys.executable, "-c", ASK],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return 1
    # Searched for, since plugins may print lines of their own.
    number = re.search(r"devices: (\d+)", answer.stdout)
    return int(number[1]) if number else 1


def simulate(number: int) -> None:
    """Makes jax, which must not have started yet, see `number` devices on the CPU.

    Accelerators stay untouched, whatever the environment asks for.
    """
    others = re.sub(FLAG + r"=\S*", "", os.environ.get("XLA_FLAGS", ""))
    os.environ["XLA_FLAGS"] = f"{others} {FLAG}={number}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
