"""The environment for compiling for chips that are not there."""

import os

# libtpu asks the machine which TPU it drives; here it only compiles. It also takes a
# lock, so that one process drives a TPU: not needed either.
LIBTPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def prepare() -> None:
    """Call this before jax is imported.

    The CPU is then the only device that jax uses: a chip of this machine stays
    untouched, and drivers of GPUs, which compilers do not need, are not looked for.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # notes of the GPU compiler
    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
