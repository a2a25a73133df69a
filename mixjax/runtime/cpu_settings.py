"""Settings that speed up the CPU backend; they do not affect accelerators."""

import ctypes
import os
import sys

# XLA's CPU backend otherwise computes a chain of residual additions again in each of
# its consumers; as multi-output fusions the sums are computed once.
FUSION = "xla_cpu_use_multi_output_fusion=true"

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of <malloc.h>


def tune() -> None:
    """Call this before jax starts; settings made by the user take precedence."""
    xla = os.environ.get("XLA_FLAGS", "")
    if "xla_backend_extra_options" not in xla:
        extra = f"--xla_backend_extra_options={FUSION}"
        os.environ["XLA_FLAGS"] = f"{xla} {extra}".strip()
    chosen = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_")
    if sys.platform == "linux" and not any(name in os.environ for name in chosen):
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Lets the C library keep freed memory, in a single pool.

    The scratch memory of a step is allocated again in every step. If it is returned to
    the system in between, each 4 KiB cost a page fault in the next step: a tenth of a
    ViT-S step, a third of a small one. The price is about twice the memory, because
    large blocks that have been divided are not reused. Set MALLOC_ARENA_MAX=2 in the
    environment to turn this off.
    """
    try:
        libc = ctypes.CDLL(None)
        for option, value in (
            (M_MMAP_MAX, 0),
            (M_TRIM_THRESHOLD, -1),
            (M_ARENA_MAX, 1),
        ):
            libc.mallopt(option, value)
    except (OSError, AttributeError):
        pass  # not glibc
