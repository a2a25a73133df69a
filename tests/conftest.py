"""Settings of the whole suite: eight simulated devices, one compilation cache."""

import os
import tempfile
from importlib import metadata

# Before jax is imported, and inherited by the runs that tests start.
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is compilation: less of it, for code that runs slower.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
USUAL = {  # of jit: compiled as in a run, for the few tests to which it matters
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
if metadata.version("jaxlib").startswith("0.10."):  # 0.11 does not know the first
    QUICK += " --xla_cpu_use_fusion_emitters=false"
    QUICK += " --xla_cpu_parallel_codegen_split_count=1"  # both cores have tests
    USUAL["xla_cpu_use_fusion_emitters"] = True
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="mixjax-xla-")
CACHE = os.environ["JAX_COMPILATION_CACHE_DIR"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import logging  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared"

# A suite that a shell starts in the background ignores SIGINT, and so would all that
# tests start: bash cannot trap a signal that it was started to ignore.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session):
    worker = hasattr(session.config, "workerinput")  # of several that share the cache
    if "mixjax-xla-" in CACHE and not worker:
        shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def eight_devices():
    """Starts jax first: a test that changes XLA_FLAGS must not decide for all."""
    import jax

    assert jax.device_count() == 8


@pytest.fixture(scope="session")
def shared():
    """The folder of real pictures beside the checkout; tests that need it say so."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the pictures in {SHARED}/data, which are not here")
    return SHARED


@pytest.fixture
def said():
    """A list that grows by the lines that the project logs."""
    lines, log, handler = [], logging.getLogger("mixjax"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lines
    log.removeHandler(handler)
    log.setLevel(level)
