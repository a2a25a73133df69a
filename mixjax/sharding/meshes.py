"""Devices as a mesh, and the layout of arrays; no other file names mesh types.

Axes: `data` splits the batch; `fsdp` also splits the batch and, by rule, parameters
and optimizer state. Axis types are Auto: shardings are stated for the inputs and
outputs of a step, and the compiler derives the rest.
"""

import functools
import re
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mixjax.errors import UsageError, check_name, check_regex

BATCH = ("data", "fsdp")


def make(*, fsdp: int, devices: Sequence | None = None) -> Mesh:
    """All devices as (data, fsdp); UsageError if `fsdp` does not divide their number.

    `fsdp` devices share one copy of the sharded parameters; 1 replicates everything.
    devices: those of the mesh, which need not exist (see chips/); default: all of this
    run's.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        fits = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise UsageError(
            f"mesh.fsdp={fsdp} does not divide the {count} devices; {fits} would."
        )
    # Auto must be stated: jax.make_mesh defaults to Explicit, under which many
    # operations on sharded axes do not trace.
    types = (AxisType.Auto,) * 2
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices == 1:
        shape = count // fsdp, fsdp
        return jax.make_mesh(shape, BATCH, axis_types=types, devices=devices)
    # Slices of TPUs are connected by a slower network: only `data` crosses it.
    if count // slices % fsdp:
        raise UsageError(
            f"mesh.fsdp={fsdp} does not divide the {count // slices} devices of each "
            f"of {slices} slices."
        )
    within, across = (count // slices // fsdp, fsdp), (slices, 1)
    places = mesh_utils.create_hybrid_device_mesh(within, across, devices)
    return Mesh(places, BATCH, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def within(mesh: Mesh, function: Callable) -> Callable:
    """`function`, traced with the mesh available to `gathered`."""

    @functools.wraps(function)
    def run(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return run


def gathered(params):
    """A tree of parameters that is complete on every device that uses it.

    Inside a loop over layers this tells the compiler to gather the parameters that
    `fsdp` has split, rather than to send activations. Outside `within` it does nothing.
    """
    if jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1:
        return params
    return jax.lax.with_sharding_constraint(params, PartitionSpec())


def path_name(path) -> str:
    """A tree path as text, such as params/encoder/blocks_0/attn/qkv/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def lay_out(mesh: Mesh, shapes, rules: Sequence[tuple[str, str]]):
    """Adds to every shape of a tree the sharding that `rules` assign to it.

    rules: pairs (regex, action); the first regex found in a leaf's path counts. The
    action is "replicate", or "split": split the longest axis that `fsdp` divides. A
    leaf that no rule names, or that has no such axis, is replicated.
    """
    for regex, action in rules:
        check_regex("mesh.rules", regex)
        check_name("mesh.rules", action, ["replicate", "split"])
    parts = mesh.shape["fsdp"]

    def place(path, leaf):
        name = path_name(path)
        matching = (action for regex, action in rules if re.search(regex, name))
        action = next(matching, "replicate")
        axes = [a for a, n in enumerate(leaf.shape) if n % parts == 0]
        spec = [None] * leaf.ndim
        if action == "split" and parts > 1 and axes:
            spec[max(axes, key=lambda a: leaf.shape[a])] = "fsdp"
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, shapes)


def rows_here(mesh: Mesh, batch: int) -> np.ndarray:
    """The rows of a batch on the devices of this process, in order: [rows] int.

    They need not be a range: a mesh may interleave the devices of several processes.
    """
    places = batched(mesh).addressable_devices_indices_map((batch,))
    return np.unique(np.concatenate([np.arange(batch)[i] for i in places.values()]))


def to_devices(mesh: Mesh, batch: int, rows) -> dict[str, jax.Array]:
    """The rows of this process as global arrays that are split over all devices."""
    here = rows_here(mesh, batch)

    def place(array: np.ndarray) -> jax.Array:
        def part(index):
            begin, end, _ = index[0].indices(batch)
            first = np.searchsorted(here, begin)
            return array[first : first + end - begin]

        return assembled((batch, *array.shape[1:]), batched(mesh), part)

    return jax.tree.map(place, rows)


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A host array that every process holds, as one array with `sharding`."""
    return assembled(array.shape, sharding, lambda index: array[index])


def assembled(shape: tuple, sharding: NamedSharding, part: Callable) -> jax.Array:
    """A global array made of the parts on local devices; part: index -> host array."""
    places = sharding.addressable_devices_indices_map(shape)
    parts = [jax.device_put(part(index), device) for device, index in places.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def check_batch(mesh: Mesh, batch: int, parts: int, field: str = "batch") -> None:
    """UsageError unless each of `parts` parts of `batch` divides over all devices."""
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
    """The number and kind of devices, such as "8 x NVIDIA H200"."""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


def describe(mesh: Mesh) -> str:
    """The devices in words, such as "8 x NVIDIA H200 as data 2 x fsdp 4"."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    return f"{hardware(mesh)} as {axes}"
