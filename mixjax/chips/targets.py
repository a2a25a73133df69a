"""The devices to compile for, as text: v5e:4x8, v5p:4x4x8:2 (two slices), h200:8.

The devices exist for the compiler alone. Compilers for chips come with the packages
that drive them, libtpu and jax's plugin for CUDA, and run on any machine.
"""

import difflib
import importlib.util
import math
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from mixjax.chips import gpu_description
from mixjax.chips.catalog import CHIPS, Chip
from mixjax.errors import UsageError

PLUGINS = {"xla_cuda13": "13.0.0", "xla_cuda12": "12.8.0"}  # name: toolkit
MOST = 8192  # chips


class Target(NamedTuple):
    """A number of chips of one kind."""

    text: str
    chip: Chip
    shape: tuple[int, ...]  # of a slice, or (number,) of GPUs
    slices: int

    @property
    def count(self) -> int:
        """The number of chips."""
        return self.slices * math.prod(self.shape)


def read(text: str) -> list[Target]:
    """The targets of --for=; UsageError, naming the nearest right ones, for others."""
    if text == "all":
        return [
            read_one(example) for chip in CHIPS.values() for example in chip.several
        ]
    return [read_one(part.strip()) for part in text.split(",")]


def read_one(text: str) -> Target:
    """One target, such as "v5e:4x8"."""
    name, _, rest = text.partition(":")
    shape_text, _, slices_text = rest.partition(":")
    if name not in CHIPS:
        near = difflib.get_close_matches(name.lower(), CHIPS, 1, 0.3)
        meant = f"did you mean {CHIPS[near[0]].several[0]!r}? " if near else ""
        kinds = ", ".join(CHIPS)
        raise UsageError(f"--for={text} is not a known chip; {meant}There are {kinds}.")
    chip = CHIPS[name]
    pattern = r"[1-9]\d*" + r"x[1-9]\d*" * (chip.axes - 1)
    slices = slices_text or "1"
    if not re.fullmatch(pattern, shape_text) or not re.fullmatch(r"[1-9]\d*", slices):
        raise UsageError(f"--for={text} names no number of chips; {advice(chip, rest)}")
    shape = tuple(int(n) for n in shape_text.split("x"))
    target = Target(text, chip, shape, int(slices))
    if chip.gpu and target.slices > 1:
        raise UsageError(f"--for={text}: GPUs are only counted; {advice(chip, rest)}")
    if target.count > MOST:
        raise UsageError(f"--for={text} has more than {MOST} chips; take fewer.")
    return target


def advice(chip: Chip, rest: str) -> str:
    """What to write instead; rest: the text after the name of the chip."""
    if chip.gpu:
        return f"write --for={chip.name}:8 for eight of them."
    number = int(rest) if rest.isdigit() and 0 < int(rest) <= MOST else 0
    sides = factors(number, chip.axes) if number else ""
    example = f"{chip.name}:{sides}" if sides else chip.several[0]
    return (
        f"write a topology of {chip.axes} axes, such as --for={example}, and :2 after "
        f"it for two slices."
    )


def factors(number: int, axes: int) -> str:
    """`number` as a product of powers of two that are as alike as possible; "" if not.

    16 with two axes is "4x4", 32 is "4x8".
    """
    power = number.bit_length() - 1
    if number != 2**power:
        return ""
    exponents = [power // axes + (i >= axes - power % axes) for i in range(axes)]
    return "x".join(str(2**e) for e in exponents)


def devices(target: Target) -> list:
    """The devices of a target; UsageError if their compiler is not installed.

    The process must have called environment.prepare before it imported jax.
    """
    if target.chip.gpu:
        description = gpu_description.describe(target.chip, PLUGINS[find_plugin()])
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name=target.chip.name,
            target_config=description,
            topology=f"1x1x{target.count}",
        ).devices
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            f"--for={target.text}: the compiler for TPUs is not installed; run pip "
            f'install "jax[tpu]=={jax.__version__}".'
        )
    options = {"num_slices": target.slices} if target.slices > 1 else {}
    if target.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # both cores as one device
    if any(n % 2 for n in target.shape[:2]):
        options["chips_per_host_bounds"] = [1, 1, 1]  # not the usual 2 x 2
    shape = "x".join(map(str, target.shape))
    try:
        return topologies.get_topology_desc(
            f"{target.chip.name}:{shape}", platform="tpu", **options
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise UsageError(
            f"--for={target.text}: the compiler knows no such topology "
            f"({str(error).splitlines()[0]}); {advice(target.chip, '')}"
        ) from error


def find_plugin() -> str:
    """The installed plugin for CUDA; UsageError if there is none."""
    for name in PLUGINS:
        package = importlib.util.find_spec("jax_plugins")
        if package and importlib.util.find_spec(f"jax_plugins.{name}"):
            return name
    version = jax.__version__
    raise UsageError(
        "--for= a GPU: the compiler for GPUs is not installed; run pip install "
        f"jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}."
    )
