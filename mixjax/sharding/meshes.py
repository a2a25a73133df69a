"""Devices as a mesh, and what lies where on it; no other file names mesh types.

Axes: `data` splits the batch; `fsdp` splits the batch too and, by rule, parameters
and optimizer state. Axis types are Auto: sharding is stated for the inputs and the
outputs of a step, and the compiler fills in the rest.
"""

import functools
import re
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mixjax.errors import UsageError, check_name, check_regex

BATCH = ("data", "fsdp")


def make(*, fsdp: int) -> Mesh:
    """All devices as (data, fsdp); UsageError if `fsdp` does not divide their number.

    `fsdp` devices share one copy of the sharded parameters; 1 replicates everything.
    """
    count = jax.device_count()
    if fsdp < 1 or count % fsdp:
        fits = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise UsageError(
            f"mesh.fsdp={fsdp} does not divide the {count} devices; {fits} would."
        )
    return jax.make_mesh((count // fsdp, fsdp), BATCH, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The leading axis cut over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def within(mesh: Mesh, function: Callable) -> Callable:
    """`function`, traced with the mesh in reach of `gathered`."""

    @functools.wraps(function)
    def run(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return run


def gathered(params):
    """A tree of parameters that is whole on every device where it is used.

    Says to the compiler, inside a loop over layers, to send parameters that `fsdp` cut
    and not what is computed with them. Outside `within` it does nothing.
    """
    if jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1:
        return params
    return jax.lax.with_sharding_constraint(params, PartitionSpec())


def path_name(path) -> str:
    """A tree path as text, such as params/encoder/blocks_0/attn/qkv/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def lay_out(mesh: Mesh, shapes, rules: Sequence[tuple[str, str]]):
    """Adds to every shape of a tree the sharding that `rules` give it.

    rules: pairs (regex, what); the first regex found in a leaf's path counts. what is
    "replicate", or "split": cut the longest axis that `fsdp` divides. A leaf that no
    rule names, or that has no such axis, is replicated.
    """
    for regex, what in rules:
        check_regex("mesh.rules", regex)
        check_name("mesh.rules", what, ["replicate", "split"])
    parts = mesh.shape["fsdp"]

    def place(path, leaf):
        name = path_name(path)
        what = next((w for regex, w in rules if re.search(regex, name)), "replicate")
        axes = [a for a, n in enumerate(leaf.shape) if n % parts == 0]
        spec = [None] * leaf.ndim
        if what == "split" and parts > 1 and axes:
            spec[max(axes, key=lambda a: leaf.shape[a])] = "fsdp"
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def rows_here(mesh: Mesh, batch: int) -> np.ndarray:
    """The rows of a batch that lie on this process's devices, in order: [rows] int.

    Not a range where the mesh takes the devices of several processes in turns.
    """
    places = batched(mesh).addressable_devices_indices_map((batch,))
    return np.unique(np.concatenate([np.arange(batch)[i] for i in places.values()]))


def to_devices(mesh: Mesh, batch: int, rows) -> dict[str, jax.Array]:
    """A tree of this process's rows of a batch, each as one array cut over devices."""
    here = rows_here(mesh, batch)

    def place(array: np.ndarray) -> jax.Array:
        def part(index):
            begin, end, _ = index[0].indices(batch)
            first = np.searchsorted(here, begin)
            return array[first : first + end - begin]

        return assembled((batch, *array.shape[1:]), batched(mesh), part)

    return jax.tree.map(place, rows)


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A host array that every process has, as one array laid out as `sharding`."""
    return assembled(array.shape, sharding, lambda index: array[index])


def assembled(shape: tuple, sharding: NamedSharding, part: Callable) -> jax.Array:
    """One array of the parts on this process's devices; part: index -> host array."""
    places = sharding.addressable_devices_indices_map(shape)
    parts = [jax.device_put(part(index), device) for device, index in places.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def check_batch(mesh: Mesh, batch: int, parts: int, field: str = "batch") -> None:
    """UsageError unless `batch` divides over all devices in each of `parts` parts."""
    if parts < 1:
        raise UsageError(f"accumulate={parts} must be at least 1.")
    unit = mesh.size * parts
    if batch < 1 or batch % unit:
        low = max(batch, 0) // unit * unit
        fits = " or ".join(str(n) for n in (low, low + unit) if n > 0)
        why = f"{mesh.size} device" + "s" * (mesh.size > 1)
        if parts > 1:
            why += f" x accumulate={parts}"
        raise UsageError(f"{field}={batch} is not a multiple of {why}; take {fits}.")


def hardware(mesh: Mesh) -> str:
    """How many devices of what kind, such as "8 x NVIDIA H200"."""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


def describe(mesh: Mesh) -> str:
    """The devices in words, such as "8 x NVIDIA H200 as data 2 x fsdp 4"."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return f"{hardware(mesh)} as {axes}"
