"""What a benchmark's figures depend on besides the code: written beside them."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("jax", "jaxlib", "flax", "grain", "numpy", "pillow", "simplejpeg")
PACKAGES += ("opencv-python-headless", "torch", "transformers", "tensorflow-cpu")


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The CPU's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    return names[0] if names else platform.machine()


def commit() -> str:
    """The commit of the checkout, with "+" if files differ from it; "" if none."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True
        )
        clean = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except OSError:
        return ""
    return head.stdout.strip() + ("+" if clean.returncode == 1 else "")


def versions() -> dict[str, str]:
    """Python's and those of the packages that are there."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def write(path: str | None, rows: list[dict], **more) -> None:
    """Writes rows, and how they came about, to a JSON file; nothing without a path."""
    if not path:
        return
    found = {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "host": {"cpu": processor(), "cores": cores()},
        "versions": versions(),
        **more,
        "rows": rows,
    }
    Path(path).write_text(json.dumps(found, indent=1) + "\n")
