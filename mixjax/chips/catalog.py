"""The kinds of chips that a step can be compiled for, from the vendors' data sheets."""

from typing import NamedTuple

from mixjax.profiling.flops import PEAKS

GIB = 2**30


class Gpu(NamedTuple):
    """What the compiler wants to know of a GPU."""

    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    clock_ghz: float
    cache: int  # bytes of the second level
    shared_per_core: int  # bytes


class Chip(NamedTuple):
    """One chip; of a TPU with two cores, both."""

    name: str  # as in --for=
    kind: str  # device_kind, as jax names it
    axes: int  # of a topology; 1 for GPUs, which are only counted
    memory: int  # bytes that the compiler may plan with
    bandwidth: float  # of that memory, bytes per second
    links: float  # bytes per second that a chip sends to its neighbours, one way
    between: float  # bytes per second that a chip sends to other slices or hosts
    clock: float | None  # of the estimated cycles, Hz; None: there is no estimate
    float32_products: float  # their peak as a share of that of bfloat16 products
    several: tuple[str, ...]  # what --for=all and the tables compile for
    gpu: Gpu | None = None

    @property
    def peak(self) -> float:
        """Dense bfloat16 operations per second."""
        return PEAKS[self.kind]

    @property
    def platform(self) -> str:
        return "gpu" if self.gpu else "tpu"


# The memory of a TPU is what its compiler reports as available. That of a GPU is the
# whole of it less a tenth, for CUDA, its libraries and fragmentation. At default
# precision a TPU computes float32 products in bfloat16, and a GPU in TF32.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", 3, int(30.75 * GIB), 1.228e12, 3e11, 3.1e9, 1.05e9, 1.0,
             ("v4:2x4x4",)),
        Chip("v5e", "TPU v5 lite", 2, int(15.75 * GIB), 8.19e11, 2e11, 3.1e9, 1.5e9,
             1.0, ("v5e:4x8",)),
        Chip("v5p", "TPU v5", 3, int(95.74 * GIB), 2.765e12, 6e11, 6.2e9, 1.75e9, 1.0,
             ("v5p:2x4x4",)),
        Chip("v6e", "TPU v6 lite", 2, int(31.25 * GIB), 1.64e12, 4e11, 6.2e9, 1.75e9,
             1.0, ("v6e:4x8",)),
        Chip("a100", "NVIDIA A100", 1, int(0.9 * 80e9), 2.039e12, 3e11, 2.5e10, None,
             0.5, ("a100:8",), Gpu((8, 0), 108, 1.41, 40 * 2**20, 167936)),
        Chip("h100", "NVIDIA H100 80GB HBM3", 1, int(0.9 * 80e9), 3.35e12, 4.5e11, 5e10,
             None, 0.5, ("h100:8",), Gpu((9, 0), 132, 1.98, 50 * 2**20, 233472)),
        Chip("h200", "NVIDIA H200", 1, int(0.9 * 141e9), 4.8e12, 4.5e11, 5e10, None,
             0.5, ("h200:8",), Gpu((9, 0), 132, 1.98, 50 * 2**20, 233472)),
        Chip("b200", "NVIDIA B200", 1, int(0.9 * 180e9), 8e12, 9e11, 5e10, None, 0.5,
             ("b200:8",), Gpu((10, 0), 148, 1.965, 126 * 2**20, 233472)),
    )
}  # fmt: skip
