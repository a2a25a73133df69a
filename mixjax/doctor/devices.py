"""For how many devices to count, on a machine that need not have them.

The doctor itself runs on the CPU, which plays as many devices as are asked for: what
is tried out is the very code that lays a run out, and no accelerator is touched.
"""

import os
import re
import subprocess
import sys

from mixjax.doctor import versions
from mixjax.errors import UsageError

MOST = 4096
FLAG = "--xla_force_host_platform_device_count"
ASK = "import jax; print('devices:', jax.device_count())"


def count(text: str | None) -> int:
    """--devices as a number; without it as many as jax sees on this machine."""
    if text is None:
        return seen()
    if not text.isdigit() or not 1 <= int(text) <= MOST:
        raise UsageError(f"--devices={text} is not a number from 1 to {MOST}.")
    return int(text)


def seen() -> int:
    """The number of devices that a run would find here.

    Where accelerators may be, a process of its own asks jax and lets go of them; they
    count as one if that does not work, as on a TPU in use.
    """
    packages = {name: p.version for name, p in versions.installed().items()}
    if os.environ.get("JAX_PLATFORMS") == "cpu" or not versions.plugins(packages):
        asked = re.search(FLAG + r"=(\d+)", os.environ.get("XLA_FLAGS", ""))
        return int(asked[1]) if asked else 1
    gentle = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    ask = [sys.executable, "-c", ASK]
    try:
        done = subprocess.run(
            ask, env=gentle, capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return 1
    told = re.search(r"devices: (\d+)", done.stdout)
    return int(told[1]) if told else 1


def simulate(number: int) -> None:
    """Lets jax, which has not started yet, see `number` devices, all of them the CPU's.

    A GPU that the environment names stays untouched.
    """
    others = re.sub(FLAG + r"=\S*", "", os.environ.get("XLA_FLAGS", ""))
    os.environ["XLA_FLAGS"] = f"{others} {FLAG}={number}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
